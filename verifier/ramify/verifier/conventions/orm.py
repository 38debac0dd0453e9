"""An outcome reward model: a classifier of sequences that reads the problem and the solution so far.

With a chat template the user says the problem and the assistant the solution; without one there is a newline between them. The
score is the logistic function of the model's number at the last token; of a model with two labels, the probability of label 1
against label 0. As in transformers, tokens at the end that the model is padded with do not count.
"""

from dataclasses import dataclass

import numpy as np

from ramify.verifier.conventions.base import Subject, Whole
from ramify.verifier.conventions.templates import chat_items, fill_apart, plain_items
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Head, Labels, Value


@dataclass(frozen=True, slots=True)
class OrmOptions:
    """What else the model is told."""

    system: str = ""  # of the chat; empty: what the template itself says


class Orm(Whole):
    """See the module."""

    name = "orm"

    def __init__(self, subject: Subject, options: OrmOptions) -> None:
        super().__init__(subject)
        if subject.labels > 2:
            raise StartupError(f"the model has {subject.labels} labels; an outcome reward model has one, or two")
        padding = subject.config.get("pad_token_id")
        self._padding = padding if isinstance(padding, int) else -1
        self.head: Head = Labels() if subject.labels == 2 else Value()
        if subject.chat.chat_template:
            system = [("system", options.system)] if options.system else []
            chat = [*system, ("user", "{problem}"), ("assistant", "{solution}")]
            self._items = chat_items(self._vocabulary, subject.chat, chat)
        else:
            self._items = [*plain_items(self._vocabulary, "{problem}\n{solution}"), *self._vocabulary.behind.tolist()]

    def whole(self, problem: str, solution: str) -> tuple[Tokens, int]:
        """See `Whole`."""
        texts = {"problem": problem, "solution": solution}
        tokens, before = fill_apart(self._vocabulary, self._items, texts, {**texts, "solution": ""})
        real = np.flatnonzero(tokens != self._padding)
        return tokens[: real[-1] + 1] if len(real) else tokens, before
