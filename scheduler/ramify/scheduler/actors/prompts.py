"""Problems as prompts: a job's prompt settings, put to what a model takes."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.engines.text import encode
from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.spec import PROBLEM
from ramify.v1 import job_pb2

REASON_CHARS_MAX = 300  # of what a template says

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
        self._template: Template | None = None
        if settings.chat == job_pb2.CHAT_RULE_ALWAYS and not info.chat_template:
            raise PromptError(f"the job says chat=always, and {info.name} has no chat template: say auto or never")
        auto = settings.chat == job_pb2.CHAT_RULE_AUTO and info.prompt_template == PROBLEM
        if info.chat_template and (auto or settings.chat == job_pb2.CHAT_RULE_ALWAYS):
            self._template = self._try(lambda: compiled(info.chat_template))

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
        if self._template is None:
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
        template = self._template
        assert template is not None
        return self._try(
            lambda: template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self._info.bos_token,
                eos_token=self._info.eos_token,
                strftime_now=self._day.strftime,
            )
        )

    def _try(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:  # a template is a program, and not ours
            told = " ".join(str(error).split())[:REASON_CHARS_MAX] or type(error).__name__
            raise PromptError(f"the chat template of {self._info.name} fails: {told}") from error


def check_step_prompt(info: ModelInfo, plan: JobPlan) -> None:
    """A job's step prompt must leave room for what is sampled. Raises `PromptError`."""
    texts = dict.fromkeys(plan.begin_step(number) for number in range(1, 1 + plan.policy.max_steps))
    longest, most = max(map(len, encode(info.tokenizer_json, [*texts]))), plan.params.max_step_tokens
    if longest >= most:
        raise PromptError(
            f"the step prompt has up to {longest:,} tokens, which leaves nothing of max_step_tokens={most:,}: "
            "shorten the one or raise the other"
        )


class Generation(Extension):
    """The tag `{% generation %}`, by which templates mark for training what the model has said; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=64)
def compiled(chat_template: str) -> Template:
    """A chat template in the dialect of transformers. Raises `TemplateError`."""
    return ENVIRONMENT.from_string(chat_template)


def refuse(message: str) -> None:
    """What templates call to say that messages are not for them."""
    raise TemplateError(message)


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Without the escapes for HTML that jinja2's own has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
ENVIRONMENT.filters["tojson"] = to_json
ENVIRONMENT.globals["raise_exception"] = refuse
