"""Growable columns: what a forest is made of."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

SLICE_VALUES = 256  # values that take about as long to gather as a slice of Python's
GATHER_MAX = 8192  # values that are gathered one by one in less time than it takes to begin with anything else


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int32]) -> NDArray[np.int64]:
    """`[sum of counts]` the numbers of the ranges `starts[i] .. starts[i]+counts[i]-1`, one range after the other."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts))


def take_runs(values: NDArray[Any], starts: NDArray[np.int64], counts: NDArray[np.int32]) -> NDArray[Any]:
    """`values[ranges(starts, counts)]`, without a number for each value where they are many.

    Runs that lie one after the other are copied as one; if all do, the values are not copied at all. Else each run is copied in
    pieces whose lengths are the powers of two that add up to its own, all pieces of one length at once.
    """
    total = int(counts.sum(dtype=np.int64))
    values = np.ascontiguousarray(values)
    breaks = np.flatnonzero(starts[1:] != starts[:-1] + counts[:-1])
    if len(breaks) == 0 and total:
        return values[starts[0] : starts[0] + total]
    if total <= GATHER_MAX:
        return np.asarray(values[ranges(starts, counts)])
    if len(breaks) * SLICE_VALUES < total:
        first = starts[np.concatenate((np.zeros(1, np.int64), breaks + 1))].tolist()
        last = np.concatenate((breaks, np.array([len(starts) - 1])))
        return np.concatenate([values[a:b] for a, b in zip(first, (starts[last] + counts[last]).tolist(), strict=True)])
    found = np.empty(total, values.dtype)
    at, to = starts.astype(np.int64), np.cumsum(counts, dtype=np.int64) - counts
    for bit in range(int(counts.max(initial=0)).bit_length()):
        size = 1 << bit
        some = np.flatnonzero(counts & size)
        _windows(found, size)[to[some]] = _windows(values, size)[at[some]]
        at[some] += size
        to[some] += size
    return found


def _windows(values: NDArray[Any], size: int) -> NDArray[Any]:
    """`[len(values) - size + 1]` the `size` values from each place on, as one item of a type without meaning: copied at once."""
    length = max(0, len(values) - size + 1)
    return np.ndarray((length,), f"V{size * values.itemsize}", values, 0, (values.itemsize,))


def select(values: NDArray[Any], counts: NDArray[np.int32], which: NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[Any]:
    """The runs `which` of consecutive runs of `counts` values."""
    starts = np.cumsum(counts, dtype=np.int64) - counts
    return take_runs(values, starts[which], counts[which])


def grow(values: NDArray[Any], size: int) -> NDArray[Any]:
    """`values` with zeros behind them, `size` in all."""
    grown = np.zeros(size, values.dtype)
    grown[: len(values)] = values
    return grown


class Table:
    """Columns of one length. Subclasses list them in `COLUMNS` (name: dtype) and declare them as attributes.

    An attribute is the whole allocation, of which the first `size` entries are rows: index it with row numbers, or cut
    it with `[:table.size]` for a scan. Row numbers hold until `keep` renumbers them.
    """

    COLUMNS: ClassVar[Mapping[str, DTypeLike]] = {}

    def __init__(self, capacity: int = 64) -> None:
        self.size = 0
        for name, dtype in self.COLUMNS.items():
            setattr(self, name, np.zeros(capacity, dtype))

    def column(self, name: str) -> NDArray[Any]:
        """The allocation of a column by its name."""
        array: NDArray[Any] = getattr(self, name)
        return array

    def append(self, count: int) -> NDArray[np.int32]:
        """Add `count` rows of zeros; returns their numbers."""
        first, self.size = self.size, self.size + count
        capacity = len(self.column(next(iter(self.COLUMNS))))
        if self.size > capacity:
            for name in self.COLUMNS:
                setattr(self, name, grow(self.column(name), max(self.size, capacity + capacity // 2)))
        return np.arange(first, self.size, dtype=np.int32)

    def keep(self, mask: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Drop every row that `mask` `[size]` does not mark, keeping the order.

        Returns:
            `[size]` new number of each old row, -1 for those that were dropped.
        """
        kept = np.flatnonzero(mask)
        renumbered = np.full(self.size, -1, np.int32)
        renumbered[kept] = np.arange(len(kept), dtype=np.int32)
        capacity = max(64, len(kept) + len(kept) // 2)
        for name in self.COLUMNS:
            shrunk = np.zeros(capacity, self.column(name).dtype)
            shrunk[: len(kept)] = self.column(name)[kept]
            setattr(self, name, shrunk)
        self.size = len(kept)
        return renumbered

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(self.column(name).nbytes for name in self.COLUMNS)


class Arena:
    """One long array that holds the variable-length values of a column; rows keep (start, count)."""

    def __init__(self, dtype: DTypeLike, capacity: int = 1024) -> None:
        self.data: NDArray[Any] = np.zeros(capacity, dtype)
        self.size = 0

    def reserve(self, count: int) -> int:
        """Make room for `count` values at the end; returns where it starts."""
        start, self.size = self.size, self.size + count
        if self.size > len(self.data):
            self.data = grow(self.data, max(self.size, len(self.data) + len(self.data) // 2))
        return start

    def append(self, values: NDArray[Any]) -> int:
        """Add values at the end; returns where they start."""
        start = self.reserve(len(values))
        self.data[start : self.size] = values
        return start

    def take(self, starts: NDArray[np.int64], counts: NDArray[np.int32]) -> NDArray[Any]:
        """`[sum of counts]` the values of many rows, one after the other."""
        found = take_runs(self.data, starts, counts)
        return found if found.base is None else found.copy()  # what is taken must not hold the whole arena

    def repack(self, starts: NDArray[np.int64], counts: NDArray[np.int32]) -> tuple[Self, NDArray[np.int64]]:
        """A new arena with only the given values, and where each now starts."""
        packed = type(self)(self.data.dtype, max(1024, int(counts.sum(dtype=np.int64) * 1.5)))
        packed.append(self.take(starts, counts))
        return packed, np.cumsum(counts, dtype=np.int64) - counts
