"""The memory of a GPU engine as vLLM keeps it: blocks of tokens, shared by all chains that begin with the same ones."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import StepBatch, StepResults
from ramify.scheduler.forest.ids import mix64

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


class Blocks:
    """Blocks of keys and values, each known by the hash of its tokens and of all before it.

    A block that a running sequence uses stays. One that nobody uses any more is kept as a cache until its room is needed: those
    given up first go first, and of one chain the last block before those that it builds on. So a block that is here has all
    that come before it.

    Args:
        blocks_max: how many there is room for.
    """

    def __init__(self, blocks_max: int) -> None:
        self.blocks_max = blocks_max
        self._users: dict[int, int] = {}  # by hash, of all blocks that are here
        self._idle = OrderedDict[int, None]()  # those without a user, in the order in which they go
        self._unnamed = 0  # blocks that are being filled

    def __len__(self) -> int:
        """Blocks that are known by a hash."""
        return len(self._users)

    @property
    def free(self) -> int:
        """Blocks that nobody uses: empty, or cached."""
        return self.blocks_max - len(self._users) + len(self._idle) - self._unnamed

    def cached(self, chain: Sequence[int]) -> int:
        """How many of a chain's blocks, from its beginning, are here."""
        return next((at for at, block in enumerate(chain) if block not in self._users), len(chain))

    def unused(self, chain: Sequence[int]) -> int:
        """How many of a chain's blocks have no user: by so many `free` falls once it has one."""
        return sum(not self._users.get(block) for block in chain)

    def use(self, chain: Sequence[int], unnamed: int = 0) -> None:
        """Use all blocks of a chain, and some for what is about to be sampled. There must be room: see `free`."""
        for block in chain:
            users = self._users.get(block, 0)
            self._users[block] = users + 1
            if not users:
                self._idle.pop(block, None)
        self._unnamed += unnamed
        self._evict()

    def leave(self, chain: Sequence[int]) -> None:
        """Use the blocks of a chain no more."""
        for block in reversed(chain):
            self._users[block] -= 1
            if not self._users[block]:
                self._idle[block] = None

    def fill(self, unnamed: int, blocks: Sequence[int]) -> None:
        """Give up blocks that were for what has been sampled, and keep as a cache those that it filled.

        They go on a chain that is in use still.
        """
        self._unnamed -= unnamed
        for block in reversed(blocks):
            if not self._users.setdefault(block, 0):
                self._idle[block] = None
                self._idle.move_to_end(block)
        self._evict()

    def _evict(self) -> None:
        while len(self._users) + self._unnamed > self.blocks_max:
            del self._users[self._idle.popitem(last=False)[0]]


@dataclass(frozen=True, slots=True)
class Names:
    """Hashes of the full blocks of a batch."""

    chain: list[int]  # those of all chains, one after the other
    chain_end: list[int]  # [G+1] chain g has chain[chain_end[g]:chain_end[g+1]]
    step: list[int]  # those that the rows' steps fill, the rest of the chain's last block included
    step_end: list[int]  # [B+1]

    @classmethod
    def of(cls, batch: StepBatch, outcome: StepResults, block: int) -> "Names":
        """Hash the blocks of a batch, and of what it will yield, row i at place i."""
        length = np.diff(batch.offsets)
        whole = length // block
        owner, place = _runs(whole)
        index = (batch.offsets[owner] + place * block)[:, None] + np.arange(block)
        chain = _hashes(batch.tokens[index], place, whole, np.zeros(len(whole), np.uint64))
        chain_end = _ends(whole)
        last = np.append(chain, np.uint64(0))[np.where(whole > 0, chain_end[1:] - 1, -1)]

        # A row's tokens from its chain's last full block on; the last one that is sampled has no keys and values yet.
        group = batch.group
        rest = (length - whole * block)[group]
        filled = np.maximum(rest + outcome.token_cost - 1, 0) // block
        owner, place = _runs(filled)
        position = (place * block)[:, None] + np.arange(block)
        step_begin = len(batch.tokens) + _ends(outcome.token_count)[:-1]
        own = position >= rest[owner, None]
        index = position + np.where(own, (step_begin - rest)[owner, None], (batch.offsets[1:][group] - rest)[owner, None])
        tokens = np.concatenate([batch.tokens, outcome.tokens])
        step = _hashes(tokens[index], whole[group][owner] + place, filled, last[group])
        return cls(chain.tolist(), chain_end.tolist(), step.tolist(), _ends(filled).tolist())


def _hashes(tokens: NDArray[np.int32], place: I64, count: I64, begin: U64) -> U64:
    """`[N]` what blocks of tokens `[N, block]` are known by: the sum of the hashes of their tokens and places, up to each.

    Consecutive runs of `count` `[C]` of them go on a chain that is known by `begin` `[C]` so far.
    """
    factor = mix64(np.arange(tokens.shape[1], dtype=np.uint64), np.zeros(1, np.uint64)) | np.uint64(1)
    own = mix64(((tokens.astype(np.uint64) + np.uint64(1)) * factor).sum(axis=1, dtype=np.uint64), place.astype(np.uint64))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(own, dtype=np.uint64)])
    return np.asarray(total[1:] + np.repeat(begin - total[_ends(count)[:-1]], count))


def _runs(count: I64) -> tuple[I64, I64]:
    """Whose each element of consecutive runs of `count` `[C]` elements is, and its place in its run."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) - _ends(count)[owner]


def _ends(count: NDArray[np.int32] | I64) -> I64:
    """`[C+1]` where consecutive runs of `count` `[C]` elements begin and end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(count, dtype=np.int64)])
