"""Which trees of its slots an owner has open, and from which segment on each of them has steps.

It decides which segments may be deleted, so it must not miss a step that is being written, or whose write has lost its answer.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.slots import SLOTS, slot_of


class Ledger:
    """The open trees of one owner. What it says of a tree is the segment of its first step, or one before it."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}  # by tree id
        self._epochs: dict[int, int] = {}  # of slots whose open trees are all known here
        self._begun = set[int]()  # of them, those whose first steps are just being written
        self._newest = 0  # what is committed from now on has a larger id

    def seen(self, segment: int) -> None:
        """A segment that is durable, or was at least given its id."""
        self._newest = max(self._newest, segment)

    def recovered(self, epochs: Mapping[int, int], first_segment: Mapping[int, int]) -> None:
        """From now on the trees of these slots are known; what was known of them before is of an earlier claim."""
        self.close([tree for tree in self._first if tree % SLOTS in epochs])
        self._first.update(first_segment)
        self._epochs.update(epochs)

    def begin(self, trees: Iterable[int]) -> None:
        """Steps of these trees are about to be written."""
        new = {tree: self._newest + 1 for tree in trees if tree not in self._first}
        self._first.update(new)
        self._begun.update(new)

    def done(self, segment: int, trees: Iterable[int], ended: Iterable[int], released: Iterable[int]) -> None:
        """Steps of `trees` are written, in this segment; those that have `ended` are open no more."""
        self.seen(segment)
        for tree in self._begun.intersection(trees):
            self._first[tree] = segment
        self._begun.difference_update(trees)
        self.close(ended)
        if gone := set(released):
            self._epochs = {slot: epoch for slot, epoch in self._epochs.items() if slot not in gone}
            self.close([tree for tree in self._first if tree % SLOTS in gone])

    def first_segments(self, besides: Mapping[int, int]) -> dict[int, int]:
        """First segments by tree id, less those of trees that are just being written for the first time; and those `besides`."""
        return {**besides, **{tree: segment for tree, segment in self._first.items() if tree not in self._begun}}

    def close(self, trees: Iterable[int]) -> None:
        """These trees are not open any more."""
        for tree in trees:
            self._first.pop(tree, None)
            self._begun.discard(tree)

    def known(self, epochs: Mapping[int, int]) -> list[int]:
        """Those of some slots whose open trees are all known, under these epochs."""
        return sorted(slot for slot, epoch in epochs.items() if self._epochs.get(slot) == epoch)

    def trees(self) -> NDArray[np.uint64]:
        """`[T]` the open trees."""
        return np.fromiter(self._first, np.uint64, len(self._first))

    def floors(self, newest: int) -> NDArray[np.int64]:
        """`[SLOTS]` first segment that an open tree of each slot needs; the one after `newest` where there is none."""
        found = np.full(SLOTS, newest + 1, np.int64)
        first = np.fromiter(self._first.values(), np.int64, len(self._first))
        np.minimum.at(found, slot_of(self.trees()), first)
        return found
