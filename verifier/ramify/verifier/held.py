"""What a client knows that verifiers hold: the names of chains that they have scored, so that only the next step is sent."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ramify.verifier.columns import ChainColumns
from ramify.verifier.names import NAME_BYTES
from ramify.verifier.recent import Recent
from ramify.verifier.sent import SentChains

COUNT_BYTES = 4
NO_PROBLEM = bytes(COUNT_BYTES)


class Place(NamedTuple):
    """A chain's name, and the address of the verifier that holds it."""

    name: bytes
    address: str

    @classmethod
    def of(cls, data: bytes) -> "Place":
        """From its bytes."""
        return cls(data[:NAME_BYTES], data[NAME_BYTES:].decode())

    def __bytes__(self) -> bytes:
        return self.name + self.address.encode()


class Texts:
    """A batch's chains as slices of bytes."""

    def __init__(self, chains: ChainColumns) -> None:
        self._text = chains.text.tobytes()
        self._counts = chains.text_count.astype("<i4", copy=False).tobytes()
        self._ends: list[int] = [0, *np.cumsum(chains.text_count, dtype=np.int64).tolist()]  # [t]: where the t-th text begins
        # [R + 1] the first text of each chain
        self.firsts: list[int] = [0, *(chains.step_ends + np.arange(1, len(chains) + 1)).tolist()]

    def slice(self, first: int, last: int) -> tuple[bytes, bytes]:
        """The texts [first, last), and their sizes."""
        return self._text[self._ends[first] : self._ends[last]], self._counts[COUNT_BYTES * first : COUNT_BYTES * last]

    def size(self, chains: Iterable[int]) -> int:
        """The bytes of the whole texts of the chains of those numbers."""
        return sum(self._ends[self.firsts[chain + 1]] - self._ends[self.firsts[chain]] for chain in chains)

    def problem(self, chain: int) -> bytes:
        """A chain's problem."""
        return self.slice(self.firsts[chain], self.firsts[chain] + 1)[0]

    def key(self, first: int, last: int) -> bytes:
        """A hash of the texts [first, last) that no two have in common."""
        text, counts = self.slice(first, last)
        return blake2b(counts + text, digest_size=NAME_BYTES).digest()

    def sent(self, chains: Sequence[int], prefixes: Sequence[bytes], references: Sequence[str]) -> SentChains:
        """The chains of those numbers, each as its last step after its prefix, or whole where that is empty."""
        parts, counts = list[bytes](), list[bytes]()
        for chain, prefix in zip(chains, prefixes, strict=True):
            first, end = self.firsts[chain], self.firsts[chain + 1]
            text, count = self.slice(end - 1 if prefix else first, end)
            parts.append(text)
            counts.append(NO_PROBLEM + count if prefix else count)
        columns = ChainColumns(
            np.frombuffer(b"".join(parts), np.uint8),
            np.frombuffer(b"".join(counts), "<i4").astype(np.int32, copy=False),
            np.fromiter((len(count) // COUNT_BYTES - 1 for count in counts), np.int32, len(counts)),
            [references[chain] for chain in chains] if references else (),
        )
        return SentChains(columns, prefixes if any(prefixes) else ())


class Held:
    """Of one model. Bounded in bytes; what is forgotten is sent whole again."""

    def __init__(self, bytes_max: int) -> None:
        self._places = Recent(bytes_max)

    def look(self, texts: Texts) -> list[Place | None]:
        """Where what each chain had before its last step is held."""
        recall, key = self._places.get, texts.key
        found = [recall(key(first, end - 1)) if end - first > 2 else None for first, end in pairwise(texts.firsts)]
        return [Place.of(each) if each is not None else None for each in found]

    def keep(self, texts: Texts, chains: Sequence[int], names: Sequence[bytes], address: str) -> None:
        """Remember what the chains of those numbers are called, and where they are held; not those without a name."""
        for chain, name in zip(chains, names, strict=True):
            if name:
                self._places.put(texts.key(texts.firsts[chain], texts.firsts[chain + 1]), bytes(Place(name, address)))
