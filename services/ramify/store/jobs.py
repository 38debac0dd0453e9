"""Jobs as the gateway knows them: uploads, states, histories, results, trees."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row, and_, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.ids import tree_ids
from ramify.store import segments as codec
from ramify.store.clock import now_ms
from ramify.store.database import Database
from ramify.store.errors import Conflict, JobNotFound, ProblemNotFound, UploadError
from ramify.store.schema import SLOTS, events, jobs, models, problems, results, segments
from ramify.v1 import job_pb2

import numpy as np

SEGMENTS_A_READ = 64  # bounds the memory of a tree's or a journal's read

FINAL = (job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class NewProblem:
    """A problem to be stored."""

    problem: job_pb2.Problem
    prompt: str  # as the models see it


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that the system has."""

    role: str  # generator, verifier or checker
    name: str
    revision: str
    delimiter: str  # a generator's own step boundary
    problem_format: str  # rule that its problems must satisfy; empty: any text


class Jobs:
    """See the module."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def create(self, request_id: str, asked: job_pb2.JobSpec, filled: job_pb2.JobSpec) -> job_pb2.Job:
        """Make a job in state UPLOADING, or find the one that the same request has made.

        Raises:
            Conflict: the request id was used with another spec.
        """
        body = asked.SerializeToString(deterministic=True)
        async with self.database.write() as connection:
            row = (await connection.execute(select(jobs).where(jobs.c.request_id == request_id))).one_or_none()
            if row is None:
                floor = await connection.scalar(select(func.coalesce(func.max(segments.c.segment_id), 0)))
                values = {
                    "job_id": secrets.token_hex(4),
                    "request_id": request_id,
                    "spec": filled.SerializeToString(deterministic=True),
                    "spec_asked": body,
                    "state": job_pb2.JOB_STATE_UPLOADING,
                    "segment_floor": floor,
                    "created_ms": now_ms(),
                }
                row = (await connection.execute(insert(jobs).values(values).returning(jobs))).one()
            elif row.spec_asked != body:
                raise Conflict(f"request_id {request_id!r} was used for job {row.job_id} with another spec")
        return job_message(row)

    async def append(self, job_id: str, offset: int, chunk: Sequence[NewProblem], last: bool) -> job_pb2.Job:
        """Store a chunk of an upload; with `last`, start the job. All of it is durable on return.

        Problems that are there already are compared, so that a broken upload can send them again.

        Raises:
            Conflict: the job holds another problem at one of the places, or has started without it.
            UploadError: a gap before the chunk, an id that is there twice, or an empty job.
        """
        async with self.database.write() as connection:
            row = await _job(connection, job_id)
            known = max(0, min(len(chunk), row.problems_total - offset))
            if offset > row.problems_total:
                raise UploadError(f"the chunk starts at problem {offset}, but only {row.problems_total} are there: go on from there")
            await _same_problems(connection, row, offset, chunk[:known])
            new = chunk[known:]
            if new and row.state != job_pb2.JOB_STATE_UPLOADING:
                raise Conflict(f"job {job_id} is complete with {row.problems_total} problems; submit more as a job of their own")
            if new:
                await _unique_ids(connection, row, new)
                await connection.execute(insert(problems), _problem_rows(row, offset + known, new))
                row = await _change(connection, row.number, problems_total=row.problems_total + len(new))
            if last and row.state == job_pb2.JOB_STATE_UPLOADING:
                if row.problems_total == 0:
                    raise UploadError("a job needs at least one problem")
                row = await _change(connection, row.number, state=job_pb2.JOB_STATE_RUNNING, started_ms=now_ms())
                await add_event(connection, row)
        return job_message(row)

    async def discard(self, job_id: str) -> None:
        """Undo an upload that has not started; anything else stays."""
        async with self.database.write() as connection:
            await connection.execute(
                jobs.delete().where(jobs.c.job_id == job_id, jobs.c.state == job_pb2.JOB_STATE_UPLOADING)
            )

    async def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises `JobNotFound`."""
        async with self.database.read() as connection:
            return job_message(await _job(connection, job_id))

    async def page(self, size: int, before: int | None, state: int) -> tuple[list[job_pb2.Job], int | None]:
        """Jobs, the newest first, and where the next page starts."""
        query = select(jobs).order_by(jobs.c.number.desc()).limit(size + 1)
        if before is not None:
            query = query.where(jobs.c.number < before)
        if state:
            query = query.where(jobs.c.state == state)
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [job_message(row) for row in rows[:size]], rows[size - 1].number if len(rows) > size else None

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """End a job early; one that has ended stays as it is. Raises `JobNotFound`."""
        async with self.database.write() as connection:
            row = await _job(connection, job_id)
            if row.state not in FINAL:
                row = await _change(connection, row.number, state=job_pb2.JOB_STATE_CANCELLED, finished_ms=now_ms())
                await add_event(connection, row)
        return job_message(row)

    async def history(self, job_id: str, cursor: int, limit: int = 1000) -> list[job_pb2.JobEvent]:
        """Events after a cursor, in order. Raises `JobNotFound`."""
        async with self.database.read() as connection:
            number = (await _job(connection, job_id)).number
            query = select(events.c.body).where(events.c.job == number, events.c.cursor > cursor)
            rows = (await connection.execute(query.order_by(events.c.cursor).limit(limit))).all()
        return [job_pb2.JobEvent.FromString(row.body) for row in rows]

    async def results(self, job_id: str, size: int, after: int) -> tuple[list[job_pb2.Result], int | None]:
        """Results by problem index above `after`, and where the next page starts. Raises `JobNotFound`."""
        async with self.database.read() as connection:
            number = (await _job(connection, job_id)).number
            query = _results_of(number).where(results.c.index > after).order_by(results.c.index).limit(size + 1)
            rows = (await connection.execute(query)).all()
        return [result_message(row) for row in rows[:size]], rows[size - 1].index if len(rows) > size else None

    async def tree(self, job_id: str, index: int) -> tuple[job_pb2.Job, job_pb2.Problem, job_pb2.Result | None, NodeRows]:
        """All that is committed of one problem's tree. Raises `JobNotFound`, `ProblemNotFound`."""
        async with self.database.read() as connection:
            job = await _job(connection, job_id)
            at = and_(problems.c.job == job.number, problems.c.index == index)
            problem = (await connection.execute(select(problems).where(at))).one_or_none()
            if problem is None:
                raise ProblemNotFound(f"job {job_id} has no problem {index}: it has {job.problems_total}, counted from 0")
            result = (await connection.execute(_results_of(job.number).where(results.c.index == index))).one_or_none()
            first, last = (result.segment_first, result.segment_last) if result else (job.segment_floor + 1, None)
            wanted = tree_ids(job_id, np.array([index], np.int64))
            nodes = await read_segments(connection, first, last, wanted)
        return job_message(job), problem_message(problem), result_message(result) if result else None, nodes

    async def put_models(self, rows: Sequence[ModelRow]) -> None:
        """Say which models the system has from now on."""
        async with self.database.write() as connection:
            await connection.execute(models.delete())
            await connection.execute(
                insert(models), [{name: getattr(row, name) for name in ModelRow.__dataclass_fields__} for row in rows]
            )

    async def models(self) -> list[ModelRow]:
        """The models that the system has."""
        async with self.database.read() as connection:
            rows = (await connection.execute(select(models).order_by(models.c.role, models.c.name))).all()
        return [ModelRow(*row) for row in rows]


