"""A model that gives one number for a token: the problem and the steps, each with a separator.

The score of a step is the logistic function of the number at the last token of its separator.
"""

import numpy as np

from ramify.verifier.conventions.separated import Separated
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.reading import Value


class ValueHead(Separated):
    """See the module. What the tokenizer puts before a text comes first."""

    name = "value-head"
    head = Value()

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        return np.concatenate([self._vocabulary.before, self.step(problem)]), self.step(first)
