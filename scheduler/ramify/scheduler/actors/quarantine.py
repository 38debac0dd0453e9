"""Steps that were lost with an engine: one of them may be what it died of, and would take others with it again and again.

They are tried alone on an engine, in groups that become smaller with every attempt, so that in the end what kills an engine is
by itself and all others have gone on. The smallest group is one chain with all that continues it: the steps of a poisoned chain
die of the same tokens, and one death is enough to know.
"""

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Container, Iterable

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.actors.lanes import Call
from ramify.scheduler.commands import Generate
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.journal import without

GROUP_MIN = 512  # steps of the first group, unless the engine takes more at once
CHAINS_MAX = 3  # convicted chains of a tree; with so many it is tried as one
CONVICTED_MAX = 4096  # chains that are remembered


class Quarantine:
    """Says which suspects are to be tried together, and remembers which chains have killed their engine every time."""

    def __init__(self, tries_max: int) -> None:
        """`tries_max`: times that a step may be lost before its chain is given up."""
        self._tries_max = tries_max
        self._convicted: dict[int, str] = {}  # by chain or tree: the reason
        self._chains: dict[int, int] = {}  # convicted chains of each tree

    def size(self, attempt: int, slots: int) -> int:
        """Steps of a group of the `attempt`-th try (from 1): an even way down from all that was in flight to one."""
        first, shrinks = max(GROUP_MIN, 2 * slots), self._tries_max - 2
        left = max(0, self._tries_max - 1 - attempt)
        return math.ceil(first ** (left / shrinks) - 1e-9) if shrinks > 0 else 1

    def take(self, suspects: deque[Generate], slots: int) -> list[Generate]:
        """Take the steps that are to be tried next off the suspects: those with the fewest attempts, whole trees first."""
        chain = np.concatenate([units(each, self._whole) for each in suspects])
        tree = np.concatenate([each.tree_id for each in suspects])
        attempt = np.concatenate([each.attempt for each in suspects])
        lowest = int(attempt.min())
        rows = np.flatnonzero(attempt == lowest)
        rows = rows[np.lexsort((chain[rows], tree[rows]))]
        size = self.size(lowest, slots)
        last = _last_within(tree[rows], size) or _last_within(chain[rows], size) or _first_run(chain[rows])
        taken = np.zeros(len(tree), np.bool_)
        taken[rows[:last]] = True
        found: list[Generate] = []
        start = 0
        for _ in range(len(suspects)):
            command = suspects.popleft()
            mine = taken[start : start + len(command.hint)]
            start += len(command.hint)
            if mine.any():
                found.append(command if mine.all() else without(command, ~mine))
            if not mine.all():
                suspects.append(without(command, mine) if mine.any() else command)
        return found

    def lost(self, call: Call, rows: NDArray[np.int64], reason: str) -> None:
        """Some rows of a group were lost after it had begun, alone: if that was the last try of all of it, it is convicted."""
        if len(rows) < len(call.open) or int(call.rows.attempt.min()) < self._tries_max - 1:
            return
        unit = np.concatenate([units(each, self._whole) for each in call.commands])[rows]
        self._convicted[int(unit[0])] = reason
        tree = int(call.rows.tree_id[0])
        self._chains[tree] = self._chains.get(tree, 0) + 1
        while len(self._convicted) > CONVICTED_MAX:
            self._convicted.pop(next(iter(self._convicted)))
        while len(self._chains) > CONVICTED_MAX:
            self._chains.pop(next(iter(self._chains)))

    def known(self, command: Generate) -> tuple[NDArray[np.bool_], str] | None:
        """Which steps of a command continue a chain that was convicted, and of what; None: none does."""
        if not self._convicted or not np.isin(command.tree_id, _numbers(self._chains)).any():
            return None
        unit = units(command, self._whole)
        mine = np.isin(unit, _numbers(self._convicted))
        return (mine, self._convicted[int(unit[mine][0])]) if mine.any() else None

    @property
    def _whole(self) -> Container[int]:
        return {tree for tree, chains in self._chains.items() if chains >= CHAINS_MAX}


def units(command: Generate, whole: Container[int] = ()) -> NDArray[np.uint64]:
    """`[R]` a number for what each step is tried together with: its chain, or its tree where that is one of `whole`."""
    bounds = command.offsets.tolist()
    digests = [
        int.from_bytes(hashlib.blake2b(command.tokens[start:end].tobytes(), digest_size=8).digest(), "big")
        for start, end in itertools.pairwise(bounds)
    ]
    chain = mix64(command.tree_id, np.array(digests, np.uint64)[command.group])
    as_one = np.array([tree in whole for tree in command.tree_id.tolist()], np.bool_)
    return np.where(as_one, mix64(command.tree_id, command.tree_id), chain)


def _numbers(keys: Iterable[int]) -> NDArray[np.uint64]:
    return np.fromiter(keys, np.uint64)


def _last_within(sorted_keys: NDArray[np.uint64], size: int) -> int:
    """How many rows the runs of equal keys hold that lie within the first `size` rows entirely."""
    ends = np.flatnonzero(np.append(sorted_keys[1:] != sorted_keys[:-1], np.True_)) + 1
    fitting = ends[ends <= size]
    return int(fitting[-1]) if len(fitting) else 0


def _first_run(sorted_keys: NDArray[np.uint64]) -> int:
    return int(np.flatnonzero(np.append(sorted_keys[1:] != sorted_keys[:-1], np.True_))[0]) + 1
