"""Content-addressed state of chains: least recently used goes first."""

import hashlib
from collections import OrderedDict
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")


def digest(tokens: NDArray[np.int32]) -> bytes:
    """BLAKE2b-128 of token ids `[n]`: who holds equal digests holds equal tokens."""
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()


class PrefixCache(Generic[V]):
    """Values by digest, bounded by the sum of their weights."""

    def __init__(self, weight_max: int) -> None:
        self.weight_max = weight_max
        self.weight = 0
        self._entries: OrderedDict[bytes, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def touch(self, key: bytes) -> bool:
        """Whether there is a value; it is now the most recently used."""
        if key not in self._entries:
            return False
        self._entries.move_to_end(key)
        return True

    def get(self, key: bytes) -> V | None:
        """The value, now the most recently used; None where there is none."""
        return self._entries[key][0] if self.touch(key) else None

    def put(self, key: bytes, value: V, weight: int) -> None:
        """Keep a value and drop what is too much; one that is too heavy by itself is not kept."""
        if weight > self.weight_max:
            return
        if key in self._entries:
            self.weight -= self._entries.pop(key)[1]
        self._entries[key] = (value, weight)
        self.weight += weight
        while self.weight > self.weight_max:
            self.weight -= self._entries.popitem(last=False)[1][1]
