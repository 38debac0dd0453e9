"""Steps of single trees, wherever they lie, and what of them is lost."""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import tree_ids
from ramify.store import segments as codec
from ramify.store.errors import Damaged
from ramify.store.reading import Reader, Trees, Voids, all_of
from ramify.store.schema import archives, jobs, voids

TREES_TOLD = 10_000  # of a segment that can't tell its trees any of so many may have lost steps: each is told


@dataclass(frozen=True, slots=True)
class Found:
    """The steps of some trees."""

    nodes: NodeRows  # in the order of their commits; those below a step that is lost are left out
    damage: dict[int, str]  # by tree id: what is lost


async def read_voids(connection: AsyncConnection, which: ColumnElement[bool]) -> Voids:
    """The voids of some jobs; `which` is a condition on `jobs` and `voids`."""
    query = select(jobs.c.job_id, voids.c.index.label("problem"), voids.c.first, voids.c.last).join_from(voids, jobs).where(which)
    rows = (await connection.execute(query)).all()
    names = [tree_ids(row.job_id, np.array([row.problem], np.int64)) for row in rows]
    first, last = (np.array([getattr(row, name) for row in rows], np.int64) for name in ("first", "last"))
    return Voids(np.concatenate([np.empty(0, np.uint64), *names]), first, last)


async def read_segments(connection: AsyncConnection, first: int, last: int | None, wanted: Trees, void: Voids) -> Found:
    """Steps out of the segments.

    Args:
        connection: with one consistent view.
        first: segment to start with.
        last: segment to end with; None: the latest.
        wanted: `[T]` ids of the trees.
        void: steps that don't count.
    """
    reader = Reader(connection)
    wanted = np.unique(wanted)
    holdings = await reader.holdings(first, last, all_of(wanted, void))
    pieces = await reader.pieces(holdings)
    nodes = await asyncio.to_thread(codec.decode, [(piece.nodes, piece.scores) for piece in pieces])
    if not reader.damages:
        return Found(nodes, {})
    of = {holding.segment_id: holding.trees for holding in holdings}
    damage = defaultdict[int, list[str]](list)
    for segment, reason in sorted(reader.damages.items()):
        unknown = segment in reader.unknown
        verb = "may be lost" if unknown else "are lost"
        trees = void.less(segment, wanted) if unknown else of[segment]
        if len(trees) > TREES_TOLD:  # of whole jobs: those that have other steps, for the rest most likely never had one
            trees = np.intersect1d(trees, nodes.tree_id)
        for tree in trees.tolist():
            damage[tree].append(f"segment {segment} is damaged ({reason}): steps that it held {verb}")
    return Found(await asyncio.to_thread(codec.rooted, nodes), {tree: "; ".join(told) for tree, told in damage.items()})


async def read_archive(connection: AsyncConnection, archive: int, tree: int) -> tuple[NodeRows, str]:
    """Steps of one tree out of an archive, and what of them is lost."""
    query = select(archives.c.body, archives.c.checksum, archives.c.damage).where(archives.c.archive_id == archive)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return codec.NO_STEPS, f"archive {archive} is missing: the tree's steps are lost"
    try:
        nodes = await asyncio.to_thread(_of_archive, row, tree)
    except Damaged as error:
        return codec.NO_STEPS, f"archive {archive} is damaged ({error}): the tree's steps are lost"
    return nodes, str(json.loads(row.damage).get(str(tree), ""))


def _of_archive(row: Any, tree: int) -> NodeRows:
    codec.verify(row.checksum, row.body)
    return codec.decode_nodes(row.body, np.array([tree], np.uint64))
