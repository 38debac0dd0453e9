"""What has ended: its steps move into archives, and what nobody needs any more is deleted.

Trees have ended that have a result, and those of cancelled jobs. An archive is read for its own trees alone, and segments need
not be kept for as long as jobs are.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, and_, case, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.slots import SLOTS, in_slots, slot_of
from ramify.store import audit, tenants
from ramify.store import segments as codec
from ramify.store.clock import Clock
from ramify.store.database import Database, insert_new
from ramify.store.leases import Claim, Hold, check
from ramify.store.ledger import Ledger
from ramify.store.rows import FINAL, locked
from ramify.store.schema import archives, damages, jobs, leftovers, problems, results, segments, slots, snapshots, voids
from ramify.store.trees import Found, read_segments, read_voids
from ramify.v1 import job_pb2

GRACE_MS = 60_000  # a cancelled job is let alone so long: shards may still be writing what was in flight
SEGMENTS_A_DELETE = 1000
JOBS_A_SWEEP = 100
EMPTY_JOBS_A_CALL = 100  # cancelled jobs without a step: there is nothing to move, and the next one is looked at
INDEXES_A_STATEMENT = 1000  # databases bound the variables of a statement


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has deleted."""

    segments: int
    jobs: int


@dataclass(frozen=True, slots=True)
class Box:
    """Steps of some trees of one job, to become an archive."""

    job: int  # number
    body: bytes  # empty: none is needed, for there are no steps
    damage: str
    indexes: list[int]  # problems with a result, whose trees these are
    slots: list[int]  # or: slots of which these are all the trees without one
    trees: list[int]  # ids


async def archive(database: Database, clock: Clock, claim: Claim, ledger: Ledger, limit: int) -> int:
    """See `Work.archive`."""
    for _ in range(EMPTY_JOBS_A_CALL):
        boxes = await _archive(database, clock, claim, ledger, limit)
        moved = sum(len(box.trees) for box in boxes)
        if moved or not boxes:
            return moved
    return 0


async def _archive(database: Database, clock: Clock, claim: Claim, ledger: Ledger, limit: int) -> list[Box]:
    """Archive what has ended, of one cancelled job at most, and free what no open tree needs; what was written."""
    mine = ledger.known(claim.epochs)
    if not mine:
        return []
    async with database.read() as connection:
        newest = await _newest(connection)
    # In this order. Of a tree that is not open in the ledger now, and did not end before, the first segment is yet to come: it
    # will be larger than the newest was.
    floors = ledger.floors(newest)
    async with database.read() as connection:
        boxes = await _ended(connection, mine, limit) or await _cancelled(connection, await clock(connection), mine)
        rising = await _rising(connection, mine, floors)
    if not boxes and not rising:
        return []
    async with database.write() as connection:
        await check(connection, claim, mine, Hold.SHARED)
        for box in boxes:
            await _store(connection, box)
        if rising:
            floor = case(rising, value=slots.c.slot)
            await connection.execute(update(slots).where(slots.c.slot.in_([*rising])).values(floor=floor))
    ledger.close([tree for box in boxes for tree in box.trees])
    return boxes


async def _newest(connection: AsyncConnection) -> int:
    return int(await connection.scalar(select(func.coalesce(func.max(segments.c.segment_id), 0))) or 0)


