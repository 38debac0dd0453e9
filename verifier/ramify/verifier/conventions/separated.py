"""Steps that each end with a separator, at whose last token the score is read. Every text's tokens are those of it alone."""

from dataclasses import dataclass

import numpy as np

from ramify.verifier.conventions.base import Stepwise, Subject
from ramify.verifier.conventions.vocabulary import Tokens


@dataclass(frozen=True, slots=True)
class SeparatorOptions:
    """What ends a step."""

    separator: str = "\n"


class Separated(Stepwise):
    """See the module. A separator that a step has already, and newlines before it, are left out."""

    def __init__(self, subject: Subject, options: SeparatorOptions) -> None:
        super().__init__(subject)
        self._separator = options.separator
        self._end = self._vocabulary.separator(options.separator)

    def step(self, text: str) -> Tokens:
        """See `Stepwise`."""
        bare = text.removesuffix(self._separator).rstrip("\n")
        return np.concatenate([self._vocabulary.text(bare), self._end])
