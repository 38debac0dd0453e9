"""Uploads: how a job and its problems come into the store, chunk by chunk, safe to repeat, and how they are undone."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import and_, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.forest.ids import tree_ids
from ramify.store.audit import Actor, record
from ramify.store.clock import db_now_ms, now_ms
from ramify.store.database import Database, insert_new, to_its_end
from ramify.store.errors import Conflict, Contention, JobNotFound, UploadEnded, UploadError
from ramify.store.rows import JobRow, change, change_and_record, job_message, job_row, locked, problem_message
from ramify.store.schema import DEFAULT_TENANT, SLOTS, jobs, problems, segments
from ramify.store.tenants import admit, hold, scoped
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

KEPT_MS = 24 * 3600 * 1000  # an upload that nobody goes on with is given up after this
IDS_A_READ = 1000  # databases bound the variables of a statement


@dataclass(frozen=True, slots=True)
class NewProblem:
    """A problem to be stored."""

    problem: job_pb2.Problem
    prompt: str  # as the models see it


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an upload."""

    offset: int  # index in the job of the first problem; without problems it means nothing
    problems: Sequence[NewProblem]
    last: bool  # the upload is complete with it


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

    @to_its_end
    async def find(self, request_id: str, asked: job_pb2.JobSpec) -> job_pb2.Job | None:
        """The job that a request has made before.

        Raises:
            Conflict: the request id was used with another spec.
        """
        async with self.database.read() as connection:
            row = await self._of_request(connection, request_id, _body(asked))
        return job_message(row) if row is not None else None

    @to_its_end
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
        body = _body(asked)
        async with self.database.write() as connection:
            row = await self._of_request(connection, request_id, body, lock=True)
            if row is None:
                row = await self._make(connection, request_id, body, filled, call)
            if row is None:  # another call was faster: its job is there by now
                row = await self._of_request(connection, request_id, body, lock=True)
            if row is None:
                raise Contention(f"the job of request_id {request_id!r} was made and undone by another call meanwhile: try again")
            return job_message(await self._store(connection, row, chunk, call))

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

    async def _make(
        self, connection: AsyncConnection, request_id: str, body: bytes, filled: job_pb2.JobSpec, call: str
    ) -> JobRow | None:
        """The row of a new job, if the tenant may have one more, or None if there is one of the request by now."""
        tenant = await hold(connection, self._tenant)
        if tenant is not None:
            # Whoever held the tenant meanwhile may have made it, and what is there is never refused.
            if (row := await self._of_request(connection, request_id, body, lock=True)) is not None:
                return row
            await admit(connection, tenant, chains_at_once(filled.search), await db_now_ms(connection))
        await self._expire(connection)
        return await self._insert(connection, request_id, body, filled, call)

    async def _insert(
        self, connection: AsyncConnection, request_id: str, body: bytes, filled: job_pb2.JobSpec, call: str
    ) -> JobRow | None:
        """The row of the new job, or None if there is one of the request by now."""
        now = self._clock_ms()
        values = {
            "job_id": secrets.token_hex(8),
            "tenant": self._tenant,
            "priority": filled.priority,
            "request_id": scoped(self._tenant, request_id),
            "spec": filled.SerializeToString(deterministic=True),
            "spec_asked": body,
            "state": job_pb2.JOB_STATE_UPLOADING,
            "segment_floor": await connection.scalar(select(func.coalesce(func.max(segments.c.segment_id), 0))),
            "uploader": call,
            "touched_ms": now,
            "created_ms": now,
        }
        new = insert_new(connection, jobs).values(values).returning(jobs)
        row: JobRow | None = (await connection.execute(new)).one_or_none()
        return row

    async def _of_request(
        self, connection: AsyncConnection, request_id: str, body: bytes, *, lock: bool = False
    ) -> JobRow | None:
        query = select(jobs).where(jobs.c.request_id == scoped(self._tenant, request_id))
        row: JobRow | None = (await connection.execute(locked(query) if lock else query)).one_or_none()
        if row is not None and row.spec_asked != body:
            raise Conflict(
                f"request_id {request_id!r} was used for job {row.job_id} with another spec; give that one, or take a new id"
            )
        return row

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
            await connection.execute(insert(problems), _problem_rows(row, chunk.offset + known, new))
            changes |= {"uploader": call, "problems_total": row.problems_total + len(new)}
        if not chunk.last:
            return await change(connection, row.number, **changes)
        if row.problems_total + len(new) == 0:
            raise UploadError("a job needs at least one problem: send some before `last`, or with it")
        changes |= {"state": job_pb2.JOB_STATE_RUNNING, "started_ms": self._clock_ms()}
        await notify(connection, Channel.JOBS, row.job_id)
        if self._by is not None:
            said = f"{row.problems_total + len(new)} problems"
            await record(connection, await db_now_ms(connection), self._by, "CreateJob", row.job_id, detail=said)
        return await change_and_record(connection, row.number, **changes)

    async def _expire(self, connection: AsyncConnection) -> None:
        # One for each job that is made: so the time that it takes is bounded, and the number that is left as well.
        stale = (
            select(jobs.c.number)
            .where(jobs.c.state == job_pb2.JOB_STATE_UPLOADING, jobs.c.touched_ms < self._clock_ms() - KEPT_MS)
            .order_by(jobs.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)  # somebody goes on with it just now, or undoes it
        )
        if (number := await connection.scalar(stale)) is not None:
            await connection.execute(jobs.delete().where(jobs.c.number == number))


def _body(asked: job_pb2.JobSpec) -> bytes:
    return asked.SerializeToString(deterministic=True)


def chains_at_once(search: job_pb2.Search) -> int:
    """Chains that one tree has at most at a time, of a search with every default."""
    return search.parallel * max(1, search.branch) if search.HasField("parallel") else search.n


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


def _problem_rows(job: JobRow, first: int, chunk: Sequence[NewProblem]) -> list[dict[str, Any]]:
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
