"""RLHFlow: a chat in which the user says the problem with the first step, and then each step, and the assistant always "+".

The score of a step is P(+) against P(-), the softmax over the logits of those two tokens where the assistant is to speak.
"""

import numpy as np

from ramify.verifier.conventions.base import NoOptions, Stepwise, Subject
from ramify.verifier.conventions.templates import Hole, chat_items, fill, fill_apart, next_token
from ramify.verifier.conventions.vocabulary import Tokens
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Pair

GOOD, BAD = "+", "-"


class Rlhflow(Stepwise):
    """See the module. White space around a step is left out."""

    name = "rlhflow"

    def __init__(self, subject: Subject, _: NoOptions) -> None:
        super().__init__(subject)
        self.head = Pair(self._vocabulary.word(GOOD), self._vocabulary.word(BAD))
        turn = [("user", "{step}"), ("assistant", "{sign}")]
        items = chat_items(self._vocabulary, subject.chat, 3 * turn)
        first, second, third = (index for index, item in enumerate(items) if isinstance(item, Hole) and item.name == "sign")
        self._first, self._turn = items[:first], items[first + 1 : second]
        if self._turn != items[second + 1 : third] or not isinstance(self._turn[0], int):
            raise StartupError(
                "the model's chat template treats turns unlike, or does not mark their ends: it is of no RLHFlow PRM"
            )
        self._sign = np.array([next_token(self._vocabulary, self._turn, {"step": "1"}, GOOD)], np.int32)

    def begin(self, problem: str, first: str) -> tuple[Tokens, Tokens]:
        """See `Stepwise`."""
        whole = {"step": f"{problem} {first.strip()}"}
        tokens, before = fill_apart(self._vocabulary, self._first, whole, {"step": problem})
        return tokens[:before], tokens[before:]

    def step(self, text: str) -> Tokens:
        """See `Stepwise`."""
        return np.concatenate([self._sign, fill(self._vocabulary, self._turn, {"step": text.strip()})])
