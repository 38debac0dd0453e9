"""Recovery: what the store holds of the open trees of some slots, for their new owner to go on from.

Of each slot the newest good snapshot is read, and then the segments after it, as far as they hold something of open trees. What
is damaged costs the trees of which it holds something: they lose their steps from there on, once and for all (`voids`).
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, func, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.forest.parts import Part, some_trees, with_scores
from ramify.scheduler.slots import SLOTS, slot_of
from ramify.store import segments as codec
from ramify.store import snapshots as snapshot_codec
from ramify.store.clock import Clock
from ramify.store.database import Database, insert_new
from ramify.store.errors import Damaged
from ramify.store.leases import Claim, Hold, check
from ramify.store.reading import Holding, Piece, Reader, Trees, Voids, those_in
from ramify.store.rows import tell
from ramify.store.schema import damages, jobs, results, segments, slots, snapshots, voids
from ramify.store.snapshots import StoredSnapshot
from ramify.store.trees import read_voids
from ramify.v1 import job_pb2

log = logging.getLogger(__name__)

SNAPSHOTS_A_READ = 8
INDEXES_A_READ = 1000  # databases bound the variables of a statement
TREES_AT_ONCE = 1 << 20  # whose ids are computed in one go
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Restarted:
    """A tree that has lost steps to damage and goes on from before them."""

    job_id: str
    index: int  # of the problem
    segment_id: int  # its steps from this one on are lost
    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """Open trees of some slots: trees without a result, of jobs that run. Of what has ended there is nothing in here."""

    snapshots: Mapping[str, Sequence[Part]]  # by job id; no tree is in two of them
    steps: NodeRows  # the journal: committed steps that are not in the snapshots, in the order of their commits
    first_segment: Mapping[int, int]  # by tree id, of all in either: that of the first step, or one before it
    restarted: Sequence[Restarted]  # found damaged by this recovery
    bytes_read: int  # of bodies and indexes
    segments_read: int  # of which steps were taken


@dataclass(frozen=True, slots=True)
class OpenTrees:
    """T trees without a result, of jobs that run."""

    tree_id: Trees  # [T] sorted
    job: NDArray[np.int64]  # [T] number
    index: NDArray[np.int64]  # [T]


@dataclass(slots=True)
class Tail:
    """Where a recovery starts to read: from each slot's snapshot on, or from its first segment."""

    after: NDArray[np.int64]  # [SLOTS] segment up to which nothing is needed; NEVER: of no slot of the claim
    void: Voids  # steps that don't count
    dealt: set[tuple[int, int]] = field(default_factory=set)  # segment and slot of damage that an earlier recovery has met
    snapshots: list[StoredSnapshot] = field(default_factory=list)
    damaged: list[tuple[int, int]] = field(default_factory=list)  # slot and segment of snapshots that can't be read

    def cut(self, segment: int, trees: Trees) -> Trees:
        """See `reading.Cut`."""
        return self.void.less(segment, trees[self.after[slot_of(trees)] < segment])


async def recover(database: Database, clock: Clock, claim: Claim) -> Recovered:
    """See `Work.recover`."""
    async with database.read() as connection:
        await check(connection, claim, claim.slots, Hold.NONE)
        reader = Reader(connection)
        running = (await connection.execute(select(jobs).where(jobs.c.state == job_pb2.JOB_STATE_RUNNING))).all()
        tail = await _start(reader, claim, running)
        found = await reader.holdings(1 + int(tail.after.min()), None, tail.cut) if running and claim.slots else []
        first = await asyncio.to_thread(_first_segments, tail, found)
        opened = await open_trees(connection, np.fromiter(first, np.uint64, len(first)), running)
        holdings = await asyncio.to_thread(_of_open, found, opened)
        pieces = await reader.pieces(holdings)
    lost = _lost(reader, tail, holdings, opened)
    if lost or tail.damaged or reader.unknown:
        await _write_damage(database, clock, claim, reader, tail, opened, lost)
    steps, parts = await asyncio.to_thread(_put_together, tail, pieces, opened, lost)
    names = {job.number: job.job_id for job in running}
    return Recovered(
        snapshots=parts,
        steps=steps,
        first_segment={tree: first[tree] for tree in opened.tree_id.tolist()},
        restarted=[
            Restarted(names[int(opened.job[at])], int(opened.index[at]), segment, reader.damages[segment])
            for at, segment in lost.items()
        ],
        bytes_read=reader.bytes_read,
        segments_read=len(pieces),
    )


