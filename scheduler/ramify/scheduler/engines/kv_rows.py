"""Dense keys and values of the rows that decode together."""

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_SPARE_BYTES = 16 << 20  # up to here room that is not used is kept, since making it anew costs page faults


class KvRows:
    """Keys and values of rows whose next token has a position below `past`, dense and padded to `past` tokens.

    Rows are `0..count-1`; a row that leaves is replaced by the last one, so that a model's inputs are views. Room
    doubles as rows come, and halves when three quarters are unused and it is more than `_SPARE_BYTES`.
    """

    def __init__(self, caches: int, heads: int, past: int, head_dim: int) -> None:
        self.past = past
        self.count = 0
        self._lane = np.zeros(2, np.int64)
        self._kv = np.zeros((caches, 2, heads, past, head_dim), np.float32)  # [C, rows, H, P, D]

    @property
    def lane(self) -> I64:
        """`[count]` whose row each is."""
        return self._lane[: self.count]

    def inputs(self) -> list[F32]:
        """C views `[B, H, P, D]` for B = max(2, count): kernels for a single row may round otherwise."""
        return list(self._kv[:, : max(2, self.count)])

    def held(self, row: int, tokens: int) -> F32:
        """View `[C, H, tokens, D]` of what a row holds."""
        return self._kv[:, row, :, :tokens]

    def add(self, lane: int, kv: F32) -> None:
        """Append a row that holds kv `[C, H, tokens, D]`; the rest is 0, whatever an earlier row left there."""
        if self.count == len(self._lane):
            self._lane = np.concatenate([self._lane, np.zeros_like(self._lane)])
            self._kv = np.concatenate([self._kv, np.zeros_like(self._kv)], axis=1)
        self._lane[self.count] = lane
        self._kv[:, self.count, :, : kv.shape[2]] = kv
        self._kv[:, self.count, :, kv.shape[2] :] = 0
        self.count += 1

    def remove(self, rows: I64) -> None:
        """Drop rows `[n]`, ascending; the last ones take their places."""
        for row in rows[::-1].tolist():
            self.count -= 1
            if row != self.count:
                self._lane[row] = self._lane[self.count]
                self._kv[:, row] = self._kv[:, self.count]
        half = len(self._lane) // 2
        if half >= max(2, 2 * self.count) and self._kv.nbytes > _SPARE_BYTES:
            self._lane, self._kv = self._lane[:half].copy(), self._kv[:, :half].copy()

    def write(self, position: I64, present: list[F32]) -> None:
        """Take each row's new token, the last one of `present` (C times `[B, H, P+1, D]`), in at its position `[count]`."""
        rows = np.arange(self.count)
        for kv, new in zip(self._kv, present, strict=True):
            kv[rows, :, position] = new[: self.count, :, -1]
