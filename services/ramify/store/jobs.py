"""Jobs as their submitters see them: states, histories, results, trees; and the models that they can use."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Row, and_, insert, select

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import tree_ids
from ramify.store.clock import now_ms
from ramify.store.database import Database, Lock, take, to_its_end
from ramify.store.errors import ProblemNotFound
from ramify.store.rows import FINAL, change_and_record, job_message, job_row, problem_message
from ramify.store.schema import events, jobs, models, problems, results
from ramify.store.trees import read_trees
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

EVENTS_A_READ = 1000
RESULT_BYTES_A_PAGE = 2 << 20  # a page that has reached this ends: a gRPC client takes 4 MiB, unless told otherwise


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that the system has."""

    role: str  # generator, verifier or checker
    name: str
    revision: str
    delimiter: str  # a generator's own step boundary
    problem_format: str  # rule that its problems must satisfy; empty: any text


@dataclass(frozen=True, slots=True)
class History:
    """A part of a job's history, and where the job stood when it was read."""

    events: list[job_pb2.JobEvent]
    cursor: int  # of the job's last event
    state: int


@dataclass(frozen=True, slots=True)
class TreeRead:
    """All that is committed of one problem's tree."""

    job: job_pb2.Job
    problem: job_pb2.Problem
    result: job_pb2.Result | None
    nodes: NodeRows


class Jobs:
    """See the module."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @to_its_end
    async def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises `JobNotFound`."""
        async with self.database.read() as connection:
            return job_message(await job_row(connection, job_id))

    @to_its_end
    async def page(self, size: int, before: int | None, state: int) -> tuple[list[job_pb2.Job], int | None]:
        """Jobs, the newest first, and where the next page starts.

        Args:
            size: at most this many.
            before: where an earlier page said that this one starts; None: at the newest.
            state: only jobs in this state; 0: all.
        """
        query = select(jobs).order_by(jobs.c.number.desc()).limit(size + 1)
        if before is not None:
            query = query.where(jobs.c.number < before)
        if state:
            query = query.where(jobs.c.state == state)
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [job_message(row) for row in rows[:size]], rows[size - 1].number if len(rows) > size else None

    @to_its_end
    async def cancel(self, job_id: str) -> job_pb2.Job:
        """End a job early; one that has ended stays as it is. Raises `JobNotFound`."""
        async with self.database.write() as connection:
            row = await job_row(connection, job_id, lock=True)
            if row.state not in FINAL:
                row = await change_and_record(connection, row.number, state=job_pb2.JOB_STATE_CANCELLED, finished_ms=now_ms())
                await notify(connection, Channel.JOBS, job_id)
            return job_message(row)

    @to_its_end
    async def history(self, job_id: str, cursor: int, limit: int = EVENTS_A_READ) -> History:
        """Up to `limit` events after `cursor`, in order. Raises `JobNotFound`."""
        async with self.database.read() as connection:
            job = await job_row(connection, job_id)
            if cursor >= job.cursor:
                return History([], job.cursor, job.state)
            query = select(events.c.body).where(events.c.job == job.number, events.c.cursor > cursor)
            rows = (await connection.execute(query.order_by(events.c.cursor).limit(limit))).all()
        return History([job_pb2.JobEvent.FromString(row.body) for row in rows], job.cursor, job.state)

    @to_its_end
    async def cursors(self, job_ids: Collection[str]) -> dict[str, int]:
        """The cursor of the last event of each of some jobs (a thousand at most); those that don't exist are left out."""
        async with self.database.read() as connection:
            rows = (await connection.execute(select(jobs.c.job_id, jobs.c.cursor).where(jobs.c.job_id.in_(job_ids)))).all()
        return {row.job_id: row.cursor for row in rows}

    @to_its_end
    async def results(self, job_id: str, size: int, after: int) -> tuple[list[job_pb2.Result], int | None]:
        """Results by problem index, and the index after which the next page starts. Raises `JobNotFound`.

        Args:
            job_id: the job.
            size: at most this many; fewer if they are long.
            after: only those with a larger index.
        """
        found: list[job_pb2.Result] = []
        bytes_left = RESULT_BYTES_A_PAGE
        async with self.database.read() as connection:
            query = _results_of((await job_row(connection, job_id)).number).where(results.c.index > after)
            async with connection.stream(query.order_by(results.c.index).limit(size + 1)) as rows:
                async for row in rows:
                    if len(found) == size or bytes_left <= 0:
                        return found, found[-1].problem_index
                    found.append(_result_message(row))
                    bytes_left -= found[-1].ByteSize()
        return found, None

    @to_its_end
    async def tree(self, job_id: str, index: int) -> TreeRead:
        """One problem's tree, finished or still growing. Raises `JobNotFound`, `ProblemNotFound`."""
        async with self.database.read() as connection:
            job = await job_row(connection, job_id)
            if not 0 <= index < job.problems_total:
                raise ProblemNotFound(f"job {job_id} has no problem {index}: it has {job.problems_total}, counted from 0")
            at = and_(problems.c.job == job.number, problems.c.index == index)
            problem = (await connection.execute(select(problems).where(at))).one()
            result = (await connection.execute(_results_of(job.number).where(results.c.index == index))).one_or_none()
            first, last = (result.segment_first, result.segment_last) if result else (job.segment_floor + 1, None)
            nodes = await read_trees(connection, first, last, tree_ids(job_id, np.array([index], np.int64)))
        return TreeRead(job_message(job), problem_message(problem), _result_message(result) if result else None, nodes)

    @to_its_end
    async def put_models(self, rows: Sequence[ModelRow]) -> None:
        """Say which models the system has from now on."""
        async with self.database.write() as connection:
            await take(connection, Lock.MODELS)  # of two calls at once one must win, whole
            await connection.execute(models.delete())
            if rows:
                await connection.execute(insert(models), [asdict(row) for row in rows])

    @to_its_end
    async def models(self) -> list[ModelRow]:
        """The models that the system has."""
        async with self.database.read() as connection:
            rows = (await connection.execute(select(models).order_by(models.c.role, models.c.name))).all()
        return [ModelRow(*row) for row in rows]


def _results_of(number: int) -> Any:
    joined = results.join(problems, and_(problems.c.job == results.c.job, problems.c.index == results.c.index))
    columns = (results, problems.c.problem_id, problems.c.text, problems.c.reference)
    return select(*columns).select_from(joined).where(results.c.job == number)


def _result_message(row: Row[Any]) -> job_pb2.Result:
    """A row of `results` joined with its problem."""
    result = job_pb2.Result.FromString(row.body)
    result.problem.CopyFrom(problem_message(row))
    return result