async def _start(reader: Reader, claim: Claim, running: Sequence[Any]) -> Tail:
    """Read each slot's newest good snapshot."""
    connection = reader.connection
    runs = jobs.c.state == job_pb2.JOB_STATE_RUNNING
    tail = Tail(np.full(SLOTS, NEVER), await read_voids(connection, runs))
    oldest = min((job.segment_floor for job in running), default=0)
    for row in await connection.execute(select(slots.c.slot, slots.c.floor).where(slots.c.slot.in_(claim.slots))):
        tail.after[row.slot] = max(row.floor - 1, oldest)
    known = select(damages.c.segment_id, damages.c.slot).where(damages.c.slot.in_(claim.slots))
    tail.dealt = {(row.segment_id, row.slot) for row in await connection.execute(known)}
    query = select(snapshots.c.slot, snapshots.c.segment_id).where(snapshots.c.slot.in_(claim.slots))
    left = defaultdict[int, list[int]](list)  # by slot, the newest last
    for row in await connection.execute(query.order_by(snapshots.c.slot, snapshots.c.segment_id)):
        left[row.slot].append(row.segment_id)
    todo = [(slot, segment_ids.pop()) for slot, segment_ids in left.items() if running]
    while todo:
        some, todo = todo[:SNAPSHOTS_A_READ], todo[SNAPSHOTS_A_READ:]
        names = tuple_(snapshots.c.slot, snapshots.c.segment_id)
        rows = (await connection.execute(select(snapshots).where(names.in_(some)))).all()
        reader.bytes_read += sum(len(row.body) for row in rows)
        for row, stored in zip(rows, await asyncio.gather(*(asyncio.to_thread(_decode, row) for row in rows)), strict=True):
            if isinstance(stored, StoredSnapshot):
                tail.snapshots.append(stored)
                tail.after[row.slot] = max(tail.after[row.slot], row.segment_id)
                continue
            log.warning("the snapshot of slot %d at segment %d can't be read: %s", row.slot, row.segment_id, stored)
            tail.damaged.append((row.slot, row.segment_id))
            todo += [(row.slot, left[row.slot].pop())] if left[row.slot] else []
    return tail


def _decode(row: Any) -> StoredSnapshot | Damaged:
    try:
        return snapshot_codec.decode(row.body, row.checksum, row.segment_id)
    except Damaged as error:
        return error


def _first_segments(tail: Tail, found: Sequence[Holding]) -> dict[int, int]:
    """Of every tree that has steps that count, by tree id."""
    first = {tree: segment for stored in tail.snapshots for tree, segment in stored.first_segment.items()}
    if not found:
        return first
    trees, at = np.unique(np.concatenate([each.trees for each in found]), return_index=True)
    segment = np.repeat([each.segment_id for each in found], [len(each.trees) for each in found])[at]
    return dict(zip(trees.tolist(), segment.tolist(), strict=True)) | first


async def open_trees(connection: AsyncConnection, candidates: Trees, running: Sequence[Any]) -> OpenTrees:
    """Those of some trees that have no result and are of a job that runs.

    Args:
        connection: with one consistent view.
        candidates: `[C]` ids.
        running: rows of `jobs`.
    """
    sizes = [(job.number, job.job_id, job.problems_total) for job in running]
    named = await asyncio.to_thread(_named, np.unique(candidates), sizes)
    keep = np.ones(len(named.tree_id), np.bool_)
    for number in np.unique(named.job).tolist():
        mine = np.flatnonzero(named.job == number)
        for start in range(0, len(mine), INDEXES_A_READ):
            some = mine[start : start + INDEXES_A_READ]
            query = select(results.c.index).where(results.c.job == number, results.c.index.in_(named.index[some].tolist()))
            done = np.array((await connection.scalars(query)).all(), np.int64)
            keep[some[np.isin(named.index[some], done)]] = False
    return OpenTrees(named.tree_id[keep], named.job[keep], named.index[keep])


def _named(candidates: Trees, sizes: Sequence[tuple[int, str, int]]) -> OpenTrees:
    """Which problems of which jobs (number, job id, problems) the candidates, sorted, are; others are left out."""
    job, index = np.zeros(len(candidates), np.int64), np.zeros(len(candidates), np.int64)  # no job has number 0
    for number, job_id, total in sizes if len(candidates) else []:
        for start in range(0, total, TREES_AT_ONCE):
            problems = np.arange(start, min(start + TREES_AT_ONCE, total))
            names = tree_ids(job_id, problems)
            at = np.minimum(np.searchsorted(candidates, names), len(candidates) - 1)
            here = candidates[at] == names
            job[at[here]], index[at[here]] = number, problems[here]
    known = job > 0
    return OpenTrees(candidates[known], job[known], index[known])


def _of_open(found: Sequence[Holding], opened: OpenTrees) -> list[Holding]:
    cut = [replace(each, trees=those_in(each.trees, opened.tree_id)) for each in found]
    return [each for each in cut if len(each.trees)]


