"""Commits: one transaction writes a segment of steps, snapshots, results, counters and events."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import Commit, JobDelta, TreeResult
from ramify.scheduler.slots import slot_of
from ramify.store import segments as codec
from ramify.store.clock import now_ms
from ramify.store.database import Database
from ramify.store.errors import Fenced
from ramify.store.leases import Claim
from ramify.store.rows import change, change_and_record
from ramify.store.schema import jobs, results, segments, slots
from ramify.v1 import job_pb2


async def write(database: Database, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
    """See `Work.commit`."""
    nodes, scores = codec.encode_nodes(commit.nodes), codec.encode_scores(commit.scores)
    async with database.write() as connection:
        touched = touched_slots(commit) or claim.slots
        await check(connection, claim, touched)
        name = {"owner": claim.owner, "epoch": max(claim.epochs.values(), default=0), "sequence": commit.sequence}
        values = {**name, "nodes": nodes, "scores": scores, "created_ms": now_ms()}
        new = _insert(connection, segments).values(values).on_conflict_do_nothing().returning(segments.c.segment_id)
        if (segment := await connection.scalar(new)) is not None:
            for delta in commit.jobs:
                await _add(connection, delta, segment, first_segment)
        else:  # the first try was durable, its answer was lost
            segment = (await connection.execute(select(segments.c.segment_id).filter_by(**name))).scalar_one()
    for tree_id in np.unique(commit.nodes.tree_id).tolist():
        first_segment.setdefault(tree_id, segment)
    return int(segment)


def touched_slots(commit: Commit) -> tuple[int, ...]:
    """The slots of which a commit writes something, or which it releases."""
    of_results = [result.tree_id for delta in commit.jobs for result in delta.results]
    trees: NDArray[np.uint64] = np.concatenate((commit.nodes.tree_id, commit.scores.tree_id, np.array(of_results, np.uint64)))
    found = {*np.unique(slot_of(trees)).tolist(), *(snapshot.slot for snapshot in commit.snapshots), *commit.released}
    return tuple(sorted(found))


async def check(connection: AsyncConnection, claim: Claim, wanted: Sequence[int]) -> None:
    """Raise `Fenced` unless the claim holds all of some slots."""
    mine = select(slots.c.slot, slots.c.epoch).where(slots.c.slot.in_(wanted), slots.c.owner == claim.owner)
    rows = await connection.execute(mine.order_by(slots.c.slot).with_for_update(read=True, key_share=True))
    held = {row.slot: row.epoch for row in rows}
    if lost := [slot for slot in wanted if slot not in held or held[slot] != claim.epochs.get(slot)]:
        raise Fenced(claim.owner, lost)


async def _add(connection: AsyncConnection, delta: JobDelta, segment: int, first_segment: Mapping[int, int]) -> None:
    """Write one job's results, counters and event."""
    # Commits of one job take turns from here on: the counters, the cursor and the job's end follow from the row as it stands.
    row = select(jobs).where(jobs.c.job_id == delta.job_id).with_for_update(key_share=True)
    job = (await connection.execute(row)).one_or_none()
    if job is None:
        return
    runs = job.state == job_pb2.JOB_STATE_RUNNING
    new = await _add_results(connection, job.number, delta.results, segment, first_segment) if runs and delta.results else []
    changes = {
        "steps": job.steps + delta.steps,
        "tokens": job.tokens + delta.tokens,
        "wasted_tokens": job.wasted_tokens + sum(result.wasted_tokens for result in new),
        "problems_done": job.problems_done + len(new),
        "problems_solved": job.problems_solved + sum(result.verdict == job_pb2.VERDICT_CORRECT for result in new),
        "problems_failed": job.problems_failed + sum(result.outcome == job_pb2.OUTCOME_FAILED for result in new),
    }
    if not runs:  # what was in flight when the job ended is counted, but its history has ended
        await change(connection, job.number, **changes)
        return
    if changes["problems_done"] == job.problems_total:
        changes |= {"state": job_pb2.JOB_STATE_DONE, "finished_ms": now_ms()}
    await change_and_record(connection, job.number, **changes)


async def _add_results(
    connection: AsyncConnection, job: int, found: Sequence[TreeResult], segment: int, first_segment: Mapping[int, int]
) -> list[TreeResult]:
    """Write results; those that were not there before."""
    rows = [
        {
            "job": job,
            "index": result.problem,
            "body": _result(result).SerializeToString(),
            "segment_first": first_segment.get(result.tree_id, segment),
            "segment_last": segment,
        }
        for result in found
    ]
    add = _insert(connection, results).on_conflict_do_nothing().returning(results.c.index)
    fresh = set((await connection.scalars(add, rows)).all())
    return [result for result in found if result.problem in fresh]


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
        answer_node_id=result.answer_node_id,
    )
    if not np.isnan(result.score):
        found.score = result.score
    return found


def _insert(connection: AsyncConnection, table: Any) -> Any:
    """INSERT that knows ON CONFLICT, which is not standard SQL."""
    return (insert_sqlite if connection.dialect.name == "sqlite" else insert_postgresql)(table)
