"""Rows of `jobs` and `problems` as messages, and the two ways to change a job."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row, Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.clock import now_ms
from ramify.store.errors import JobNotFound
from ramify.store.schema import events, jobs
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

FINAL = (job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED)

JobRow = Row[Any]


async def job_row(connection: AsyncConnection, job_id: str, *, lock: bool = False) -> JobRow:
    """The row of a job; with `lock`, nobody else changes it until the transaction ends. Raises `JobNotFound`."""
    query = select(jobs).where(jobs.c.job_id == job_id)
    row: JobRow | None = None
    if "\0" not in job_id:  # of which PostgreSQL would not even look for one
        row = (await connection.execute(locked(query) if lock else query)).one_or_none()
    if row is None:
        raise JobNotFound(f"there is no job {job_id!r}; `ramify jobs` lists those that there are")
    return row


def locked(query: Select[Any]) -> Select[Any]:
    """The query of rows of `jobs`, as one that locks them to the end of the transaction and sees them as they are then.

    Not against rows of other tables that refer to them. SQLite needs no locks: its one writer has all.
    """
    return query.with_for_update(key_share=True)


async def change(connection: AsyncConnection, number: int, **values: Any) -> JobRow:
    """Change a job whose row is locked; its row afterwards."""
    changed: JobRow = (await connection.execute(update(jobs).where(jobs.c.number == number).values(values).returning(jobs))).one()
    return changed


async def change_and_record(connection: AsyncConnection, number: int, **values: Any) -> JobRow:
    """Change a job whose row is locked and write its state and counters into its history; its row afterwards."""
    row = await change(connection, number, cursor=jobs.c.cursor + 1, **values)
    event = job_pb2.JobEvent(cursor=row.cursor, time=timestamp(now_ms()), state=row.state, progress=progress_message(row))
    await connection.execute(insert(events).values(job=number, cursor=row.cursor, body=event.SerializeToString()))
    await notify(connection, Channel.EVENTS, row.job_id)
    return row


def timestamp(milliseconds: int | None) -> Timestamp | None:
    """Milliseconds since the epoch as a message."""
    if milliseconds is None:
        return None
    found = Timestamp()
    found.FromMilliseconds(milliseconds)
    return found


def progress_message(row: JobRow) -> job_pb2.Progress:
    """The counters of a row of `jobs`."""
    return job_pb2.Progress(
        problems_total=row.problems_total,
        problems_done=row.problems_done,
        problems_solved=row.problems_solved,
        problems_failed=row.problems_failed,
        steps=row.steps,
        tokens=row.tokens,
        wasted_tokens=row.wasted_tokens,
    )


def job_message(row: JobRow) -> job_pb2.Job:
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
    """A row that has the columns of `problems`."""
    return job_pb2.Problem(id=row.problem_id, text=row.text, reference=row.reference)