def _lost(reader: Reader, tail: Tail, holdings: Sequence[Holding], opened: OpenTrees) -> dict[int, int]:
    """Open trees (by their place among them) of which a damaged segment holds something, or may hold something; the first such.

    What an earlier recovery has met has cost its trees already; trees that were begun since are not in it.
    """
    found = dict[int, int]()
    slot = slot_of(opened.tree_id)
    of = {each.segment_id: np.searchsorted(opened.tree_id, each.trees) for each in holdings}
    for segment in sorted(reader.damages):
        if segment in reader.unknown:
            dealt = [known for at, known in tail.dealt if at == segment]
            places = np.flatnonzero((tail.after[slot] < segment) & ~np.isin(slot, dealt))
            places = np.searchsorted(opened.tree_id, tail.void.less(segment, opened.tree_id[places]))
        else:
            places = of[segment]
        for place in places.tolist():
            found.setdefault(place, segment)
    return found


async def _write_damage(
    database: Database, clock: Clock, claim: Claim, reader: Reader, tail: Tail, opened: OpenTrees, lost: Mapping[int, int]
) -> None:
    """Write down what is lost, so that it is lost once, and tell the jobs; forget snapshots that can't be read."""
    slot = slot_of(opened.tree_id)
    met = {(segment, int(slot[place])) for place, segment in lost.items()}
    met |= {(segment, mine) for segment in reader.unknown for mine in claim.slots if tail.after[mine] < segment}
    async with database.write() as connection:
        await check(connection, claim, claim.slots, Hold.ALONE)
        now = await clock(connection)
        newest = await connection.scalar(select(func.max(segments.c.segment_id)))
        if rows := [
            {"segment_id": segment, "slot": mine, "reason": reader.damages[segment], "found_ms": now}
            for segment, mine in sorted(met - tail.dealt)
        ]:
            await connection.execute(insert_new(connection, damages), rows)
        if lost:
            spans = [
                {
                    "job": int(opened.job[place]),
                    "index": int(opened.index[place]),
                    "first": segment,
                    "last": newest,
                    "reason": _says(segment, reader),
                }
                for place, segment in lost.items()
            ]
            await connection.execute(insert_new(connection, voids), spans)
        if tail.damaged:
            names = tuple_(snapshots.c.slot, snapshots.c.segment_id)
            await connection.execute(snapshots.delete().where(names.in_(tail.damaged)))
        trees = Counter((int(opened.job[place]), segment) for place, segment in lost.items())
        for (number, segment), count in sorted(trees.items()):
            text = f"{_says(segment, reader)}: {count} {'tree goes' if count == 1 else 'trees go'} on from before it"
            await _tell(connection, clock, jobs.c.number == number, text, count)
        for segment in sorted({at for at, _ in met - tail.dealt} & reader.unknown):
            text = f"{_says(segment, reader)}, and so is the index of its trees: any that had steps in it alone begin anew"
            await _tell(connection, clock, true(), text, 0)


async def _tell(connection: AsyncConnection, clock: Clock, which: ColumnElement[bool], text: str, restarts: int) -> None:
    log.warning("%s", text)
    notice = job_pb2.Notice(kind=job_pb2.NOTICE_KIND_RESTART, text=text)
    await tell(connection, clock, which, notice, restarts=jobs.c.restarts + restarts)


def _says(segment: int, reader: Reader) -> str:
    return f"segment {segment} is damaged ({reader.damages[segment]})"


def _put_together(
    tail: Tail, pieces: Sequence[Piece], opened: OpenTrees, lost: Mapping[int, int]
) -> tuple[NodeRows, dict[str, list[Part]]]:
    """The journal, and the parts of the snapshots by job, with scores that came later; of open trees alone, less what is lost."""
    known = [(codec.of_trees(stored.steps, codec.NO_SCORES, opened.tree_id)) for stored in tail.snapshots]
    ends = {int(opened.tree_id[place]): segment for place, segment in lost.items()}
    for piece in pieces:
        gone = [tree for tree, segment in ends.items() if segment <= piece.segment_id]
        known.append(codec.without_trees(piece.nodes, piece.scores, np.array(gone, np.uint64)))
    late = pa.concat_tables([scores for _, scores in known]) if known else codec.NO_SCORES
    by_slot = np.argsort(slot_of(codec.column(late, "tree_id")), kind="stable")  # the last score of a step stays the last
    scored = [codec.column(late, name)[by_slot] for name in ("tree_id", "node_id", "score")]
    starts = np.searchsorted(slot_of(scored[0]), np.arange(SLOTS + 1))
    parts = defaultdict[str, list[Part]](list)
    for stored in tail.snapshots:
        for job_id, part in stored.parts.items():
            here = np.isin(part.trees["tree_id"], opened.tree_id)
            if here.any():
                slot = int(slot_of(part.trees["tree_id"][:1])[0])
                mine = (column[starts[slot] : starts[slot + 1]] for column in scored)
                parts[job_id].append(with_scores(some_trees(part, here), *mine))
    return codec.decode(known), dict(parts)
