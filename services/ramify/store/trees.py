"""Reading the steps of trees out of the segments."""

import asyncio
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import NodeRows
from ramify.store import segments as codec
from ramify.store.schema import segments

SEGMENTS_A_READ = 64  # bounds the memory that a read takes beyond what it returns


async def read_trees(connection: AsyncConnection, first: int, last: int | None, wanted: NDArray[np.uint64]) -> NodeRows:
    """The committed steps of the trees `wanted` `[T]` (tree ids), in the order of their commits.

    Args:
        connection: with one consistent view.
        first: segment to start with.
        last: segment to end with; None: the latest.
        wanted: ids of the trees.
    """
    found: list[tuple[pa.Table, pa.Table]] = []
    query = select(segments.c.segment_id, segments.c.nodes, segments.c.scores).order_by(segments.c.segment_id)
    if last is not None:
        query = query.where(segments.c.segment_id <= last)
    while True:
        page = query.where(segments.c.segment_id >= first).limit(SEGMENTS_A_READ)
        rows = (await connection.execute(page)).all()
        # In a thread: to unpack megabytes would hold up every other call.
        found += await asyncio.to_thread(_cut, [(row.nodes, row.scores) for row in rows], wanted)
        if len(rows) < SEGMENTS_A_READ:
            return await asyncio.to_thread(codec.decode, found)
        first = rows[-1].segment_id + 1


def _cut(bodies: list[tuple[Any, Any]], wanted: NDArray[np.uint64]) -> list[tuple[pa.Table, pa.Table]]:
    return [codec.of_trees(nodes, scores, wanted) for nodes, scores in bodies]
