"""Chains as they are sent, whole or as new steps after a prefix, and the answers to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.chains import ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault
from ramify.verifier.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, eq=False)
class SentChains:
    """R chains.

    Raises:
        InvalidRequestError: there is not a prefix for each chain, or a chain has both a prefix and a problem.
    """

    chains: ChainColumns  # what was sent of them: all, or no problem and the steps after the prefix
    prefixes: Sequence[bytes] = ()  # names of the chains that these continue, empty for one that is whole: R of them, or none

    def __post_init__(self) -> None:
        if not self.prefixes:
            return
        chains = self.chains
        if len(self.prefixes) != len(chains):
            raise InvalidRequestError(
                f"there are {len(self.prefixes)} prefixes for {len(chains)} chains; give one for each, or none"
            )
        problems = chains.text_count[chains.step_ends - chains.length + np.arange(len(chains))]
        continued = np.fromiter(map(bool, self.prefixes), np.bool_, len(chains))
        if len(both := np.flatnonzero(continued & (problems > 0))):
            raise InvalidRequestError(f"chain {both[0]} has a prefix and a problem; the prefix stands for the problem too")

    def __len__(self) -> int:
        return len(self.chains)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The scores of R chains, those of their prefixes' steps among them."""

    scores: NDArray[np.float32]  # first step first, one chain after the other; NaN for each step sent of a chain that has a fault
    length: NDArray[np.int32]  # [R] scores of each chain
    faults: list[ChainFault] = field(default_factory=list)
    names: Sequence[bytes] = ()  # empty for a chain that is not remembered: R of them, or none

    def last(self) -> NDArray[np.float32]:
        """`[R]` the scores of the chains' last steps; NaN for a chain without steps."""
        found = np.full(len(self.length), np.nan, np.float32)
        some = self.length > 0
        found[some] = self.scores[np.cumsum(self.length, dtype=np.int64)[some] - 1]
        return found

    def chains(self) -> list[ChainScores]:
        """The scores as an object for each chain."""
        values, ends = self.scores.tolist(), np.cumsum(self.length, dtype=np.int64).tolist()
        found = [ChainScores(values[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        for fault in self.faults:
            found[fault.chain] = ChainScores(error=fault.error, message=fault.message)
        return found


WHOLE_BYTES_MAX = 64 << 20
"""Of a request's chains with what they continue; a chain that was named may be named many times."""

NEED_PREFIX = "the server does not hold the chain that this one continues: send it whole"


def need_prefix(chain: int) -> ChainFault:
    """The fault of a chain whose prefix is not held."""
    return ChainFault(chain, ChainError.NEED_PREFIX, NEED_PREFIX)
