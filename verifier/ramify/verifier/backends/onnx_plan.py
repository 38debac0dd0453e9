"""What of some rows has to be computed, and in which order."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.backends.onnx_cache import Segment, SegmentCache, segment_key
from ramify.verifier.reading import Row

PIECE_TOKENS = 512
"""Tokens of the longest segment: a longer part of a row is cut into pieces."""


class Job(NamedTuple):
    """A segment to be computed: it is new, or log-odds within it are asked for, which are not kept."""

    segment: Segment
    tokens: NDArray[np.int32]  # [n]
    wave: int  # how many jobs have to be done before it
    inner: dict[int, float]  # log-odds by place, but for the segment's last place


class Plan:
    """Jobs for some rows. What rows have in common is one job.

    Args:
        cache: Has what is held. It must not change between two calls of `add`.
        whole: Whether each row is one segment.

    Attributes:
        jobs: By the key of their segment, each after the job of its parent.
        tokens: Of all jobs.
        tokens_asked: Of all rows.
    """

    def __init__(self, cache: SegmentCache, *, whole: bool) -> None:
        self.jobs: dict[bytes, Job] = {}
        self.tokens = self.tokens_asked = 0
        self._cache, self._whole = cache, whole
        self._reads: list[list[tuple[Segment, int]]] = []  # of each row; the place -1 stands for the segment's last

    def add(self, row: Row) -> None:
        """Plan for a row too."""
        tokens = np.ascontiguousarray(row.tokens, np.int32)
        content, reads, found = tokens.tobytes(), row.reads.tolist(), list[tuple[Segment, int]]()
        segment, start, read = None, 0, 0
        for end in (len(tokens),) if self._whole else _ends(row.chunks.tolist()):
            key = segment_key(segment.key if segment else b"", content[4 * start : 4 * end])
            job = self.jobs.get(key)
            known = job.segment if job else self._cache.get(key)
            parent, segment = segment, known or Segment(key, segment, end - start)
            places = []
            while read < len(reads) and reads[read] < end:
                places.append(reads[read] - start if reads[read] < end - 1 else -1)
                read += 1
            inner = [place for place in places if place >= 0]
            if job is None and (known is None or inner):
                job = self._new_job(segment, parent, tokens[start:end])
            if job:
                job.inner.update(dict.fromkeys(inner, np.nan))
            found += [(segment, place) for place in places]
            start = end
        if segment:
            self._cache.touch(segment)
        self._reads.append(found)
        self.tokens_asked += len(tokens)

    def answers(self) -> list[NDArray[np.float64]]:
        """The log-odds `[K]` of each row, once all jobs are done."""
        return [
            np.array([each.log_odds if place < 0 else self.jobs[each.key].inner[place] for each, place in reads], np.float64)
            for reads in self._reads
        ]

    def _new_job(self, segment: Segment, parent: Segment | None, tokens: NDArray[np.int32]) -> Job:
        before = self.jobs.get(parent.key) if parent and parent.kv is None else None
        job = Job(segment, tokens, before.wave + 1 if before else 0, {})
        self.jobs[segment.key] = job
        self.tokens += len(tokens)
        return job


def _ends(chunks: Sequence[int]) -> Iterator[int]:
    """Where the segments of a row end that has these parts."""
    start = 0
    for end in chunks:
        yield from range(start + PIECE_TOKENS, end, PIECE_TOKENS)
        if end > start:
            yield end
        start = end
