"""Checks of the bytes in which steps are kept: segments, snapshots, archives."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import func, select

from ramify.cli.doctor.findings import DETAILS_MAX, Finding, Level, listed
from ramify.cli.doctor.hits import hits
from ramify.cli.doctor.subject import Subject
from ramify.cli.output import counted
from ramify.store import segments as codec
from ramify.store import snapshots as snapshot_codec
from ramify.store.errors import Damaged
from ramify.store.schema import archives, damages, jobs, leftovers, results, segments, snapshots

SAMPLE = 256  # rows of a kind that are looked at without `deep`: the newest
SAMPLE_BYTES_MAX = 64 << 20  # of their bodies
RESULTS_SAMPLE = 10_000  # results of the newest jobs, likewise
ROWS_A_READ = 16  # bounds memory: a row may have megabytes

#: What a body is not made up of if it can't be decoded; of what has no checksum anything may come.
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError)


@dataclass(frozen=True, slots=True)
class Fault:
    """A body that is damaged."""

    number: int  # of the segment, snapshot or archive
    reason: str
    slot: int = -1  # of a snapshot
    trees: NDArray[np.uint64] | None = None  # `[T]` of a segment; None: its index is damaged as well


async def segments_are_sound(subject: Subject) -> Finding:
    """Checksum, content and index of segments."""
    query = select(
        segments.c.segment_id,
        segments.c.nodes,
        segments.c.scores,
        segments.c.checksum,
        segments.c.trees,
        segments.c.trees_checksum,
    )
    found = await _faults(subject, query, segments.c.segment_id, _segment_fault)
    if not found.faults:
        return Finding("segments", Level.OK, found.sound("segment"))
    async with subject.database.read() as connection:
        known = set((await connection.scalars(select(damages.c.segment_id).distinct())).all())
    lines, lost = list[str](), False
    for fault in found.faults:
        met = ", which a shard has met: trees that lost steps were restarted" if fault.number in known else ""
        lines.append(f"segment {fault.number}: {fault.reason}{met}")
        hit = await hits(subject, fault.trees)
        lines += [f"  {line}" for line in hit or ["nothing in it is needed any more"]]
        lost |= bool(hit) and fault.number not in known
    return Finding(
        "segments",
        Level.BAD if lost else Level.WARN,
        f"{counted(len(found.faults), 'segment')} of {found.looked_at:,} damaged",
        listed(lines),
        why="steps in them are lost: open trees go on from before them once a shard takes them over, and are marked; "
        "trees of finished problems are shown without them, their results stand",
        remedy="the jobs go on by themselves; look for the cause (disk, memory), or restore a backup if every step counts",
    )


def _segment_fault(row: Any) -> Fault | None:
    trees = None
    try:
        trees = codec.read_index(row.trees, row.trees_checksum)
    except Damaged as error:
        index_fault = f"its index of trees is damaged: {error}"
    else:
        index_fault = ""
    try:
        steps, later = codec.open_segment(row.nodes, row.scores, row.checksum)
        codec.decode([(steps, later)])
    except Damaged as error:
        return Fault(row.segment_id, str(error), trees=trees)
    except _UNREADABLE as error:
        return Fault(row.segment_id, f"it can't be decoded: {error}", trees=trees)
    found = codec.index_of(steps, later)
    if trees is not None and not np.array_equal(trees, found):
        index_fault = "its index of trees does not fit its steps"
    return Fault(row.segment_id, index_fault, trees=found) if index_fault else None


async def snapshots_are_sound(subject: Subject) -> Finding:
    """Checksum and content of snapshots."""
    found = await _faults(subject, select(snapshots), snapshots.c.segment_id, _snapshot_fault)
    if not found.faults:
        return Finding("snapshots", Level.OK, found.sound("snapshot"))
    return Finding(
        "snapshots",
        Level.WARN,
        f"{counted(len(found.faults), 'snapshot')} of {found.looked_at:,} damaged",
        listed([f"slot {fault.slot}, snapshot at segment {fault.number}: {fault.reason}" for fault in found.faults]),
        why="nothing is lost: a takeover reads the one before it, or all segments, and takes longer",
        remedy="nothing need be done, the next snapshot replaces it; look for the cause (disk, memory)",
    )


def _snapshot_fault(row: Any) -> Fault | None:
    try:
        snapshot_codec.decode(row.body, row.checksum, row.segment_id)
    except Damaged as error:
        return Fault(row.segment_id, str(error), slot=row.slot)
    except _UNREADABLE as error:
        return Fault(row.segment_id, f"it can't be decoded: {error}", slot=row.slot)
    return None


async def archives_are_sound(subject: Subject) -> Finding:
    """Checksum and content of archives, and whether those that results refer to are there."""
    query = select(archives.c.archive_id, archives.c.body, archives.c.checksum)
    found = await _faults(subject, query, archives.c.archive_id, _archive_fault)
    lines = list[str]()
    for fault in found.faults:
        lines.append(f"archive {fault.number}: {fault.reason}")
        lines += [f"  {line}" for line in await _held(subject, fault.number)]
    missing, examples = await _missing(subject)
    lines += examples
    if not lines:
        return Finding("archives", Level.OK, found.sound("archive"))
    damaged = [f"{counted(len(found.faults), 'archive')} of {found.looked_at:,} damaged"] if found.faults else []
    gone = [f"the steps of {counted(missing, 'finished tree')} are not where they should be"] if missing else []
    return Finding(
        "archives",
        Level.BAD,
        ", ".join([*damaged, *gone]),
        listed(lines, len(lines) - len(examples) + missing),
        why="the trees of these problems can't be shown or exported any more; their results and answers stand",
        remedy="restore a backup if the trees are needed; look for the cause (disk, memory)",
    )


def _archive_fault(row: Any) -> Fault | None:
    try:
        codec.verify(row.checksum, row.body)
        codec.decode([(codec.read(row.body, codec.PLAIN), codec.NO_SCORES)])
    except Damaged as error:
        return Fault(row.archive_id, str(error))
    except _UNREADABLE as error:
        return Fault(row.archive_id, f"it can't be decoded: {error}")
    return None


async def _held(subject: Subject, archive: int) -> list[str]:
    """Whose steps an archive holds."""
    async with subject.database.read() as connection:
        query = select(jobs.c.job_id, func.count(), func.min(results.c.index), func.max(results.c.index))
        joined = query.select_from(results.join(jobs)).where(results.c.archive == archive).group_by(jobs.c.job_id)
        rows: Any = (await connection.execute(joined)).all()
        left = select(jobs.c.job_id, func.count()).select_from(leftovers.join(jobs)).where(leftovers.c.archive == archive)
        slots: Any = (await connection.execute(left.group_by(jobs.c.job_id))).all()
    lines = [
        f"job {job_id}: the trees of {counted(count, 'problem')}, from {first} to {last}"
        if count > 1
        else f"job {job_id}: problem {first}"
        for job_id, count, first, last in rows
    ]
    return lines + [f"job {job_id}, cancelled: trees without a result" for job_id, _ in slots]


async def _missing(subject: Subject) -> tuple[int, list[str]]:
    """Results whose steps are neither in the archive nor in the segment that they name: how many, and the first of each job."""
    total, lines = 0, list[str]()
    async with subject.database.read() as connection:
        rows = (await connection.execute(select(jobs.c.number, jobs.c.job_id).order_by(jobs.c.number.desc()))).all()
    left = RESULTS_SAMPLE
    for number, job_id in rows:
        some = select(results).where(results.c.job == number)
        # Each job on its own: a view that is held for long keeps the database from cleaning up.
        async with subject.database.read() as connection:
            if not subject.deep:
                left -= int(await connection.scalar(select(func.count()).select_from(some.limit(left).subquery())) or 0)
                some = some.limit(RESULTS_SAMPLE)
            gone = (await connection.execute(_not_there(some))).all()
        total += len(gone)
        lines += [
            f"job {job_id}, problem {row.problem}: "
            + (f"archive {row.archive}" if row.archive is not None else f"segment {row.segment_last}")
            + " is not there"
            for row in gone[:DETAILS_MAX]
        ]
        if left <= 0:
            break
    return total, lines[:DETAILS_MAX]


def _not_there(some: Any) -> Any:
    """Those of some results, as a query, whose archive is not there, or, where they have none, whose last segment."""
    of = some.subquery()
    return (
        select(of.c.index.label("problem"), of.c.archive, of.c.segment_last)
        .select_from(
            of.outerjoin(archives, archives.c.archive_id == of.c.archive).outerjoin(
                segments, segments.c.segment_id == of.c.segment_last
            )
        )
        .where(archives.c.archive_id.is_(None), of.c.archive.is_not(None) | segments.c.segment_id.is_(None))
        .order_by(of.c.index)
    )


@dataclass(frozen=True, slots=True)
class _Found:
    looked_at: int
    total: int
    faults: Sequence[Fault]

    def sound(self, noun: str) -> str:
        """That all is well."""
        if not self.total:
            return f"no {noun}s"
        newest = "" if self.looked_at == self.total else f"the newest {self.looked_at:,} of "
        return f"{newest}{counted(self.total, noun)}, sound"


async def _faults(subject: Subject, query: Any, number: Any, fault: Callable[[Any], Fault | None]) -> _Found:
    """Look at all rows with `deep`, else at the newest."""
    async with subject.database.read() as connection:
        total = int(await connection.scalar(select(func.count()).select_from(number.table)) or 0)
        numbers = select(number).distinct().order_by(number.desc())
        newest = (await connection.scalars(numbers if subject.deep else numbers.limit(SAMPLE))).all()
    looked_at = seen_bytes = 0
    faults = list[Fault]()
    for start in range(0, len(newest), ROWS_A_READ):
        # Each page on its own: a view that is held for long keeps the database from cleaning up.
        async with subject.database.read() as connection:
            page = newest[start : start + ROWS_A_READ]
            rows = (await connection.execute(query.where(number.in_(page)).order_by(number.desc()))).all()
        looked_at += len(rows)  # some may have been freed meanwhile
        seen_bytes += sum(len(value) for row in rows for value in row if isinstance(value, bytes))
        faults += await asyncio.to_thread(_all_of, rows, fault)
        if seen_bytes > SAMPLE_BYTES_MAX and not subject.deep:
            break
    return _Found(looked_at, max(total, looked_at), faults)


def _all_of(rows: Sequence[Any], fault: Callable[[Any], Fault | None]) -> list[Fault]:
    return [found for row in rows if (found := fault(row)) is not None]
