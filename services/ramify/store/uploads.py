"""Uploads: how a job and its problems come into the store, chunk by chunk, safe to repeat, and how they are undone."""

from collections.abc import Callable, Coroutine, Sequence
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import and_, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.audit import Actor, record
from ramify.store.clock import db_now_ms, now_ms
from ramify.store.database import Database, insert_new, to_its_end
from ramify.store.errors import Conflict, Contention, JobNotFound, UploadEnded, UploadError
from ramify.store.rows import JobRow, change, change_and_record, job_message, job_row, locked, problem_message
from ramify.store.schema import DEFAULT_TENANT, jobs, problems
from ramify.store.submissions import (
    Chunk,
    NewProblem,
    Submission,
    TenantHeld,
    chains_at_once,
    expire,
    newest,
    problem_rows,
    submit,
)
from ramify.store.tenants import hold, scoped
from ramify.store.together import together
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

REQUESTS_A_READ = 256
IDS_A_READ = 1000  # databases bound the variables of a statement

P = ParamSpec("P")
R = TypeVar("R")


def _in_turn(
    method: Callable[Concatenate["Uploads", P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["Uploads", P], Coroutine[Any, Any, R]]:
    """Make a transaction wait for its tenant's turn; who leaves before has begun nothing."""

    async def run(self: "Uploads", /, *args: P.args, **kwargs: P.kwargs) -> R:
        async with self.database.turns.of(self._tenant):
            return await method(self, *args, **kwargs)

    return update_wrapper(run, method)


class Uploads:
    """See the module.

    Several calls may be at one upload: one broke and a second goes on, without that anybody could tell whether the first is
    dead. So a call has a name, and may undo an upload only while the latest problems are its own.
    """

    def __init__(self, database: Database, clock_ms: Callable[[], int] = now_ms, *, by: Actor | None = None) -> None:
        """Cheap to make.

        Args:
            database: the store.
            clock_ms: the time by which uploads are judged, in milliseconds; for tests.
            by: who uploads: jobs are its tenant's, and what it does is written down; None: the default tenant, and nothing is.
        """
        self.database = database
        self._clock_ms = clock_ms
        self._by = by
        self._tenant = DEFAULT_TENANT if by is None else by.tenant

    async def find(self, request_id: str, asked: job_pb2.JobSpec) -> job_pb2.Job | None:
        """The job that a request has made before.

        Raises:
            Conflict: the request id was used with another spec.
        """
        row = await _of_requests(self.database, scoped(self._tenant, request_id))
        return None if row is None else job_message(_alike(row, request_id, _body(asked)))

    async def create(
        self, request_id: str, asked: job_pb2.JobSpec, filled: job_pb2.JobSpec, chunk: Chunk, call: str
    ) -> job_pb2.Job:
        """Make a job with its first chunk, or find the one that the same request has made, and go on with it.

        Either all of it is durable on return, or nothing has changed.

        Args:
            request_id: up to 128 characters.
            asked: the spec as it came: what a repeated request is held against.
            filled: the spec with every default; of no effect if the job is there.
            chunk: see `append`.
            call: names the caller, up to 32 characters.

        Raises:
            Conflict: the request id was used with another spec; or see `append`.
            UploadEnded: see `append`.
            UploadError: see `append`.
            QuotaExceeded: the tenant has used up what it may have; never of a job that is there.
            QuotaTooSmall: the tenant may never have what the job needs.
        """
        new = Submission(scoped(self._tenant, request_id), self._tenant, self._by, _body(asked), filled, chunk.problems, call)
        made: job_pb2.Job | None = None
        if new.small and chunk.whole:
            try:
                made = await submit(self.database, new, None, self._clock_ms)
            except TenantHeld:
                made = await submit(self.database, new, self._tenant, self._clock_ms)
        return made or await self._create(request_id, new, chunk)

    @_in_turn
    @to_its_end
    async def _create(self, request_id: str, new: Submission, chunk: Chunk) -> job_pb2.Job:
        async with self.database.write() as connection:
            row = await self._of_request(connection, request_id, new.asked)
            if row is None:
                row = await self._make(connection, request_id, new)
            if row is None:  # another call was faster: its job is there by now
                row = await self._of_request(connection, request_id, new.asked)
            if row is None:
                raise Contention(f"the job of request_id {request_id!r} was made and undone by another call meanwhile: try again")
            return job_message(await self._store(connection, row, chunk, new.call))

    @_in_turn
    @to_its_end
    async def append(self, job_id: str, chunk: Chunk, call: str) -> job_pb2.Job:
        """Store a chunk of an upload; with `last`, start the job. All of it is durable on return.

        Problems that are there already are compared, so that a broken upload can send them again.

        Raises:
            Conflict: the job holds another problem at one of the places, or has more of them, or has started without them.
            UploadEnded: the upload was cancelled or undone.
            UploadError: a gap before the chunk, an id that is there twice, or an empty job.
        """
        async with self.database.write() as connection:
            try:
                row = await job_row(connection, job_id, self._tenant, lock=True)
            except JobNotFound as error:
                raise UploadEnded(
                    f"the upload of job {job_id} was undone by another call with the same request_id, or expired: start again"
                ) from error
            return job_message(await self._store(connection, row, chunk, call))

    @_in_turn
    @to_its_end
    async def discard(self, job_id: str, call: str) -> None:
        """Undo an upload whose latest problems `call` has brought; anything else stays."""
        mine = and_(
            jobs.c.job_id == job_id,
            jobs.c.tenant == self._tenant,
            jobs.c.state == job_pb2.JOB_STATE_UPLOADING,
            jobs.c.uploader == call,
        )
        async with self.database.write() as connection:
            await connection.execute(jobs.delete().where(mine))

    async def _make(self, connection: AsyncConnection, request_id: str, new: Submission) -> JobRow | None:
        """The row of a new job, if the tenant may have one more, or None if there is one of the request by now."""
        room = (await hold(connection, {self._tenant}, await db_now_ms(connection))).get(self._tenant)
        if room is not None:
            # Whoever held the tenant meanwhile may have made it, and what is there is never refused.
            if (row := await self._of_request(connection, request_id, new.asked)) is not None:
                return row
            room.admit(chains_at_once(new.spec.search))
        await expire(connection, self._clock_ms(), 1)
        values = {**new.row(self._clock_ms()), "segment_floor": await newest(connection)}
        made: JobRow | None = (
            await connection.execute(insert_new(connection, jobs).values(values).returning(jobs))
        ).one_or_none()
        return made

    async def _of_request(self, connection: AsyncConnection, request_id: str, body: bytes) -> JobRow | None:
        query = select(jobs).where(jobs.c.request_id == scoped(self._tenant, request_id))
        row: JobRow | None = (await connection.execute(locked(query))).one_or_none()
        return None if row is None else _alike(row, request_id, body)

    async def _store(self, connection: AsyncConnection, row: JobRow, chunk: Chunk, call: str) -> JobRow:
        if not chunk.problems and not chunk.last:
            return row
        known = await _check_known(connection, row, chunk)
        if row.state != job_pb2.JOB_STATE_UPLOADING:
            return row
        new = chunk.problems[known:]
        changes: dict[str, Any] = {"touched_ms": self._clock_ms()}
        if new:
            await _unique_ids(connection, row, new)
            await connection.execute(insert(problems), problem_rows(row, chunk.offset + known, new))
            changes |= {"uploader": call, "problems_total": row.problems_total + len(new)}
        if not chunk.last:
            return await change(connection, row.number, **changes)
        if row.problems_total + len(new) == 0:
            raise UploadError("a job needs at least one problem: send some before `last`, or with it")
        changes |= {"state": job_pb2.JOB_STATE_RUNNING, "started_ms": self._clock_ms()}
        await notify(connection, Channel.JOBS, row.job_id)
        if self._by is not None:
            said = f"problems: {row.problems_total + len(new)}"
            await record(connection, await db_now_ms(connection), self._by, "CreateJob", row.job_id, detail=said)
        return await change_and_record(connection, row.number, **changes)


@together(most=REQUESTS_A_READ)
async def _of_requests(database: Database, request_ids: Sequence[str]) -> list[JobRow | Exception | None]:
    async with database.read() as connection:
        rows = await connection.execute(select(jobs).where(jobs.c.request_id.in_({*request_ids})))
        found = {row.request_id: row for row in rows}
    return [found.get(request_id) for request_id in request_ids]


def _alike(row: JobRow, request_id: str, body: bytes) -> JobRow:
    """The job that a request has made, if it has asked for the same. Raises `Conflict`."""
    if row.spec_asked != body:
        raise Conflict(
            f"request_id {request_id!r} was used for job {row.job_id} with another spec; give that one, or take a new id"
        )
    return row


def _body(asked: job_pb2.JobSpec) -> bytes:
    return asked.SerializeToString(deterministic=True)


async def _check_known(connection: AsyncConnection, row: JobRow, chunk: Chunk) -> int:
    """How many of a chunk's problems are there already, and that they are the same."""
    total, count = row.problems_total, len(chunk.problems)
    if not count:
        return 0
    if chunk.offset > total:
        raise UploadError(f"the chunk starts at problem {chunk.offset}, but only {total} are there: go on from there")
    known: int = min(count, total - chunk.offset)
    await _same_problems(connection, row, chunk.offset, chunk.problems[:known])
    if known < count and row.state == job_pb2.JOB_STATE_CANCELLED:
        raise UploadEnded(f"job {row.job_id} was cancelled: submit the problems as a job of their own")
    if known < count and row.state != job_pb2.JOB_STATE_UPLOADING:
        raise Conflict(f"job {row.job_id} is complete with {total} problems: submit more as a job of their own")
    if chunk.last and chunk.offset + count < total:
        raise Conflict(f"the upload ends after problem {chunk.offset + count - 1}, but job {row.job_id} has {total} problems")
    return known


async def _same_problems(connection: AsyncConnection, job: JobRow, offset: int, chunk: Sequence[NewProblem]) -> None:
    if not chunk:
        return
    here = and_(problems.c.job == job.number, problems.c.index >= offset, problems.c.index < offset + len(chunk))
    rows = (await connection.execute(select(problems).where(here).order_by(problems.c.index))).all()
    for index, (row, new) in enumerate(zip(rows, chunk, strict=True), offset):
        if problem_message(row) != new.problem:
            raise Conflict(f"problem {index} of job {job.job_id} was uploaded before with another content")


async def _unique_ids(connection: AsyncConnection, job: JobRow, chunk: Sequence[NewProblem]) -> None:
    seen: set[str] = set()
    twice: str | None = None
    for name in (new.problem.id for new in chunk if new.problem.id):
        twice = name if name in seen else twice
        seen.add(name)
    ids = sorted(seen)
    for start in range(0, len(ids) if twice is None else 0, IDS_A_READ):
        some = problems.c.problem_id.in_(ids[start : start + IDS_A_READ])
        query = select(problems.c.problem_id).where(problems.c.job == job.number, some)
        twice = twice or await connection.scalar(query.limit(1))
    if twice is not None:
        raise UploadError(f"two problems have the id {twice!r}: ids are unique in a job, or empty")
