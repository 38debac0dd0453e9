"""Lines: the text is the problem, a newline, and the steps, each ended by a newline.

The score of a step is P(+) against P(-), the softmax over the logits of those two tokens, at the newline that ends the step.
"""

from ramify.verifier.conventions.base import NoOptions, Stepwise, Subject
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.reading import Pair

DELIMITER = "\n"


class Newline(Stepwise):
    """See the module; each line's tokens are those of the line alone."""

    name = "newline"

    def __init__(self, subject: Subject, _: NoOptions) -> None:
        super().__init__(subject)
        self.head = Pair(self._vocabulary.word("+"), self._vocabulary.word("-"))
        self._vocabulary.separator(DELIMITER)

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        return self.step(problem), self.step(first)

    def step(self, text: str) -> Tokens:
        """See `Stepwise`."""
        return self._vocabulary.text(text if text.endswith(DELIMITER) else text + DELIMITER)
