"""Commits: one transaction writes a segment of steps, snapshots, results, counters and events."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import Commit, JobDelta, TreeResult
from ramify.scheduler.slots import slot_of
from ramify.store import segments as codec
from ramify.store import snapshots as snapshot_codec
from ramify.store.clock import Clock, now_ms
from ramify.store.database import Database, insert_new
from ramify.store.errors import Fenced
from ramify.store.leases import Claim, Hold, check, shard_of
from ramify.store.rows import JobRow, event_values, locked
from ramify.store.schema import events, jobs, results, segments, slots, snapshots
from ramify.store.tenants import spend
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

SNAPSHOTS_KEPT = 2  # of a slot
CHANGED = (
    "steps",
    "tokens",
    "retries",
    "wasted_tokens",
    "problems_done",
    "problems_solved",
    "problems_failed",
    "cursor",
    "state",
    "finished_ms",
)
_CHANGE = (
    update(jobs).where(jobs.c.number == bindparam("job_number")).values({name: bindparam(f"new_{name}") for name in CHANGED})
)
LOST = "lost "  # how the message of a problem begins whose steps were lost again and again


@dataclass(frozen=True, slots=True)
class Encoded:
    """A commit as bytes."""

    segment: codec.Segment
    snapshots: list[tuple[int, bytes]]  # slot and body
    results: dict[str, list[bytes]]  # by job id, in the order of the delta's


async def write(database: Database, clock: Clock, claim: Claim, commit: Commit, first_segment: Mapping[int, int]) -> int:
    """See `Work.commit`; `first_segment` has no tree whose first steps are in this commit."""
    # In a thread, and before the transaction, which is to be short.
    encoded = await asyncio.to_thread(encode, commit, first_segment)
    name = {"owner": claim.owner, "sequence": commit.sequence}
    async with database.write() as connection:
        durable = select(segments.c.segment_id).filter_by(**name)
        try:
            # The lock comes before the segment's id, so that the ids of a slot's commits rise in the order of the commits.
            hold = Hold.ALONE if commit.released else Hold.SHARED
            await check(connection, claim, touched_slots(commit) or claim.slots, hold)
        except Fenced:
            if (segment := await connection.scalar(durable)) is None:
                raise
            return int(segment)  # by a first try, whose answer was lost; it may have released the slots itself
        made = encoded.segment
        values = {
            **name,
            "nodes": made.nodes,
            "scores": made.scores,
            "checksum": made.checksum,
            "trees": made.trees,
            "trees_checksum": made.trees_checksum,
            "created_ms": now_ms(),
        }
        new = insert_new(connection, segments).values(values).returning(segments.c.segment_id)
        if (segment := await connection.scalar(new)) is None:  # there was a first try
            return int((await connection.execute(durable)).scalar_one())
        for slot, body in encoded.snapshots:
            await _add_snapshot(connection, slot, segment, body)
        await _add_deltas(connection, clock, shard_of(claim.owner), commit, encoded, segment, first_segment)
        if commit.released:
            free = {"owner": "", "expires_ms": 0, "former": claim.owner}
            await connection.execute(update(slots).where(slots.c.slot.in_(commit.released)).values(free))
            await notify(connection, Channel.SLOTS)
    return int(segment)


def encode(commit: Commit, first_segment: Mapping[int, int]) -> Encoded:
    """All that a commit writes as bytes; `first_segment` is for its snapshots."""
    return Encoded(
        codec.seal(commit.nodes, commit.scores),
        [(snapshot.slot, snapshot_codec.encode(snapshot, first_segment)) for snapshot in commit.snapshots],
        {delta.job_id: [_result(result).SerializeToString() for result in delta.results] for delta in commit.jobs},
    )


def touched_slots(commit: Commit) -> tuple[int, ...]:
    """The slots of which a commit writes something, or which it releases."""
    of_results = [result.tree_id for delta in commit.jobs for result in delta.results]
    trees: NDArray[np.uint64] = np.concatenate((commit.nodes.tree_id, commit.scores.tree_id, np.array(of_results, np.uint64)))
    found = {*np.unique(slot_of(trees)).tolist(), *(snapshot.slot for snapshot in commit.snapshots), *commit.released}
    return tuple(sorted(found))


async def _add_snapshot(connection: AsyncConnection, slot: int, segment: int, body: bytes) -> None:
    values = {"slot": slot, "segment_id": segment, "body": body, "checksum": codec.checksum(body), "created_ms": now_ms()}
    await connection.execute(insert(snapshots).values(values))
    newest = select(snapshots.c.segment_id).where(snapshots.c.slot == slot).order_by(snapshots.c.segment_id.desc())
    oldest_kept = newest.limit(1).offset(SNAPSHOTS_KEPT - 1).scalar_subquery()
    await connection.execute(snapshots.delete().where(snapshots.c.slot == slot, snapshots.c.segment_id < oldest_kept))


async def _add_deltas(
    connection: AsyncConnection,
    clock: Clock,
    shard: str,
    commit: Commit,
    encoded: Encoded,
    segment: int,
    first_segment: Mapping[int, int],
) -> None:
    """Write results, counters and events of every job that is still there.

    Commits of one job take turns from here on: the counters, the cursor and the job's end follow from the row as it stands, and
    its history from a clock that is read now.
    """
    deltas = {delta.job_id: delta for delta in commit.jobs}
    if not deltas:
        return
    found = (await connection.execute(locked(select(jobs).where(jobs.c.job_id.in_(deltas)).order_by(jobs.c.number)))).all()
    at_ms = await clock(connection)
    await spend(connection, shard, at_ms, _spent(found, deltas))
    changes, told = list[dict[str, Any]](), list[dict[str, Any]]()
    for job in found:
        delta = deltas[job.job_id]
        new = list[TreeResult]()
        if job.state == job_pb2.JOB_STATE_RUNNING and delta.results:
            new = await _add_results(connection, job.number, delta, encoded.results[delta.job_id], segment, first_segment)
        changed = _changed(job, delta, new, at_ms)
        changes.append({"job_number": job.number, **{f"new_{name}": changed[name] for name in CHANGED}})
        if job.state == job_pb2.JOB_STATE_RUNNING:  # what was in flight when it ended is counted, but its history has ended
            told.append(event_values(SimpleNamespace(**changed), at_ms, _set_aside(new)))
            await notify(connection, Channel.EVENTS, job.job_id)
    # Many jobs with two statements: each is a trip to the database's thread or server.
    if changes:
        await connection.execute(_CHANGE, changes)
    if told:
        await connection.execute(insert(events), told)


def _spent(found: Sequence[JobRow], deltas: Mapping[str, JobDelta]) -> dict[str, tuple[int, int]]:
    """Steps and tokens by tenant."""
    spent = dict[str, tuple[int, int]]()
    for job in found:
        delta = deltas[job.job_id]
        steps, tokens = spent.get(job.tenant, (0, 0))
        spent[job.tenant] = steps + delta.steps, tokens + delta.tokens
    return {tenant: sums for tenant, sums in spent.items() if any(sums)}


def _changed(job: JobRow, delta: JobDelta, new: Sequence[TreeResult], at_ms: int) -> dict[str, Any]:
    """All columns of a job once a commit is added; `new` are the results that were not there before."""
    found = {
        **job._mapping,
        "steps": job.steps + delta.steps,
        "tokens": job.tokens + delta.tokens,
        "retries": job.retries + delta.retries,
        "wasted_tokens": job.wasted_tokens + sum(result.wasted_tokens for result in new),
        "problems_done": job.problems_done + len(new),
        "problems_solved": job.problems_solved + sum(result.verdict == job_pb2.VERDICT_CORRECT for result in new),
        "problems_failed": job.problems_failed + sum(result.outcome == job_pb2.OUTCOME_FAILED for result in new),
    }
    if job.state == job_pb2.JOB_STATE_RUNNING:
        found["cursor"] += 1
        if found["problems_done"] == job.problems_total:
            found |= {"state": job_pb2.JOB_STATE_DONE, "finished_ms": at_ms}
    return found


async def _add_results(
    connection: AsyncConnection,
    job: int,
    delta: JobDelta,
    bodies: Sequence[bytes],
    segment: int,
    first_segment: Mapping[int, int],
) -> list[TreeResult]:
    """Write results; those that were not there before."""
    rows = [
        {
            "job": job,
            "index": result.problem,
            "body": body,
            "segment_first": first_segment.get(result.tree_id, segment),
            "segment_last": segment,
        }
        for result, body in zip(delta.results, bodies, strict=True)
    ]
    add = insert_new(connection, results).returning(results.c.index)
    fresh = set((await connection.scalars(add, rows)).all())
    return [result for result in delta.results if result.problem in fresh]


def _set_aside(new: Sequence[TreeResult]) -> job_pb2.Notice | None:
    lost = [result for result in new if result.outcome == job_pb2.OUTCOME_FAILED and result.message.startswith(LOST)]
    if not lost:
        return None
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    text = f"problem {lost[0].problem} was set aside{more}: {lost[0].message}"
    return job_pb2.Notice(kind=job_pb2.NOTICE_KIND_SET_ASIDE, text=text)


def _result(result: TreeResult) -> job_pb2.Result:
    found = job_pb2.Result(
        problem_index=result.problem,
        outcome=job_pb2.Outcome.ValueType(result.outcome),
        answer=result.steps[-1] if result.steps else "",
        steps=result.steps,
        verdict=job_pb2.Verdict.ValueType(result.verdict),
        step_count=result.step_count,
        tokens=result.tokens,
        wasted_tokens=result.wasted_tokens,
        message=result.message,
        note=result.note,
        generators=result.generators,
        answer_node_id=result.answer_node_id,
    )
    if not np.isnan(result.score):
        found.score = result.score
    return found
