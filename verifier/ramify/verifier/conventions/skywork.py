"""Skywork-o1-Open-PRM: the tokenizer's first mark and the problem, a newline, and the steps, each followed by a newline.

The score of a step is the logistic function of the value head's number at the newline that ends the step. Every step's tokens
are those of the step alone.
"""

import numpy as np

from ramify.verifier.conventions.base import NoOptions, Stepwise, Subject
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.reading import Value

DELIMITER = "\n"


class Skywork(Stepwise):
    """See the module. Newlines at the end of a step are left out."""

    name = "skywork"
    head = Value()

    def __init__(self, subject: Subject, _: NoOptions) -> None:
        super().__init__(subject)
        bos = subject.chat.bos_token
        self._bos = np.array([self._vocabulary.mark(bos)] if bos else [], np.int32)
        self._end = self._vocabulary.separator(DELIMITER)[-1:]

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        read = self._vocabulary.inside if len(self._bos) else self._vocabulary.text
        return np.concatenate([self._bos, read(problem + DELIMITER)]), self.step(first)

    def step(self, text: str) -> Tokens:
        """See `Stepwise`."""
        return np.concatenate([self._vocabulary.text(text.rstrip("\n")), self._end])
