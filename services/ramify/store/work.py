"""Work as a shard knows it: slots to claim, problems that wait, commits, and what was committed before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, func, insert, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import Commit, JobDelta, NodeRows, TreeResult
from ramify.scheduler.forest.ids import tree_ids
from ramify.store import segments as codec
from ramify.store.clock import now_ms
from ramify.store.database import Database, to_its_end
from ramify.store.errors import Fenced
from ramify.store.rows import change, change_and_record
from ramify.store.schema import jobs, problems, results, segments, slots
from ramify.store.trees import read_trees
from ramify.v1 import job_pb2


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

    @to_its_end
    async def claim(self, owner: str, wanted: Sequence[int]) -> Claim:
        """Take slots over from whoever had them; the former owner's commits fail from now on.

        Args:
            owner: name of the writer, up to 64 characters.
            wanted: slots, each below `SLOTS`; no others are given up.
        """
        async with self.database.write() as connection:
            epoch = 1 + (await connection.scalar(select(func.coalesce(func.max(slots.c.epoch), 0))) or 0)
            await connection.execute(slots.delete().where(slots.c.slot.in_(wanted)))
            if wanted:
                await connection.execute(insert(slots), [{"slot": slot, "epoch": epoch, "owner": owner} for slot in wanted])
        return Claim(owner, epoch, tuple(wanted))

    @to_its_end
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

    @to_its_end
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

    @to_its_end
    async def journal(self, job: OpenJob, indexes: NDArray[np.int64]) -> NodeRows:
        """The committed steps of some problems' trees, in the order of their commits."""
        async with self.database.read() as connection:
            return await read_trees(connection, job.segment_floor + 1, None, tree_ids(job.job_id, indexes))

    @to_its_end
    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        """Write a commit; durable on return. Writing it again changes nothing.

        Args:
            claim: the writer's right.
            commit: what to write.
            first_segment: segment of each open tree's first step, or one before it, by tree id; once the commit is durable,
                trees that are new in it are added.

        Returns:
            The segment's id.

        Raises:
            Fenced: the claim is void; nothing was written.
        """
        nodes, scores = codec.encode_nodes(commit.nodes), codec.encode_scores(commit.scores)
        async with self.database.write() as connection:
            await self._check(connection, claim)
            name = {"owner": claim.owner, "epoch": claim.epoch, "sequence": commit.sequence}
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

    async def _check(self, connection: AsyncConnection, claim: Claim) -> None:
        mine = and_(slots.c.slot.in_(claim.slots), slots.c.owner == claim.owner, slots.c.epoch == claim.epoch)
        held = await connection.scalar(select(func.count()).select_from(slots).where(mine))
        if held != len(claim.slots):
            raise Fenced(
                f"{claim.owner} (epoch {claim.epoch}) holds {held} of its {len(claim.slots)} slots: another has taken over"
            )


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
