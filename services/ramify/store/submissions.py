"""Submissions: jobs that come whole, in one message, many of which are stored by one transaction."""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.forest.ids import tree_ids
from ramify.store import audit, schema
from ramify.store.audit import Actor
from ramify.store.clock import db_now_ms
from ramify.store.database import Database, insert_new
from ramify.store.errors import QuotaExceeded, QuotaTooSmall
from ramify.store.rows import JobRow, event_values, job_message
from ramify.store.schema import SLOTS, events, jobs, problems, segments
from ramify.store.tenants import Room, hold, told_of
from ramify.store.together import together
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

JOBS_A_COMMIT = 64
PROBLEMS_MAX = 64  # of a job that is stored with others: what a commit writes is bounded, for shards wait for it
BYTES_MAX = 64 << 10  # of these, and of its spec
KEPT_MS = 24 * 3600 * 1000  # an upload that nobody goes on with is given up after this


class TenantHeld(Exception):
    """Another transaction holds a submission's tenant, on PostgreSQL: what is to wait for it, waits apart from other tenants'."""


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

    @property
    def whole(self) -> bool:
        """Whether it is all of a job, and nothing is wrong with it by itself."""
        ids = [new.problem.id for new in self.problems if new.problem.id]
        return self.last and not self.offset and len(self.problems) > 0 and len(set(ids)) == len(ids)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job, and who makes it."""

    request_id: str  # as the store has it
    tenant: str
    by: Actor | None  # None: it is not written down
    asked: bytes  # JobSpec as it came
    spec: job_pb2.JobSpec  # with every default
    problems: Sequence[NewProblem]
    call: str

    @property
    def small(self) -> bool:
        """Whether it may be stored with others."""
        if len(self.problems) > PROBLEMS_MAX:
            return False
        spec_bytes = len(self.asked) + self.spec.ByteSize()
        return spec_bytes + sum(new.problem.ByteSize() for new in self.problems) <= BYTES_MAX

    def row(self, now_ms: int) -> dict[str, Any]:
        """The columns of `jobs` that are not what they are for every new job."""
        return {
            "job_id": secrets.token_hex(8),
            "tenant": self.tenant,
            "priority": self.spec.priority,
            "request_id": self.request_id,
            "spec": self.spec.SerializeToString(deterministic=True),
            "spec_asked": self.asked,
            "state": job_pb2.JOB_STATE_UPLOADING,
            "uploader": self.call,
            "touched_ms": now_ms,
            "created_ms": now_ms,
        }


@together(most=JOBS_A_COMMIT)
async def submit(
    database: Database, submissions: Sequence[Submission], tenant: str | None, clock_ms: Callable[[], int]
) -> list[job_pb2.Job | Exception | None]:
    """Make jobs that run; durable on return.

    Args:
        database: the store.
        submissions: the jobs.
        tenant: whose they all are, who may be waited for; None: anybody's, where nobody is to wait for another's tenant.
        clock_ms: the time by which uploads are judged.

    Returns:
        For each the job; or why its tenant can't have it; or `TenantHeld`; or None where there is a job of its request: see
        `Uploads.create`.
    """
    async with database.turns.all, database.write() as connection:
        now = await db_now_ms(connection)
        names = {each.tenant for each in submissions}
        rooms = await hold(connection, names, now, wait=tenant is not None)
        left = names - rooms.keys() if database.tells and tenant is None else set[str]()
        held = await told_of(connection, left) if left else left
        new, refused = await _admitted(connection, submissions, rooms, held)
        await expire(connection, clock_ms(), len(new))
        made = await _make(connection, new, clock_ms())
        audited = [
            audit.entry(now, each.by, "CreateJob", row.job_id, detail=f"problems: {row.problems_total}")
            for each in new
            if each.by is not None and (row := made.get(each.request_id)) is not None
        ]
        if audited:
            await connection.execute(insert(schema.audit), audited)
        for row in made.values():
            await notify(connection, Channel.JOBS, row.job_id)
            await notify(connection, Channel.EVENTS, row.job_id)
    jobs_made = {id(each): job_message(made[each.request_id]) for each in new if each.request_id in made}
    return [refused.get(id(each)) or jobs_made.get(id(each)) for each in submissions]


async def _admitted(
    connection: AsyncConnection, submissions: Sequence[Submission], rooms: Mapping[str, Room], held: Collection[str]
) -> tuple[list[Submission], dict[int, Exception]]:
    """Those whose requests are new, of each request one; and those, by `id`, that their tenants can't have, or not now."""
    # After the tenants are held: whoever held one may have made the job, and what is there is never refused.
    asked = select(jobs.c.request_id).where(jobs.c.request_id.in_({each.request_id for each in submissions}))
    known = set((await connection.scalars(asked)).all())
    new, refused = list[Submission](), dict[int, Exception]()
    for each in sorted(submissions, key=lambda each: each.request_id):  # two that make the same wait for each other in one order
        if each.tenant in held:
            refused[id(each)] = TenantHeld()
        if each.tenant in held or each.request_id in known:
            continue
        try:
            if each.tenant in rooms:
                rooms[each.tenant].admit(chains_at_once(each.spec.search))
        except (QuotaExceeded, QuotaTooSmall) as error:
            refused[id(each)] = error
        else:
            known.add(each.request_id)
            new.append(each)
    return new, refused