async def read_segments(connection: AsyncConnection, first: int, last: int | None, wanted: Any) -> NodeRows:
    """The steps of the trees `wanted` `[T]` (tree ids) in the segments from `first` to `last` (None: to the end)."""
    found: list[tuple[bytes, bytes]] = []
    at = first - 1
    while True:
        query = select(segments.c.segment_id, segments.c.nodes, segments.c.scores).where(segments.c.segment_id > at)
        if last is not None:
            query = query.where(segments.c.segment_id <= last)
        rows = (await connection.execute(query.order_by(segments.c.segment_id).limit(SEGMENTS_A_READ))).all()
        found += [codec.of_trees(row.nodes, row.scores, wanted) for row in rows]
        if len(rows) < SEGMENTS_A_READ:
            return codec.decode(found)
        at = rows[-1].segment_id


async def add_event(connection: AsyncConnection, row: Row[Any]) -> None:
    """Write a job's state and counters, as `row` has them, into its history."""
    number = await connection.scalar(
        update(jobs).where(jobs.c.number == row.number).values(cursor=jobs.c.cursor + 1).returning(jobs.c.cursor)
    )
    event = job_pb2.JobEvent(cursor=number, time=timestamp(now_ms()), state=row.state, progress=progress_message(row))
    await connection.execute(insert(events).values(job=row.number, cursor=number, body=event.SerializeToString()))


