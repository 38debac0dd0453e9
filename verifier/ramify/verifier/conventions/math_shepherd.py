"""Math-Shepherd: the problem, a space, and the steps, each followed by ` ки`, a newline between them.

The score of a step is P(+) against P(-), the softmax over the logits of those two tokens, at the tag.
"""

import numpy as np

from ramify.verifier.conventions.base import NoOptions, Stepwise, Subject
from ramify.verifier.conventions.vocabulary import Tokens, shared
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Pair

TAG = "ки"


class MathShepherd(Stepwise):
    """See the module. White space at the end of a step is left out."""

    name = "math-shepherd"

    def __init__(self, subject: Subject, _: NoOptions) -> None:
        super().__init__(subject)
        try:
            self._tag = np.array([self._vocabulary.word(TAG)], np.int32)
        except StartupError as error:
            raise StartupError(f"{error}: this is no Math-Shepherd, or the tokenizer of another model") from error
        self.head = Pair(self._vocabulary.word("+"), self._vocabulary.word("-"))

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        read = self._vocabulary.text
        before, tokens = read(problem), read(f"{problem} {first}".rstrip() if first.strip() else problem)
        cut = shared(before, tokens)
        return np.concatenate([self._vocabulary.before, before[:cut]]), np.concatenate([tokens[cut:], self._tag])

    def step(self, text: str) -> Tokens:
        """See `Stepwise`."""
        return np.concatenate([self._vocabulary.after(TAG, f"\n{text.rstrip()}"), self._tag])
