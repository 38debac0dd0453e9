"""Jobs as their submitters see them: states, histories, results, trees; and the models that they can use."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Row, and_, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import tree_ids
from ramify.store import looks
from ramify.store.audit import Actor, record
from ramify.store.clock import Clock, db_now_ms
from ramify.store.database import Database, Lock, take, to_its_end
from ramify.store.errors import ProblemNotFound
from ramify.store.looks import History, Place, waits
from ramify.store.rows import FINAL, JobRow, change_and_record, job_message, job_row, problem_message
from ramify.store.schema import jobs, leftovers, models, problems, results, voids
from ramify.store.segments import NO_STEPS
from ramify.store.together import CALLS_A_READ, together
from ramify.store.trees import read_archive, read_segments, read_voids
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

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
class TreeRead:
    """All that is committed of one problem's tree."""

    job: job_pb2.Job
    problem: job_pb2.Problem
    result: job_pb2.Result | None
    nodes: NodeRows
    damage: str  # what of it is lost; empty: nothing


class Jobs:
    """See the module. Another tenant's job is as one that isn't there."""

    def __init__(self, database: Database, clock: Clock = db_now_ms, *, by: Actor | None = None) -> None:
        """Cheap to make.

        Args:
            database: the store.
            clock: the time by which leases are judged, in milliseconds; for tests.
            by: who asks: it sees what it may see, and what it does is written down; None: the system itself, which sees all.
        """
        self.database = database
        self._clock = clock
        self._by = by
        self._scope = None if by is None else by.scope

    async def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises `JobNotFound`."""
        return await looks.job(self.database, Place(job_id, scope=self._scope), self._clock, False)

    async def status(self, job_id: str) -> job_pb2.Job:
        """One job, with all that it waits for: see `Standing.silent`. Raises `JobNotFound`."""
        return await looks.job(self.database, Place(job_id, scope=self._scope), self._clock, True)

    @to_its_end
    async def page(self, size: int, after: str | None, state: int) -> tuple[list[job_pb2.Job], str | None]:
        """Jobs, the newest first, and the one after which the next page starts: its number would tell how many others have.

        Args:
            size: at most this many.
            after: the job after which an earlier page said that this one starts; None: at the newest.
            state: only jobs in this state; 0: all.

        Raises:
            JobNotFound: `after` is none that is seen.
        """
        query = select(jobs).order_by(jobs.c.number.desc()).limit(size + 1)
        if state:
            query = query.where(jobs.c.state == state)
        if self._scope is not None:
            query = query.where(jobs.c.tenant == self._scope)
        async with self.database.read() as connection:
            if after is not None:
                query = query.where(jobs.c.number < (await job_row(connection, after, self._scope)).number)
            rows = (await connection.execute(query)).all()
            told = await waits(connection, await self._clock(connection))
        found = [job_message(row, told.get(row.job_id, ())) for row in rows[:size]]
        return found, rows[size - 1].job_id if len(rows) > size else None

    @to_its_end
    async def cancel(self, job_id: str) -> job_pb2.Job:
        """End a job early; one that has ended stays as it is. Raises `JobNotFound`."""
        async with self.database.write() as connection:
            row = await job_row(connection, job_id, self._scope, lock=True)
            if row.state not in FINAL:
                now = await self._clock(connection)
                state = job_pb2.JOB_STATE_CANCELLED
                row = await change_and_record(connection, row.number, at_ms=now, state=state, finished_ms=now)
                await notify(connection, Channel.JOBS, job_id)
                if self._by is not None:
                    await record(connection, now, self._by, "CancelJob", job_id, detail=f"of tenant {row.tenant}")
            return job_message(row)

    async def history(self, job_id: str, cursor: int) -> History:
        """What has happened after `cursor`, in order; at most `looks.EVENTS_A_READ` events, and one at least if there is any.

        Raises:
            JobNotFound: there is none, or it is another tenant's.
        """
        return await looks.history(self.database, Place(job_id, cursor, self._scope))

    @to_its_end
    async def histories(self, places: Sequence[Place]) -> list[History | Exception]:
        """The same for many places, `JOBS_A_STATEMENT` at most; an error of one of them is its answer."""
        return await looks.histories(self.database, places)

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
            number = (await job_row(connection, job_id, self._scope)).number
            restarted = await _restarted(connection, number, voids.c.index > after)
            query = _results_of(number).where(results.c.index > after)
            async with connection.stream(query.order_by(results.c.index).limit(size + 1)) as rows:
                async for row in rows:
                    if len(found) == size or bytes_left <= 0:
                        return found, found[-1].problem_index
                    found.append(_result_message(row, restarted))
                    bytes_left -= found[-1].ByteSize()
        return found, None

    @to_its_end
    async def tree(self, job_id: str, index: int) -> TreeRead:
        """One problem's tree, finished or still growing. Raises `JobNotFound`, `ProblemNotFound`."""
        async with self.database.read() as connection:
            job = await job_row(connection, job_id, self._scope)
            if not 0 <= index < job.problems_total:
                raise ProblemNotFound(f"job {job_id} has no problem {index}: it has {job.problems_total}, counted from 0")
            at = and_(problems.c.job == job.number, problems.c.index == index)
            problem = (await connection.execute(select(problems).where(at))).one()
            row = (await connection.execute(_results_of(job.number).where(results.c.index == index))).one_or_none()
            result = (
                None if row is None else _result_message(row, await _restarted(connection, job.number, voids.c.index == index))
            )
            nodes, damage = await _steps(connection, job, index, problem.slot, row)
        return TreeRead(job_message(job), problem_message(problem), result, nodes, damage)

    @to_its_end
    async def put_models(self, rows: Sequence[ModelRow]) -> None:
        """Say which models the system has from now on."""
        async with self.database.write() as connection:
            await take(connection, Lock.MODELS)  # of two calls at once one must win, whole
            await connection.execute(models.delete())
            if rows:
                await connection.execute(insert(models), [asdict(row) for row in rows])

    async def models(self) -> list[ModelRow]:
        """The models that the system has."""
        return [*await _models(self.database, None)]


