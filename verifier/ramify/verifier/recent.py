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
        if key in self._young or key in self._middle or key in self._old:
            self._drop(key)
        size = len(key) + len(value) + ENTRY_BYTES
        if size <= self._generation_bytes:
            self.bytes += size
            self._add(key, value)
        elif self._forget is not None:
            self._forget(key)

    def _add(self, key: bytes, value: bytes) -> None:
        if self._old:
            self._drain(DRAINED)
        size = len(key) + len(value) + ENTRY_BYTES
        if self._young_bytes + size > self._generation_bytes:
            self._drain(len(self._old))
            self._young, self._middle, self._old = self._old, self._young, self._middle
            self._young_bytes = 0
        self._young[key] = value
        self._young_bytes += size

    def _drop(self, key: bytes) -> None:
        for generation in (self._young, self._middle, self._old):
            before = generation.pop(key, None)
            if before is not None:
                size = len(key) + len(before) + ENTRY_BYTES
                self.bytes -= size
                self._young_bytes -= size if generation is self._young else 0

    def _drain(self, entries: int) -> None:
        old = self._old
        for _ in range(min(entries, len(old))):
            key, value = old.popitem()
            self.bytes -= len(key) + len(value) + ENTRY_BYTES
            if self._forget is not None:
                self._forget(key)
