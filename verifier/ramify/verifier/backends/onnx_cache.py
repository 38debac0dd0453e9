"""Keys and values of tokens, kept by what is before them: rows that begin alike share them.

Shapes: C keys and values (two a layer), H heads of D, n tokens of a segment.
"""

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

KV = NDArray[Any]
"""Keys and values of some tokens, `[C, H, n, D]` of float32 or float16."""

SEGMENT_BYTES = 512
"""What a segment costs besides its keys and values: objects, and its place in the dictionary."""


class Segment:
    """A run of tokens that follows its parent's, and what the model made of it.

    Attributes:
        key: Hash of all tokens from the row's beginning on, and of how they are cut into segments.
        count: Its tokens, n.
        end: Tokens up to its end.
        kv: Its own keys and values; None until they are computed.
        log_odds: At its last token.
    """

    __slots__ = ("count", "end", "key", "kv", "log_odds", "parent")

    def __init__(self, key: bytes, parent: "Segment | None", count: int) -> None:
        self.key, self.parent, self.count = key, parent, count
        self.end: int = count + (parent.end if parent else 0)
        self.kv: KV | None = None
        self.log_odds = np.nan

    @property
    def nbytes(self) -> int:
        """What it costs to keep it."""
        return SEGMENT_BYTES + (0 if self.kv is None else self.kv.nbytes)

    def before(self) -> Iterator["Segment"]:
        """Its parent, and so on up to the row's beginning."""
        segment = self.parent
        while segment is not None:
            yield segment
            segment = segment.parent


def segment_key(parent_key: bytes, tokens: bytes) -> bytes:
    """The key of a segment: of its parent's key, empty for none, and its tokens' bytes as int32."""
    return blake2b(parent_key + tokens, digest_size=16).digest()


class SegmentCache:
    """Computed segments by key, bounded in bytes. Not for several threads.

    What was used least recently goes first, and children before their parents: a use of a segment is one of all before it. So
    a segment that is here has all its parents here.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()  # parents always later than their children

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments.values())

    def get(self, key: bytes) -> Segment | None:
        """The segment, if it is here. This is no use of it yet."""
        return self._segments.get(key)

    def touch(self, segment: Segment) -> None:
        """Use a segment, and those before it, be they here or not."""
        for each in (segment, *segment.before()):
            if each.key in self._segments:
                self._segments.move_to_end(each.key)

    def add(self, segment: Segment) -> None:
        """Keep a computed segment, unless its parent is not here, or there is room only without its parent."""
        parent, size = segment.parent, segment.nbytes
        if segment.key in self._segments or (parent and self._segments.get(parent.key) is not parent):
            return
        if parent:
            self.touch(parent)
        while self.bytes + size > self.bytes_max:
            oldest = next(iter(self._segments.values()), None)
            if oldest is parent:  # as well if both are None: it is too large alone
                return
            assert oldest is not None
            del self._segments[oldest.key]
            self.bytes -= oldest.nbytes
        self._segments[segment.key] = segment
        self.bytes += size
        self.touch(segment)

    def clear(self) -> None:
        """Keep nothing of what is here."""
        self._segments.clear()
        self.bytes = 0