def timestamp(milliseconds: int | None) -> Timestamp | None:
    """Milliseconds since the epoch as a message."""
    if milliseconds is None:
        return None
    found = Timestamp()
    found.FromMilliseconds(milliseconds)
    return found


def progress_message(row: Row[Any]) -> job_pb2.Progress:
    """The counters of a row of `jobs`."""
    return job_pb2.Progress(
        problems_total=row.problems_total,
        problems_done=row.problems_done,
        problems_solved=row.problems_solved,
        problems_failed=row.problems_failed,
        steps=row.steps,
        tokens=row.tokens,
    )


def job_message(row: Row[Any]) -> job_pb2.Job:
    """A row of `jobs`."""
    return job_pb2.Job(
        job_id=row.job_id,
        request_id=row.request_id,
        spec=job_pb2.JobSpec.FromString(row.spec),
        state=row.state,
        progress=progress_message(row),
        create_time=timestamp(row.created_ms),
        start_time=timestamp(row.started_ms),
        finish_time=timestamp(row.finished_ms),
    )


def problem_message(row: Row[Any]) -> job_pb2.Problem:
    """A row of `problems`."""
    return job_pb2.Problem(id=row.problem_id, text=row.text, reference=row.reference)


def result_message(row: Row[Any]) -> job_pb2.Result:
    """A row of `results` joined with its problem."""
    result = job_pb2.Result.FromString(row.body)
    result.problem.CopyFrom(problem_message(row))
    return result


def _results_of(number: int) -> Any:
    joined = results.join(problems, and_(problems.c.job == results.c.job, problems.c.index == results.c.index))
    return (
        select(results, problems.c.problem_id, problems.c.text, problems.c.reference)
        .select_from(joined)
        .where(results.c.job == number)
    )


async def _job(connection: AsyncConnection, job_id: str) -> Row[Any]:
    row = (await connection.execute(select(jobs).where(jobs.c.job_id == job_id))).one_or_none()
    if row is None:
        raise JobNotFound(f"there is no job {job_id!r}; `ramify jobs` lists those that there are")
    return row


async def _change(connection: AsyncConnection, number: int, **values: object) -> Row[Any]:
    return (await connection.execute(update(jobs).where(jobs.c.number == number).values(values).returning(jobs))).one()


async def _same_problems(connection: AsyncConnection, job: Row[Any], offset: int, chunk: Sequence[NewProblem]) -> None:
    if not chunk:
        return
    here = and_(problems.c.job == job.number, problems.c.index >= offset, problems.c.index < offset + len(chunk))
    rows = (await connection.execute(select(problems).where(here).order_by(problems.c.index))).all()
    for row, new in zip(rows, chunk, strict=True):
        if problem_message(row) != new.problem:
            raise Conflict(f"problem {row.index} of job {job.job_id} was uploaded before with another content")


async def _unique_ids(connection: AsyncConnection, job: Row[Any], chunk: Sequence[NewProblem]) -> None:
    ids = [new.problem.id for new in chunk if new.problem.id]
    twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    for start in range(0, len(ids), 500):  # SQLite bounds the variables of a statement
        query = select(problems.c.problem_id).where(problems.c.job == job.number, problems.c.problem_id.in_(ids[start : start + 500]))
        twice = twice or await connection.scalar(query.limit(1))
    if twice:
        raise UploadError(f"two problems have the id {twice!r}; ids are unique in a job, or empty")


def _problem_rows(job: Row[Any], first: int, chunk: Sequence[NewProblem]) -> list[dict[str, object]]:
    slots = tree_ids(job.job_id, np.arange(first, first + len(chunk))) % np.uint64(SLOTS)
    return [
        {
            "job": job.number,
            "index": first + place,
            "slot": slot,
            "problem_id": new.problem.id,
            "text": new.problem.text,
            "prompt": new.prompt,
            "reference": new.problem.reference,
        }
        for place, (new, slot) in enumerate(zip(chunk, slots.tolist(), strict=True))
    ]