async def _make(connection: AsyncConnection, new: Sequence[Submission], now_ms: int) -> dict[str, JobRow]:
    """Write jobs with their problems and first events; their rows by request, less those that another one has made just now."""
    if not new:
        return {}
    begun = {"state": job_pb2.JOB_STATE_RUNNING, "cursor": 1, "started_ms": now_ms, "segment_floor": await newest(connection)}
    values = [{**each.row(now_ms), **begun, "problems_total": len(each.problems)} for each in new]
    rows = (await connection.execute(insert_new(connection, jobs).returning(jobs), values)).all()
    made = {row.request_id: row for row in rows}
    if made:
        of_made = [(made[each.request_id], each.problems) for each in new if each.request_id in made]
        await connection.execute(insert(problems), [row for job, some in of_made for row in problem_rows(job, 0, some)])
        await connection.execute(insert(events), [event_values(row, now_ms) for row in made.values()])
    return made


async def newest(connection: AsyncConnection) -> int:
    """The newest segment: none up to it holds a step of a job that is made now."""
    return int(await connection.scalar(select(func.coalesce(func.max(segments.c.segment_id), 0))) or 0)


async def expire(connection: AsyncConnection, now_ms: int, limit: int) -> None:
    """Give up stale uploads, one for each job that is made: so the time that it takes is bounded, and what is left as well."""
    stale = (
        select(jobs.c.number)
        .where(jobs.c.state == job_pb2.JOB_STATE_UPLOADING, jobs.c.touched_ms < now_ms - KEPT_MS)
        .order_by(jobs.c.number)
        .limit(limit)
        .with_for_update(skip_locked=True)  # somebody goes on with it just now, or undoes it
    )
    if numbers := (await connection.scalars(stale)).all():
        await connection.execute(jobs.delete().where(jobs.c.number.in_(numbers)))


def chains_at_once(search: job_pb2.Search) -> int:
    """Chains that one tree has at most at a time, of a search with every default."""
    return search.parallel * max(1, search.branch) if search.HasField("parallel") else search.n


def problem_rows(job: JobRow, first: int, some: Sequence[NewProblem]) -> list[dict[str, Any]]:
    """Rows of `problems`, of which the first has index `first`."""
    slots = tree_ids(job.job_id, np.arange(first, first + len(some))) % np.uint64(SLOTS)
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
        for place, (new, slot) in enumerate(zip(some, slots.tolist(), strict=True))
    ]
