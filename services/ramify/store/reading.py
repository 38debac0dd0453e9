"""Reading segments: which of them hold something of some trees, by their indexes, and then the steps of those trees alone."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store import segments as codec
from ramify.store.errors import Damaged
from ramify.store.schema import segments

log = logging.getLogger(__name__)

INDEXES_A_READ = 256
BODIES_A_READ = 64
BYTES_A_READ = 8 << 20  # of bodies; with BODIES_A_READ it bounds the memory that a read takes beyond what it returns

_T = TypeVar("_T")

Trees = NDArray[np.uint64]
Cut = Callable[[int, Trees], Trees]
"""Those of a segment's trees, sorted, that are wanted; the segment's id comes first."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A segment that holds something of trees that are wanted."""

    segment_id: int
    trees: Trees  # those trees, sorted
    trees_in_all: int  # that it holds something of
    size: int  # bytes of its bodies


@dataclass(frozen=True, slots=True)
class Piece:
    """Steps and scores of trees that are wanted, out of one segment."""

    segment_id: int
    nodes: pa.Table
    scores: pa.Table


@dataclass(slots=True)
class Reader:
    """Reads over one connection, best with one consistent view; decodes in threads. What is damaged is told, not raised."""

    connection: AsyncConnection
    bytes_read: int = 0  # of bodies and indexes
    damages: dict[int, str] = field(default_factory=dict)  # by segment: why its bodies can't be read
    unknown: set[int] = field(default_factory=set)  # of these, those of which nobody knows what trees they hold

    async def holdings(self, first: int, last: int | None, cut: Cut) -> list[Holding]:
        """Segments from `first` to `last` (None: the newest) that hold something of trees that `cut` leaves, rising."""
        found: list[Holding] = []
        size = func.length(segments.c.nodes) + func.length(segments.c.scores)
        query = select(segments.c.segment_id, segments.c.trees, segments.c.trees_checksum, size.label("size"))
        if last is not None:
            query = query.where(segments.c.segment_id <= last)
        while True:
            page = query.where(segments.c.segment_id >= first).order_by(segments.c.segment_id).limit(INDEXES_A_READ)
            rows = (await self.connection.execute(page)).all()
            self.bytes_read += sum(len(row.trees or b"") for row in rows)
            known = await asyncio.to_thread(_indexes, rows, cut)
            found += [holding for holding in known if holding is not None]
            await self._look([row for row, holding in zip(rows, known, strict=True) if holding is None], cut, found)
            if len(rows) < INDEXES_A_READ:
                return sorted((each for each in found if len(each.trees)), key=lambda each: each.segment_id)
            first = rows[-1].segment_id + 1

    async def pieces(self, holdings: Sequence[Holding]) -> list[Piece]:
        """What these segments hold of their trees, in order; of those that are damaged nothing."""
        wanted = {holding.segment_id: holding for holding in holdings}

        def open_some(rows: Sequence[Any]) -> list[Piece]:
            found = list[Piece]()
            for row in rows:
                holding = wanted[row.segment_id]
                if (tables := self._open(row)) is not None:
                    if len(holding.trees) < holding.trees_in_all:
                        tables = codec.of_trees(*tables, holding.trees)
                    found.append(Piece(row.segment_id, *tables))
            return found

        return await self._of_bodies([(holding.segment_id, holding.size) for holding in holdings], open_some)

    async def _look(self, rows: Sequence[Any], cut: Cut, found: list[Holding]) -> None:
        """Read the trees of segments without a good index out of their bodies."""

        def indexes(bodies: Sequence[Any]) -> list[Holding]:
            known = list[Holding]()
            for row in bodies:
                if (tables := self._open(row)) is not None:
                    trees = codec.index_of(*tables)
                    size = len(row.nodes) + len(row.scores)
                    known.append(Holding(row.segment_id, cut(row.segment_id, trees), len(trees), size))
                else:
                    self.unknown.add(row.segment_id)
            return known

        found += await self._of_bodies([(row.segment_id, row.size) for row in rows], indexes)

    async def _of_bodies(self, sizes: Sequence[tuple[int, int]], work: Callable[[Sequence[Any]], list[_T]]) -> list[_T]:
        """Do `work` in a thread on the rows of some segments (id, bytes), a page at a time, while the next page is read."""
        found: list[_T] = []
        query = select(segments.c.segment_id, segments.c.nodes, segments.c.scores, segments.c.checksum)
        working: asyncio.Future[list[_T]] | None = None
        for page in _pages(sizes):
            some = query.where(segments.c.segment_id.in_(page)).order_by(segments.c.segment_id)
            rows = (await self.connection.execute(some)).all()
            self.bytes_read += sum(len(row.nodes) + len(row.scores) for row in rows)
            if working is not None:
                found += await working
            working = asyncio.ensure_future(asyncio.to_thread(work, rows))
        return found if working is None else found + await working

    def _open(self, row: Any) -> tuple[pa.Table, pa.Table] | None:
        try:
            return codec.open_segment(row.nodes, row.scores, row.checksum)
        except Damaged as error:
            self.damages[row.segment_id] = str(error)
            return None


@dataclass(frozen=True, slots=True)
class Voids:
    """V spans of segments in which the steps of a tree don't count; see `schema.voids`."""

    tree_id: Trees  # [V]
    first: NDArray[np.int64]  # [V] segment
    last: NDArray[np.int64]  # [V]

    def less(self, segment: int, trees: Trees) -> Trees:
        """The trees less those whose steps in a segment don't count."""
        here = (self.first <= segment) & (segment <= self.last)
        return trees[~np.isin(trees, self.tree_id[here])] if here.any() else trees


def all_of(wanted: Trees, voids: Voids) -> Cut:
    """Leaves the trees `wanted` `[T]`, sorted, where their steps count."""
    return lambda segment, trees: voids.less(segment, those_in(trees, wanted))


def those_in(trees: Trees, wanted: Trees) -> Trees:
    """Those of the trees `[T]` that are among `wanted` `[W]`, which are sorted; however many those are, it takes T looks."""
    if not len(wanted):
        return trees[:0]
    found: Trees = trees[wanted[np.minimum(np.searchsorted(wanted, trees), len(wanted) - 1)] == trees]
    return found


def _indexes(rows: Sequence[Any], cut: Cut) -> list[Holding | None]:
    """What each segment holds, by its index; None: it has none that is good."""
    found = list[Holding | None]()
    for row in rows:
        try:
            trees = codec.read_index(row.trees, row.trees_checksum)
        except Damaged as error:
            log.warning("the index of segment %d is damaged: %s; its trees are read out of its body", row.segment_id, error)
            trees = None
        found.append(None if trees is None else Holding(row.segment_id, cut(row.segment_id, trees), len(trees), row.size))
    return found


def _pages(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    page, size = list[int](), 0
    for segment, more in sizes:
        if page and (len(page) == BODIES_A_READ or size + more > BYTES_A_READ):
            yield page
            page, size = [], 0
        page.append(segment)
        size += more
    if page:
        yield page
