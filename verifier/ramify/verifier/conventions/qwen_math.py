"""Qwen2.5-Math-PRM: a chat in which the assistant's steps are each followed by `<extra_0>`.

The score of a step is the probability of label 1 against label 0 at that mark.
"""

from dataclasses import dataclass

import numpy as np

from ramify.verifier.conventions.base import Stepwise, Subject
from ramify.verifier.conventions.templates import Hole, chat_items, fill_apart
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Labels

TAG = "<extra_0>"


@dataclass(frozen=True, slots=True)
class QwenMathOptions:
    """What may be said otherwise than the model's card does."""

    system: str = r"Please reason step by step, and put your final answer within \boxed{}."


class QwenMathPrm(Stepwise):
    """See the module. Newlines at the end of a step are left out."""

    name = "qwen-math-prm"
    head = Labels()

    def __init__(self, subject: Subject, options: QwenMathOptions) -> None:
        super().__init__(subject)
        try:
            self._tag = np.array([self._vocabulary.mark(TAG)], np.int32)
        except StartupError as error:
            raise StartupError(f"{error}: this is no Qwen2.5-Math-PRM, or the tokenizer of another model") from error
        chat = [("system", options.system), ("user", "{problem}"), ("assistant", "{step}")]
        items = chat_items(self._vocabulary, subject.chat, chat)
        end, hole = max((index, item) for index, item in enumerate(items) if isinstance(item, Hole))
        self._items = [*items[:end], hole._replace(right="")]  # the tag stands between a step and what is stripped

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        texts = {"problem": problem, "step": first.rstrip("\n")}
        tokens, before = fill_apart(self._vocabulary, self._items, texts, {**texts, "step": ""})
        return tokens[:before], np.concatenate([tokens[before:], self._tag])

    def step(self, text: str) -> Tokens:
        """See `Stepwise`."""
        return np.concatenate([self._vocabulary.inside(text.rstrip("\n")), self._tag])