async def _ended(connection: AsyncConnection, mine: Sequence[int], limit: int) -> list[Box]:
    """Trees with a result that are not archived yet."""
    query = (
        select(results.c.job, results.c.index.label("problem"), results.c.segment_first, results.c.segment_last, jobs.c.job_id)
        .join_from(results, problems, and_(problems.c.job == results.c.job, problems.c.index == results.c.index))
        .join(jobs, jobs.c.number == results.c.job)
        .where(results.c.archive.is_(None), problems.c.slot.in_(mine))
        .order_by(results.c.job, results.c.index)
        .limit(limit)
    )
    rows = (await connection.execute(query)).all()
    if not rows:
        return []
    of_job = {number: [row for row in rows if row.job == number] for number in sorted({row.job for row in rows})}
    trees = {
        number: tree_ids(some[0].job_id, np.array([row.problem for row in some], np.int64)) for number, some in of_job.items()
    }
    wanted = np.concatenate([*trees.values()])
    first, last = min(row.segment_first for row in rows), max(row.segment_last for row in rows)
    void = await read_voids(connection, voids.c.job.in_([*of_job]))
    found = await read_segments(connection, first, last, wanted, void)
    return [
        await asyncio.to_thread(_box, number, found, trees[number], [row.problem for row in some], [])
        for number, some in of_job.items()
    ]


async def _cancelled(connection: AsyncConnection, now_ms: int, mine: Sequence[int]) -> list[Box]:
    """All trees without a result that a cancelled job has in some slots."""
    query = _to_settle(mine).where(jobs.c.finished_ms < now_ms - GRACE_MS).order_by(jobs.c.number).limit(1)
    job = (await connection.execute(query)).one_or_none()
    if job is None:
        return []
    known = select(leftovers.c.slot).where(leftovers.c.job == job.number)
    missing = sorted(set(mine) - set((await connection.scalars(known)).all()))
    done = np.array((await connection.scalars(select(results.c.index).where(results.c.job == job.number))).all(), np.int64)
    wanted = await asyncio.to_thread(_without_result, job.job_id, job.problems_total, done, missing)
    void = await read_voids(connection, voids.c.job == job.number)
    found = await read_segments(connection, job.segment_floor + 1, None, wanted, void)
    trees = np.unique(np.concatenate((found.nodes.tree_id, np.array([*found.damage], np.uint64))))
    slot = slot_of(trees)
    return [await asyncio.to_thread(_box, job.number, found, trees[slot == one], [], [one]) for one in missing]


def _to_settle(mine: Sequence[int]) -> Select[Any]:
    """Cancelled jobs whose trees without a result may have steps in some slots that are not archived."""
    of_mine = and_(leftovers.c.job == jobs.c.number, leftovers.c.slot.in_(mine))
    known = select(func.count()).select_from(leftovers).where(of_mine).scalar_subquery()
    cancelled = and_(jobs.c.state == job_pb2.JOB_STATE_CANCELLED, jobs.c.started_ms.is_not(None), jobs.c.settled.is_(False))
    return select(jobs).where(cancelled, known < len(mine))


def _without_result(job_id: str, total: int, done: NDArray[np.int64], mine: Sequence[int]) -> NDArray[np.uint64]:
    """`[T]` ids, sorted, of a job's trees in some slots, less those that are done."""
    waits = np.ones(total, np.bool_)
    waits[done] = False
    trees = tree_ids(job_id, np.flatnonzero(waits))
    return np.sort(trees[in_slots(trees, mine)])


def _box(job: int, found: Found, trees: NDArray[np.uint64], indexes: list[int], of_slots: list[int]) -> Box:
    rows = np.flatnonzero(np.isin(found.nodes.tree_id, trees))
    damage = {str(tree): found.damage[tree] for tree in trees.tolist() if tree in found.damage}
    body = codec.encode_nodes(codec.take(found.nodes, rows)) if len(rows) or damage or indexes else b""
    return Box(job, body, json.dumps(damage), indexes, of_slots, trees.tolist())


