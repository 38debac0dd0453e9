"""Problems as prompts: a job's prompt settings, put to what a model takes."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ramify.chat import ChatError, ChatFormat, compiled, render_chat
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.engines.text import encode
from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.spec import PROBLEM
from ramify.v1 import job_pb2

T = TypeVar("T")


class PromptError(SchedulerError):
    """A job's prompt settings and its model don't go together."""


class Prompts:
    """Makes the prompts of one job for one model.

    Without a chat a prompt is the template with the problem's text in it, after the system prompt and an empty line. In a chat
    these are the messages of a system and a user, rendered as `apply_chat_template` of transformers does; a template that has no
    place for a system gets both as the user's.

    Args:
        info: of the model.
        settings: of the job, with every default filled in; of one from before there were any, empty: no chat.
        started_ms: when the job began, since the epoch: the day of templates that ask for one, so that it stays the same.

    Raises:
        PromptError: says what is wrong with the model's chat template.
    """

    def __init__(self, info: ModelInfo, settings: job_pb2.Prompt, started_ms: int) -> None:
        self._info, self._settings = info, settings
        self._day = datetime.fromtimestamp(started_ms / 1000, UTC)
        self._problem = settings.template or info.prompt_template
        self._chat: ChatFormat | None = None
        if settings.chat == job_pb2.CHAT_RULE_ALWAYS and not info.chat_template:
            raise PromptError(f"the job says chat=always, and {info.name} has no chat template: say auto or never")
        auto = settings.chat == job_pb2.CHAT_RULE_AUTO and info.prompt_template == PROBLEM
        if info.chat_template and (auto or settings.chat == job_pb2.CHAT_RULE_ALWAYS):
            self._try(lambda: compiled(info.chat_template))
            self._chat = ChatFormat(info.chat_template, info.bos_token, info.eos_token)

    def encode(self, problems: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of each problem's prompt. Raises `PromptError`."""
        found = encode(self._info.tokenizer_json, [self.text(problem) for problem in problems])
        if not all(map(len, found)):
            raise PromptError("a prompt is empty: the template, or the model's chat template, leaves the problem out")
        return found

    def text(self, problem: str) -> str:
        """The prompt of a problem. Raises `PromptError`."""
        system, user = self._settings.system, self._problem.replace(PROBLEM, problem)
        together = f"{system}\n\n{user}" if system else user
        if self._chat is None:
            return together
        messages = [{"role": "user", "content": user}]
        if not system:
            return self._render(messages)
        try:
            return self._render([{"role": "system", "content": system}, *messages])
        except PromptError as error:
            try:
                return self._render([{"role": "user", "content": together}])
            except PromptError:
                raise error from None

    def _render(self, messages: list[dict[str, str]]) -> str:
        chat = self._chat
        assert chat is not None
        return self._try(lambda: render_chat(chat, messages, strftime_now=self._day.strftime))

    def _try(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except ChatError as error:
            raise PromptError(f"the chat template of {self._info.name} fails: {error}") from error


def check_step_prompt(info: ModelInfo, plan: JobPlan) -> None:
    """A job's step prompt must leave room for what is sampled. Raises `PromptError`."""
    texts = dict.fromkeys(plan.begin_step(number) for number in range(1, 1 + plan.policy.max_steps))
    longest, most = max(map(len, encode(info.tokenizer_json, [*texts]))), plan.params.max_step_tokens
    if longest >= most:
        raise PromptError(
            f"the step prompt has up to {longest:,} tokens, which leaves nothing of max_step_tokens={most:,}: "
            "shorten the one or raise the other"
        )
