"""A classifier of tokens with two labels, as TRL's PRMTrainer makes it: the problem, and the steps, each with a separator.

The score of a step is the probability of label 1 against label 0 at the last token of its separator.
"""

import numpy as np

from ramify.verifier.conventions.base import Subject
from ramify.verifier.conventions.separated import Separated, SeparatorOptions
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Labels


class TokenClassifier(Separated):
    """See the module. A tokenizer that has a first mark has it before the problem."""

    name = "token-classifier"
    head = Labels()

    def __init__(self, subject: Subject, options: SeparatorOptions) -> None:
        super().__init__(subject, options)
        if subject.labels != 2:
            raise StartupError(
                f"the model's labels are {subject.labels}, not two; one number for each token is what value-head reads"
            )
        bos = subject.chat.bos_token
        self._bos = np.array([self._vocabulary.mark(bos)] if bos else [], np.int32)

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        return np.concatenate([self._bos, self._vocabulary.text(problem)]), self.step(first)
