"""Rows of `jobs` and `problems` as messages, and the two ways to change a job."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import ColumnElement, Row, Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.clock import Clock, now_ms
from ramify.store.errors import JobNotFound
from ramify.store.schema import events, jobs
from ramify.store.tenants import unscoped
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

FINAL = (job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED)

JOBS_A_STATEMENT = 1000  # databases bound the variables of a statement

JobRow = Row[Any]


async def job_row(connection: AsyncConnection, job_id: str, tenant: str | None, *, lock: bool = False) -> JobRow:
    """The row of a job.

    Args:
        connection: of the transaction.
        job_id: the job.
        tenant: whose job it must be; None: anybody's.
        lock: nobody else changes it until the transaction ends.

    Raises:
        JobNotFound: there is none, or it is another tenant's, which is told with the same words.
    """
    query = select(jobs).where(jobs.c.job_id == job_id)
    if tenant is not None:
        query = query.where(jobs.c.tenant == tenant)
    row: JobRow | None = None
    if "\0" not in job_id:  # of which PostgreSQL would not even look for one
        row = (await connection.execute(locked(query) if lock else query)).one_or_none()
    if row is None:
        raise no_job(job_id)
    return row


def no_job(job_id: str) -> JobNotFound:
    """That there is none, or that it is another tenant's."""
    return JobNotFound(f"there is no job {job_id!r:.100}; `ramify jobs` lists those that there are")


def locked(query: Select[Any]) -> Select[Any]:
    """The query of rows of `jobs`, as one that locks them to the end of the transaction and sees them as they are then.

    Not against rows of other tables that refer to them. SQLite needs no locks: its one writer has all.
    """
    return query.with_for_update(key_share=True)


async def change(connection: AsyncConnection, number: int, **values: Any) -> JobRow:
    """Change a job whose row is locked; its row afterwards."""
    changed: JobRow = (await connection.execute(update(jobs).where(jobs.c.number == number).values(values).returning(jobs))).one()
    return changed


async def change_and_record(
    connection: AsyncConnection, number: int, *, at_ms: int | None = None, notice: job_pb2.Notice | None = None, **values: Any
) -> JobRow:
    """Change a job whose row is locked and write its state and counters into its history; its row afterwards.

    Args:
        connection: of the transaction.
        number: of the job.
        at_ms: time of the event; None: now, by this host's clock.
        notice: what the event tells besides.
        values: of the row.
    """
    row = await change(connection, number, cursor=jobs.c.cursor + 1, **values)
    await connection.execute(insert(events).values(event_values(row, now_ms() if at_ms is None else at_ms, notice)))
    await notify(connection, Channel.EVENTS, row.job_id)
    return row


async def tell(
    connection: AsyncConnection, clock: Clock, which: ColumnElement[bool], notice: job_pb2.Notice, **values: Any
) -> None:
    """Write a notice into the history of each running job of `which`, and change its row; locks the rows, by rising number."""
    runs = select(jobs.c.number).where(jobs.c.state == job_pb2.JOB_STATE_RUNNING, which).order_by(jobs.c.number)
    numbers = (await connection.scalars(locked(runs))).all()
    at_ms = await clock(connection) if numbers else 0  # when nobody else writes to these histories
    for start in range(0, len(numbers), JOBS_A_STATEMENT):
        some = jobs.c.number.in_(numbers[start : start + JOBS_A_STATEMENT])
        changed = update(jobs).where(some).values(cursor=jobs.c.cursor + 1, **values).returning(jobs)
        rows = (await connection.execute(changed)).all()
        await connection.execute(insert(events), [event_values(row, at_ms, notice) for row in rows])
        for row in rows:
            await notify(connection, Channel.EVENTS, row.job_id)


def event_values(row: Any, at_ms: int, notice: job_pb2.Notice | None = None) -> dict[str, Any]:
    """The row of `events` of a job's latest event; `row` has the columns of `jobs`."""
    body = job_pb2.JobEvent(
        cursor=row.cursor, time=timestamp(at_ms), state=row.state, progress=progress_message(row), notice=notice
    )
    return {"job": row.number, "cursor": row.cursor, "body": body.SerializeToString()}


def timestamp(milliseconds: int | None) -> Timestamp | None:
    """Milliseconds since the epoch as a message."""
    if milliseconds is None:
        return None
    found = Timestamp()
    found.FromMilliseconds(milliseconds)
    return found


def progress_message(row: Any) -> job_pb2.Progress:
    """The counters of a row of `jobs`."""
    return job_pb2.Progress(
        problems_total=row.problems_total,
        problems_done=row.problems_done,
        problems_solved=row.problems_solved,
        problems_failed=row.problems_failed,
        steps=row.steps,
        tokens=row.tokens,
        wasted_tokens=row.wasted_tokens,
        retries=row.retries,
        takeovers=row.takeovers,
        restarts=row.restarts,
    )


def job_message(row: JobRow, waits: Sequence[job_pb2.Wait] = ()) -> job_pb2.Job:
    """A row of `jobs`, and what the job waits for."""
    return job_pb2.Job(
        job_id=row.job_id,
        tenant=row.tenant,
        request_id=unscoped(row.request_id),
        spec=job_pb2.JobSpec.FromString(row.spec),
        state=row.state,
        progress=progress_message(row),
        create_time=timestamp(row.created_ms),
        start_time=timestamp(row.started_ms),
        finish_time=timestamp(row.finished_ms),
        waits=waits,
        pins=job_pb2.Pins(generator=row.pin_generator, verifier=row.pin_verifier, checker=row.pin_checker),
    )


def problem_message(row: Row[Any]) -> job_pb2.Problem:
    """A row that has the columns of `problems`."""
    return job_pb2.Problem(id=row.problem_id, text=row.text, reference=row.reference)
