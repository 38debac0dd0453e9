"""A cache bounded in bytes, made of bytes: a million entries give the garbage collector nothing to look at."""

from collections.abc import Callable

ENTRY_BYTES = 200
"""What an entry costs besides its own bytes: two objects, and a place in a dictionary."""

DRAINED = 4
"""Old entries that go for each new one: so none of them waits for the end of a generation to go at once, and takes the time."""


class Recent:
    """Values by key; of those not used for long some go when there is no room for the newest. Not for several threads.

    Entries are in three generations. What is used becomes young again. Once the young are a third of all that may be, they are
    the middle generation, that one the old one, and of the old ones some go with every new entry.

    Args:
        bytes_max: Of all entries, with `ENTRY_BYTES` for each; 0 keeps nothing.
        forget: Called with the key of what goes.
    """

    def __init__(self, bytes_max: int, forget: Callable[[bytes], object] | None = None) -> None:
        self._generation_bytes = bytes_max // 3
        self._forget = forget
        self._young: dict[bytes, bytes] = {}
        self._middle: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._young_bytes = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._middle) + len(self._old)

    def get(self, key: bytes) -> bytes | None:
        """The value; None if it is not there."""
        found = self._young.get(key)
        if found is None:
            found = self._middle.pop(key, None)
            if found is None:
                found = self._old.pop(key, None)
            if found is not None:
                self._add(key, found)
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value as the newest; one that is too large for the cache is not kept."""
        for generation in (self._young, self._middle, self._old):
            before = generation.pop(key, None)
            if before is not None:
                self.bytes -= _size(key, before)
                self._young_bytes -= _size(key, before) if generation is self._young else 0
        size = _size(key, value)
        if size <= self._generation_bytes:
            self.bytes += size
            self._add(key, value)
        elif self._forget is not None:
            self._forget(key)

    def _add(self, key: bytes, value: bytes) -> None:
        self._drain(DRAINED)
        if self._young_bytes + _size(key, value) > self._generation_bytes:
            self._drain(len(self._old))
            self._young, self._middle, self._old = self._old, self._young, self._middle
            self._young_bytes = 0
        self._young[key] = value
        self._young_bytes += _size(key, value)

    def _drain(self, entries: int) -> None:
        old = self._old
        for _ in range(min(entries, len(old))):
            key, value = old.popitem()
            self.bytes -= _size(key, value)
            if self._forget is not None:
                self._forget(key)


def _size(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
