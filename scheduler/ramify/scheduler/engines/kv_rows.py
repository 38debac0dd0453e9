"""Dense keys and values of the rows that decode together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KV = NDArray[Any]
I64 = NDArray[np.int64]

_SPARE_BYTES = 16 << 20  # up to here room that is not used is kept, since making it anew costs page faults


class KvRows:
    """Keys and values of rows whose next token has a position below `past`, dense and padded to `past` tokens.

    Rows are `0..count-1`; a row that leaves is replaced by the last one, so that a model's inputs are views. Room
    doubles as rows come, and halves when three quarters are unused and it is more than `_SPARE_BYTES`.
    """

    def __init__(self, caches: int, heads: int, past: int, head_dim: int, dtype: DTypeLike = np.float32) -> None:
        self.past = past
        self.count = 0
        self._lane = np.zeros(2, np.int64)
        self._used = np.zeros(2, np.int64)  # behind these tokens of a row everything is 0
        self._kv = np.zeros((caches, 2, heads, past, head_dim), dtype)  # [C, rows, H, P, D]

    @property
    def lane(self) -> I64:
        """`[count]` whose row each is."""
        return self._lane[: self.count]

    @property
    def spare(self) -> bool:
        """Whether it has no rows and more room than is kept for none."""
        return not self.count and self._kv.nbytes > _SPARE_BYTES

    def inputs(self, rows: int) -> list[KV]:
        """C views `[rows, H, P, D]`, of `count` rows or, where that is 1, two: the second is a filler."""
        return list(self._kv[:, :rows])

    def cut(self, rows: I64, past: int) -> list[KV]:
        """C copies `[n, H, past, D]` of what some rows `[n]` hold."""
        return list(self._kv[:, rows, :, :past])

    def held(self, row: int, tokens: int) -> KV:
        """View `[C, H, tokens, D]` of what a row holds."""
        return self._kv[:, row, :, :tokens]

    def add(self, lane: int, kv: Sequence[KV]) -> None:
        """Append a row that holds kv, `[C, H, _, D]` one after the other; the rest is 0, whatever an earlier row left there."""
        if self.count == len(self._lane):
            self._lane, self._used = (np.concatenate([each, np.zeros_like(each)]) for each in (self._lane, self._used))
            self._kv = np.concatenate([self._kv, np.zeros_like(self._kv)], axis=1)
        self._lane[self.count] = lane
        self._put(self.count, kv)
        self.count += 1

    def remove(self, rows: I64) -> None:
        """Drop rows `[n]`, ascending; the last ones take their places."""
        for row in rows[::-1].tolist():
            self.count -= 1
            if row != self.count:
                self._lane[row] = self._lane[self.count]
                self._put(row, [self.held(self.count, int(self._used[self.count]))])
        half = len(self._lane) // 2
        if half >= max(2, 2 * self.count) and self._kv.nbytes > _SPARE_BYTES:
            self._lane, self._used, self._kv = self._lane[:half].copy(), self._used[:half].copy(), self._kv[:, :half].copy()

    def _put(self, row: int, kv: Sequence[KV]) -> None:
        end = 0
        for part in kv:
            begin, end = end, end + part.shape[2]
            self._kv[:, row, :, begin:end] = part
        self._kv[:, row, :, end : self._used[row]] = 0
        self._used[row] = end

    def write(self, rows: I64, position: I64, new: Sequence[KV]) -> None:
        """Take in the new tokens of rows `[n]`, C times `[n or more, H, D]`, at positions `[n]`: right behind what they hold."""
        self._used[rows] = position + 1
        for kv, each in zip(self._kv, new, strict=True):
            kv[rows, :, position] = each[: len(rows)]
