"""Looks at jobs: how they stand, and what has happened to them, for many who ask at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.clock import Clock
from ramify.store.database import Database
from ramify.store.leases import read_waits, shard_of
from ramify.store.rows import JOBS_A_STATEMENT, JobRow, job_message, no_job, timestamp
from ramify.store.schema import events, jobs, shards
from ramify.store.standing import silent
from ramify.store.together import together
from ramify.v1 import job_pb2

EVENTS_A_READ = 1000
NEAR = 8  # events: the last ones of many jobs are read at once
JOBS_A_READ = 256  # that are sent whole


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody stands in a job's history."""

    job_id: str
    cursor: int = 0  # of the last event that it has seen
    scope: str | None = None  # the tenant whose job it must be; None: anybody's


@dataclass(frozen=True, slots=True)
class History:
    """A part of a job's history, and where the job stood when it was read."""

    events: list[job_pb2.JobEvent]
    cursor: int  # of the job's last event
    state: int


@together(most=JOBS_A_READ)
async def job(database: Database, places: Sequence[Place], clock: Clock, with_silent: bool) -> list[job_pb2.Job | Exception]:
    """Jobs as they stand, and what they wait for; cursors mean nothing.

    Args:
        database: the store.
        places: the jobs.
        clock: the time by which leases are judged.
        with_silent: tell of shards too that tell nothing themselves.
    """
    async with database.read() as connection:
        whole = select(jobs).where(jobs.c.job_id.in_(_names(places)))
        found = {row.job_id: row for row in await connection.execute(whole)}
        now = await clock(connection)
        told = await waits(connection, now)
        runs = with_silent and any(row.state == job_pb2.JOB_STATE_RUNNING for row in found.values())
        everybodys = await silent(connection, now) if runs else []

    def message(row: JobRow) -> job_pb2.Job:
        return job_message(row, [*told.get(row.job_id, ()), *(everybodys if row.state == job_pb2.JOB_STATE_RUNNING else ())])

    return [no_job(place.job_id) if (row := _seen(found, place)) is None else message(row) for place in places]


async def histories(database: Database, places: Sequence[Place]) -> list[History | Exception]:
    """What has happened beyond some places, `JOBS_A_STATEMENT` at most: not always all of it, but something if there is any."""
    columns = (jobs.c.job_id, jobs.c.number, jobs.c.tenant, jobs.c.cursor, jobs.c.state)
    async with database.read() as connection:
        named = select(*columns).where(jobs.c.job_id.in_(_names(places)))
        found = {row.job_id: row for row in await connection.execute(named)}
        seen = [(place, _seen(found, place)) for place in places]
        bodies = await _beyond(connection, {(row.number, place.cursor): row.cursor for place, row in seen if row is not None})
    return [
        no_job(place.job_id) if row is None else History(bodies.get((row.number, place.cursor), []), row.cursor, row.state)
        for place, row in seen
    ]


history = together(most=JOBS_A_STATEMENT)(histories)


def _names(places: Iterable[Place]) -> set[str]:
    return {place.job_id for place in places if "\0" not in place.job_id}  # of which PostgreSQL would not even look for one


def _seen(found: Mapping[str, Any], place: Place) -> Any | None:
    row = found.get(place.job_id)
    return row if row is not None and place.scope in (None, row.tenant) else None


async def _beyond(
    connection: AsyncConnection, ends: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], list[job_pb2.JobEvent]]:
    """Events after some cursors, by job and cursor; `ends` are the jobs' last cursors.

    Of those that are near to their ends with one statement; others, who catch up, each have their share of `EVENTS_A_READ`.
    """
    lags = {place: end - place[1] for place, end in ends.items() if end > place[1]}
    near = [place for place, lag in lags.items() if lag <= NEAR]
    found: dict[tuple[int, int], list[job_pb2.JobEvent]] = {}
    if near:
        last = and_(events.c.job == jobs.c.number, events.c.cursor > jobs.c.cursor - max(lags[place] for place in near))
        query = select(events).select_from(jobs).join(events, last).where(jobs.c.number.in_({job for job, _ in near}))
        latest = defaultdict[int, list[job_pb2.JobEvent]](list)
        for row in await connection.execute(query.order_by(events.c.job, events.c.cursor)):
            latest[row.job].append(job_pb2.JobEvent.FromString(row.body))
        found = {(job, cursor): [event for event in latest[job] if event.cursor > cursor] for job, cursor in near}
    for job, cursor in lags.keys() - found.keys():
        query = select(events).where(events.c.job == job, events.c.cursor > cursor).order_by(events.c.cursor)
        some = query.limit(max(1, EVENTS_A_READ // (len(lags) - len(near))))
        found[job, cursor] = [job_pb2.JobEvent.FromString(row.body) for row in await connection.execute(some)]
    return found


async def waits(connection: AsyncConnection, now_ms: int) -> dict[str, list[job_pb2.Wait]]:
    """What jobs wait for, by job id, as shards that are alive have told last."""
    alive = select(shards.c.owner, shards.c.waits).where(shards.c.expires_ms > now_ms)
    found = defaultdict[str, list[job_pb2.Wait]](list)
    for row in await connection.execute(alive.order_by(shards.c.owner)):
        for wait in read_waits(row.waits):
            found[wait.job_id].append(
                job_pb2.Wait(
                    what=wait.what,
                    reason=wait.reason,
                    count=wait.count,
                    since_time=timestamp(wait.since_ms),
                    shard=shard_of(row.owner),
                )
            )
    return found
