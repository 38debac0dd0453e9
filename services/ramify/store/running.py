"""Jobs that run, as far as a shard has to know of them: there may be very many."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.rows import JOBS_A_STATEMENT, JobRow
from ramify.store.schema import DEFAULT_TENANT, jobs
from ramify.v1 import job_pb2

RUNNING = jobs.c.state == job_pb2.JOB_STATE_RUNNING
OTHERS_MAX = 64  # jobs of a tenant that are told at once and that were not known: so many are begun in a fraction of a second


@dataclass(frozen=True, slots=True)
class Pins:
    """Revisions of models that a job keeps to; empty: none yet."""

    generator: str = ""
    verifier: str = ""
    checker: str = ""


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that runs."""

    number: int
    job_id: str
    spec: job_pb2.JobSpec
    problems_total: int
    started_ms: int
    pins: Pins
    tenant: str = DEFAULT_TENANT
    priority: int = 0  # among its tenant's jobs: the higher one goes first

    @property
    def order(self) -> tuple[int, int]:
        """Its place among its tenant's jobs: the lower one goes first."""
        return -self.priority, self.number


async def open_jobs(connection: AsyncConnection, known: Mapping[str, OpenJob]) -> list[OpenJob]:
    """See `Work.open_jobs`."""
    numbers = {job.number: job for job in known.values()}
    place = func.row_number().over(partition_by=jobs.c.tenant, order_by=(jobs.c.priority.desc(), jobs.c.number)).label("place")
    every = select(jobs.c.number, jobs.c.tenant, place).where(RUNNING).subquery()
    most = OTHERS_MAX + max(Counter(job.tenant for job in known.values()).values(), default=0)
    first = select(every.c.number, every.c.tenant).where(every.c.place <= most).order_by(every.c.place)
    alive, others = set[int](), dict[str, list[int]]()
    for number, tenant in (await connection.execute(first)).all():
        alive.add(number)
        if number not in numbers:
            others.setdefault(tenant, []).append(number)
    behind = [number for number in numbers if number not in alive]  # they have ended, unless very many go before them
    alive |= {row.number for row in await _running(connection, select(jobs.c.number), jobs.c.number, behind)}
    new = [number for mine in others.values() for number in mine[:OTHERS_MAX]]
    found = [_open_job(row) for row in await _running(connection, select(jobs), jobs.c.number, new)]
    return sorted([*(job for number, job in numbers.items() if number in alive), *found], key=lambda job: job.order)


async def named(connection: AsyncConnection, job_ids: Collection[str]) -> list[OpenJob]:
    """See `Work.named`."""
    rows = await _running(connection, select(jobs), jobs.c.job_id, [*job_ids])
    return sorted((_open_job(row) for row in rows), key=lambda job: job.order)


async def _running(
    connection: AsyncConnection, query: Select[Any], column: Column[Any], values: Sequence[int | str]
) -> list[JobRow]:
    """What `query` finds of the jobs that run and have one of some values in a column."""
    found = list[JobRow]()
    for start in range(0, len(values), JOBS_A_STATEMENT):
        some = column.in_(values[start : start + JOBS_A_STATEMENT])
        found += (await connection.execute(query.where(RUNNING, some))).all()
    return found


def _open_job(row: JobRow) -> OpenJob:
    pins = Pins(row.pin_generator, row.pin_verifier, row.pin_checker)
    spec = job_pb2.JobSpec.FromString(row.spec)
    return OpenJob(row.number, row.job_id, spec, row.problems_total, row.started_ms, pins, row.tenant, row.priority)
