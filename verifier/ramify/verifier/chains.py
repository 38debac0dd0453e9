"""The values that scorers take and give. They mirror `Chain` and `ChainScores` of the proto, which says more."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class ChainError(IntEnum):
    """Why a chain has no scores; the numbers are the proto's."""

    NONE = 0
    INVALID = 1
    TOO_LONG = 2
    MODEL = 3
    NEED_PREFIX = 4


class Chain(NamedTuple):
    """A problem and the steps taken so far, each with its delimiter. Hashable: equal chains have equal scores."""

    problem: str
    steps: tuple[str, ...]
    reference: str = ""


class ChainScores(NamedTuple):
    """One score in [0, 1] for each step of a chain; or none, an error and what is wrong, for people."""

    scores: Sequence[float] = ()
    error: ChainError = ChainError.NONE
    message: str = ""


CHAIN_STEPS_MAX = 4_096
"""Steps of a chain, those of its prefix among them."""

NO_STEP = ChainScores(error=ChainError.INVALID, message="a chain needs at least one step")
