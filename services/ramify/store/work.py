"""Work as a shard knows it: slots to claim, problems that wait, commits, and what was committed before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import Commit, JobDelta, NodeRows, TreeResult
from ramify.scheduler.forest.ids import tree_ids
from ramify.store import segments as codec
from ramify.store.clock import now_ms
from ramify.store.database import Database
from ramify.store.errors import Fenced
from ramify.store.jobs import add_event, read_segments
from ramify.store.schema import jobs, problems, results, segments, slots
from ramify.v1 import job_pb2

# What the running process knows of its right to write: checked inside every commit.


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on some slots; good until another claim takes one of them."""

    owner: str
    epoch: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that runs."""

    number: int
    job_id: str
    spec: job_pb2.JobSpec
    problems_total: int
    started_ms: int
    segment_floor: int


@dataclass(frozen=True, slots=True)
class WaitingProblem:
    """A problem without a result."""

    index: int
    prompt: str
    reference: str


class Work:
    """See the module."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def claim(self, owner: str, wanted: Sequence[int]) -> Claim:
        """Take slots over from whoever had them; the former owner's commits fail from now on."""
        async with self.database.write() as connection:
            epoch = 1 + (await connection.scalar(select(func.coalesce(func.max(slots.c.epoch), 0))) or 0)
            await connection.execute(slots.delete().where(slots.c.slot.in_(wanted)))
            await connection.execute(insert(slots), [{"slot": slot, "epoch": epoch, "owner": owner} for slot in wanted])
        return Claim(owner, epoch, tuple(wanted))

    async def open_jobs(self) -> list[OpenJob]:
        """Jobs that run, the oldest first."""
        query = select(jobs).where(jobs.c.state == job_pb2.JOB_STATE_RUNNING).order_by(jobs.c.number)
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            OpenJob(
                row.number,
                row.job_id,
                job_pb2.JobSpec.FromString(row.spec),
                row.problems_total,
                row.started_ms,
                row.segment_floor,
            )
            for row in rows
        ]

    async def waiting(self, job: OpenJob, claim: Claim, after: int, limit: int) -> list[WaitingProblem]:
        """Problems of the claimed slots without a result, by index above `after`."""
        done = and_(results.c.job == problems.c.job, results.c.index == problems.c.index)
        query = (
            select(problems.c.index, problems.c.prompt, problems.c.reference)
            .select_from(problems.outerjoin(results, done))
            .where(problems.c.job == job.number, problems.c.index > after, problems.c.slot.in_(claim.slots))
            .where(results.c.job.is_(None))
            .order_by(problems.c.index)
            .limit(limit)
        )
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [WaitingProblem(*row) for row in rows]

    async def journal(self, job: OpenJob, indexes: NDArray[np.int64]) -> NodeRows:
        """The committed steps of some problems' trees, in the order of their commits."""
        async with self.database.read() as connection:
            return await read_segments(connection, job.segment_floor + 1, None, tree_ids(job.job_id, indexes))

    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        """Write a commit; durable on return. Writing it again changes nothing.

        Args:
            claim: the writer's right.
            commit: what to write.
            first_segment: segment of each open tree's first step, by tree id; trees that are new in this commit are added.

        Returns:
            The segment's id.

        Raises:
            Fenced: the claim is void; nothing was written.
        """
        nodes, scores = codec.encode_nodes(commit.nodes), codec.encode_scores(commit.scores)
        async with self.database.write() as connection:
            await self._check(connection, claim)
            body = {"owner": claim.owner, "epoch": claim.epoch, "sequence": commit.sequence}
            values = {**body, "nodes": nodes, "scores": scores, "created_ms": now_ms()}
            new = _insert(connection, segments).values(values).on_conflict_do_nothing().returning(segments.c.segment_id)
            segment = await connection.scalar(new)
            if segment is None:  # the first try was durable, its answer was lost
                return await connection.scalar(select(segments.c.segment_id).filter_by(**body)) or 0
            for tree_id in np.unique(commit.nodes.tree_id).tolist():
                first_segment.setdefault(tree_id, segment)
            for delta in commit.jobs:
                await _add(connection, delta, segment, first_segment)
        return segment

    async def _check(self, connection: AsyncConnection, claim: Claim) -> None:
        mine = and_(slots.c.slot.in_(claim.slots), slots.c.owner == claim.owner, slots.c.epoch == claim.epoch)
        held = await connection.scalar(select(func.count()).select_from(slots).where(mine))
        if held != len(claim.slots):
            raise Fenced(f"{claim.owner} (epoch {claim.epoch}) holds {held} of its {len(claim.slots)} slots: another has taken over")


async def _add(connection: AsyncConnection, delta: JobDelta, segment: int, first_segment: dict[int, int]) -> None:
    """Write one job's results, counters and event."""
    of_job = select(jobs.c.number, jobs.c.state).where(jobs.c.job_id == delta.job_id)
    job = (await connection.execute(of_job)).one_or_none()
    if job is None:
        return
    new: list[TreeResult] = []
    if job.state == job_pb2.JOB_STATE_RUNNING and delta.results:
        rows = [
            {
                "job": job.number,
                "index": result.problem,
                "body": _result(result).SerializeToString(),
                "segment_first": first_segment.get(result.tree_id, segment),
                "segment_last": segment,
            }
            for result in delta.results
        ]
        known = _insert(connection, results).on_conflict_do_nothing().returning(results.c.index)
        fresh = set((await connection.scalars(known, rows)).all())
        new = [result for result in delta.results if result.problem in fresh]
    row = (
        await connection.execute(
            update(jobs)
            .where(jobs.c.number == job.number)
            .values(
                steps=jobs.c.steps + delta.steps,
                tokens=jobs.c.tokens + delta.tokens,
                problems_done=jobs.c.problems_done + len(new),
                problems_solved=jobs.c.problems_solved + sum(r.verdict == job_pb2.VERDICT_CORRECT for r in new),
                problems_failed=jobs.c.problems_failed + sum(r.outcome == job_pb2.OUTCOME_FAILED for r in new),
            )
            .returning(jobs)
        )
    ).one()
    if row.state == job_pb2.JOB_STATE_RUNNING and row.problems_done == row.problems_total:
        done = update(jobs).where(jobs.c.number == job.number)
        row = (await connection.execute(done.values(state=job_pb2.JOB_STATE_DONE, finished_ms=now_ms()).returning(jobs))).one()
    if row.state != job_pb2.JOB_STATE_CANCELLED:  # its history has ended
        await add_event(connection, row)


def _result(result: TreeResult) -> job_pb2.Result:
    found = job_pb2.Result(
        problem_index=result.problem,
        outcome=job_pb2.Outcome.ValueType(result.outcome),
        answer=result.steps[-1] if result.steps else "",
        steps=result.steps,
        verdict=job_pb2.Verdict.ValueType(result.verdict),
        step_count=result.step_count,
        tokens=result.tokens,
        message=result.message,
        answer_node_id=result.answer_node_id,
    )
    if not np.isnan(result.score):
        found.score = result.score
    return found


def _insert(connection: AsyncConnection, table: Any) -> Any:
    """INSERT that knows ON CONFLICT, which is not standard SQL."""
    return (insert_sqlite if connection.dialect.name == "sqlite" else insert_postgresql)(table)