@together(most=CALLS_A_READ)
async def _models(database: Database, asked: Sequence[None]) -> list[tuple[ModelRow, ...] | Exception]:
    async with database.read() as connection:
        rows = (await connection.execute(select(models).order_by(models.c.role, models.c.name))).all()
    return [tuple(ModelRow(*row) for row in rows)] * len(asked)


def _results_of(number: int) -> Any:
    joined = results.join(problems, and_(problems.c.job == results.c.job, problems.c.index == results.c.index))
    columns = (results, problems.c.problem_id, problems.c.text, problems.c.reference)
    return select(*columns).select_from(joined).where(results.c.job == number)


def _result_message(row: Row[Any], restarted: Mapping[int, str]) -> job_pb2.Result:
    """A row of `results` joined with its problem."""
    result = job_pb2.Result.FromString(row.body)
    result.problem.CopyFrom(problem_message(row))
    result.restarted = restarted.get(result.problem_index, "")
    return result


async def _restarted(connection: AsyncConnection, job: int, which: ColumnElement[bool]) -> dict[int, str]:
    """Why trees of a job have lost steps on their way, by problem; `which` is a condition on `voids`."""
    query = select(voids.c.index, voids.c.reason).where(voids.c.job == job, which).order_by(voids.c.index, voids.c.first)
    found = defaultdict[int, list[str]](list)
    for index, reason in await connection.execute(query):
        found[index].append(reason)
    return {index: "; ".join(reasons) for index, reasons in found.items()}


async def _steps(connection: AsyncConnection, job: JobRow, index: int, slot: int, result: Any) -> tuple[NodeRows, str]:
    """The steps of a tree, wherever they lie, and what of them is lost."""
    wanted = tree_ids(job.job_id, np.array([index], np.int64))
    tree = int(wanted[0])
    if result is not None:
        first, last, archive = result.segment_first, result.segment_last, result.archive
    else:
        first, last = job.segment_floor + 1, None
        left = select(leftovers.c.archive).where(leftovers.c.job == job.number, leftovers.c.slot == slot)
        settled = (await connection.execute(left)).one_or_none()
        if settled is not None and settled.archive is None:
            return NO_STEPS, ""
        archive = None if settled is None else settled.archive
    if archive is not None:
        return await read_archive(connection, archive, tree)
    void = await read_voids(connection, and_(voids.c.job == job.number, voids.c.index == index))
    found = await read_segments(connection, first, last, wanted, void)
    return found.nodes, found.damage.get(tree, "")