async def _rising(connection: AsyncConnection, mine: Sequence[int], floors: NDArray[np.int64]) -> dict[int, int]:
    """New floors of those slots whose floor rises.

    Args:
        connection: with one consistent view.
        mine: slots.
        floors: `[SLOTS]` as far as open trees go.
    """
    ended = (
        select(problems.c.slot, func.min(results.c.segment_first).label("first"))
        .join_from(results, problems, and_(problems.c.job == results.c.job, problems.c.index == results.c.index))
        .where(results.c.archive.is_(None), problems.c.slot.in_(mine))
        .group_by(problems.c.slot)
    )
    for row in await connection.execute(ended):
        floors[row.slot] = min(floors[row.slot], row.first)
    cancelled = (await connection.execute(_to_settle(mine))).all()
    floors = np.minimum(floors, min((job.segment_floor + 1 for job in cancelled), default=floors.max()))
    known = await connection.execute(select(slots.c.slot, slots.c.floor).where(slots.c.slot.in_(mine)))
    return {row.slot: int(floors[row.slot]) for row in known if floors[row.slot] > row.floor}


async def _store(connection: AsyncConnection, box: Box) -> None:
    """Write an archive, and where it is found; nothing if the job was deleted meanwhile."""
    if (await connection.execute(locked(select(jobs.c.number).where(jobs.c.number == box.job)))).one_or_none() is None:
        return
    archive_id = None
    if box.body:
        values = {"job": box.job, "body": box.body, "checksum": codec.checksum(box.body), "damage": box.damage}
        archive_id = await connection.scalar(insert(archives).values(values).returning(archives.c.archive_id))
    for start in range(0, len(box.indexes), INDEXES_A_STATEMENT):
        some = results.c.index.in_(box.indexes[start : start + INDEXES_A_STATEMENT])
        await connection.execute(update(results).where(results.c.job == box.job, some).values(archive=archive_id))
    if box.slots:
        rows = [{"job": box.job, "slot": slot, "archive": archive_id} for slot in box.slots]
        await connection.execute(insert_new(connection, leftovers), rows)
        of_job = select(func.count()).select_from(leftovers).where(leftovers.c.job == box.job)
        if await connection.scalar(of_job) == SLOTS:
            await connection.execute(update(jobs).where(jobs.c.number == box.job).values(settled=True))


async def sweep(database: Database, clock: Clock, retention_ms: int | None) -> Swept:
    """See `Work.sweep`."""
    async with database.write() as connection:
        floor = select(slots.c.floor).where(slots.c.slot == snapshots.c.slot).scalar_subquery()
        await connection.execute(snapshots.delete().where(snapshots.c.segment_id < floor))
        lowest = int(await connection.scalar(select(func.min(slots.c.floor))) or 0)
        await connection.execute(damages.delete().where(damages.c.segment_id < lowest))
        now = await clock(connection)
        await audit.expire(connection, now)
        await tenants.expire(connection, now)
    gone = 0
    # Short transactions: whoever commits need not wait for long.
    while True:
        old = select(segments.c.segment_id).where(segments.c.segment_id < lowest).order_by(segments.c.segment_id)
        some = old.limit(SEGMENTS_A_DELETE).with_for_update(skip_locked=True)
        async with database.write() as connection:
            found = (await connection.scalars(some)).all()
            await connection.execute(segments.delete().where(segments.c.segment_id.in_(found)))
        gone += len(found)
        if len(found) < SEGMENTS_A_DELETE:
            break
    return Swept(gone, 0 if retention_ms is None else await _expire(database, clock, retention_ms))


async def _expire(database: Database, clock: Clock, retention_ms: int) -> int:
    """Delete jobs that ended long ago, one in each transaction; how many."""
    for count in range(JOBS_A_SWEEP):
        async with database.write() as connection:
            ended = and_(jobs.c.state.in_(FINAL), jobs.c.finished_ms < await clock(connection) - retention_ms)
            # Of a cancelled job steps may lie in segments that are still to be archived, and its trees are known as open.
            settled = or_(jobs.c.state == job_pb2.JOB_STATE_DONE, jobs.c.settled, jobs.c.started_ms.is_(None))
            query = select(jobs.c.number).where(ended, settled).order_by(jobs.c.number).limit(1)
            number = await connection.scalar(query.with_for_update(skip_locked=True))
            if number is None:
                return count
            await connection.execute(jobs.delete().where(jobs.c.number == number))
    return JOBS_A_SWEEP
