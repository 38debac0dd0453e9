"""What a convention is: how a process reward model wants to be asked."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Protocol

import numpy as np

from ramify.verifier.errors import RequestError
from ramify.verifier.reading import Head, Row


class ConventionError(RequestError):
    """A chain can't be put to the model. The message says which part of it is wrong, and what with it."""


class Convention(Protocol):
    """Turns chains into what a model reads. The same texts are always the same tokens."""

    @property
    def name(self) -> str:
        """See `conventions.NAMES`."""
        ...

    @property
    def revision(self) -> str:
        """Changes with every option that bears on a row."""
        ...

    @property
    def head(self) -> Head:
        """What is read off the model."""
        ...

    def render(self, problem: str, steps: Sequence[str], known: int) -> list[Row]:
        """Rows whose reads, one after the other, are those of the steps from the `known`th on: at least one.

        The tokens up to a step's read follow from the problem and the steps up to that one: where one row reads several
        steps, those of a shorter chain are a prefix of a longer chain's.

        Raises:
            ConventionError: the chain can't be put to the model.
        """
        ...


def one_row(parts: Iterable[Sequence[int]], known: int) -> Row:
    """A row from the tokens of the problem and of each step, read at the end of each step from the `known`th on."""
    parts = list(parts)
    ends = np.fromiter(accumulate(map(len, parts)), np.int32, len(parts))
    tokens = np.fromiter(chain.from_iterable(parts), np.int32, int(ends[-1]))
    return Row(tokens, ends[1 + known :] - 1, ends if ends[0] else ends[1:])
