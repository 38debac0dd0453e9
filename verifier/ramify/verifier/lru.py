"""A cache bounded in bytes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ENTRY_BYTES = 400
"""What an entry costs besides its own bytes: objects, and its place in the dictionary."""


class ByteLru(Generic[K, V]):
    """Values by key; those not used for longest go when there is no room for the newest. Not for several threads.

    Args:
        bytes_max: Of all entries, with `ENTRY_BYTES` for each; 0 keeps nothing.
        forget: Called with each value that goes.
    """

    def __init__(self, bytes_max: int, forget: Callable[[V], None] | None = None) -> None:
        self.bytes_max = bytes_max
        self._forget = forget
        self.bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value, which was just used by that; None if it is not there."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, own_bytes: int) -> None:
        """Keep a value, with its key of so many bytes, as the newest; one that is too large for the whole cache is not kept."""
        size = own_bytes + ENTRY_BYTES
        old = self._entries.pop(key, None)
        if old is not None:
            self.bytes -= old[1]
        if size > self.bytes_max:
            if self._forget is not None:
                self._forget(value)
            return
        self.bytes += size
        self._entries[key] = value, size
        while self.bytes > self.bytes_max:
            _, (gone, size) = self._entries.popitem(last=False)
            self.bytes -= size
            if self._forget is not None:
                self._forget(gone)
