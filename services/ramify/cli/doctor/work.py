"""Checks of jobs: what they wait for, whether they move, whether their models are there."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, select

from ramify.cli.doctor.findings import Finding, Level, listed
from ramify.cli.doctor.running import waits_found
from ramify.cli.doctor.subject import Subject
from ramify.cli.output import counted, duration
from ramify.store.clock import db_now_ms, now_ms
from ramify.store.leases import read_waits, shard_of
from ramify.store.schema import events, jobs, models, shards
from ramify.v1 import job_pb2

STILL_S = 300  # a job whose history has been silent for longer does not move
JOBS_MAX = 10_000  # that run, the newest first


async def waits(subject: Subject) -> Finding:
    """What the shards that are alive say that jobs wait for."""
    running = {row.job_id for row in await _running(subject, select(jobs.c.job_id))}
    async with subject.database.read() as connection:
        alive = select(shards.c.owner, shards.c.waits).where(shards.c.expires_ms > await db_now_ms(connection))
        rows = (await connection.execute(alive)).all()
    found: dict[str, list[job_pb2.Wait]] = {}
    for row in rows:
        for wait in read_waits(row.waits):
            if wait.job_id not in running:  # it has ended since
                continue
            told = job_pb2.Wait(what=wait.what, reason=wait.reason, count=wait.count, shard=shard_of(row.owner))
            told.since_time.FromMilliseconds(wait.since_ms)
            found.setdefault(wait.job_id, []).append(told)
    return waits_found(found, len(running), datetime.now(UTC))


async def jobs_move(subject: Subject) -> Finding:
    """Whether something has happened of late in every job that runs, those apart that wait for their turn."""
    at = and_(events.c.job == jobs.c.number, events.c.cursor == jobs.c.cursor)
    columns = (jobs.c.job_id, jobs.c.steps, jobs.c.problems_done, jobs.c.problems_total, events.c.body)
    rows = await _running(subject, select(*columns).select_from(jobs.outerjoin(events, at)))
    since_s = [(now_ms() - _last_ms(row.body)) / 1000 for row in rows]
    moving = sum(each <= STILL_S for each in since_s)
    still = [(each, row) for each, row in zip(since_s, rows, strict=True) if each > STILL_S]
    stuck = [(each, row) for each, row in still if row.steps or not moving]
    if stuck:
        stuck.sort(key=lambda pair: -pair[0])
        return Finding(
            "progress",
            Level.WARN,
            f"{counted(len(stuck), 'running job')} of {len(rows):,} not moved for more than {duration(STILL_S)}",
            listed([_stands_still(each, row) for each, row in stuck]),
            why="a step takes seconds; a job that is silent for so long is stuck, or others are served before it",
            remedy="look at what is said of shards, slots and waits here, and at the engines in the Ray dashboard",
        )
    queued = f", {len(still):,} wait for their turn" if still else ""
    return Finding(
        "progress", Level.OK, f"{moving:,} of {counted(len(rows), 'running job')} move{queued}" if rows else "no job runs"
    )


def _last_ms(body: bytes | None) -> int:
    return job_pb2.JobEvent.FromString(body).time.ToMilliseconds() if body else 0


def _stands_still(since_s: float, row: Any) -> str:
    lasts = f"for {duration(since_s)}" if row.body else "ever"
    return f"job {row.job_id}: nothing {lasts}, {row.problems_done:,} of {row.problems_total:,} problems done"


async def pins(subject: Subject) -> Finding:
    """Whether the models that running jobs use are there, in the revisions that the jobs are pinned to."""
    columns = (jobs.c.job_id, jobs.c.spec, jobs.c.pin_generator, jobs.c.pin_verifier, jobs.c.pin_checker)
    rows = await _running(subject, select(*columns))
    async with subject.database.read() as connection:
        known = {(row.role, row.name): row.revision for row in (await connection.execute(select(models))).all()}
    lines = [line for row in rows for line in _unmet(row, known)]
    if lines:
        return Finding(
            "models",
            Level.BAD,
            f"{counted(len(lines), 'model')} that running jobs need {'is' if len(lines) == 1 else 'are'} not there",
            listed(lines),
            why="a job keeps to the revisions that it began with, so that its scores can be compared: it waits for them",
            remedy="bring the revision back (`ramify up --engine`, `--verifier-model`), or cancel the job and submit it anew",
        )
    if not known:
        return Finding("models", Level.OK if not rows else Level.WARN, "no scheduler has started on this store yet")
    return Finding("models", Level.OK, ", ".join(f"{name} ({role})" for role, name in sorted(known)))


def _unmet(row: Row[Any], known: dict[tuple[str, str], str]) -> list[str]:
    spec = job_pb2.JobSpec.FromString(row.spec)
    lines = []
    for role, name, pin in (
        *_pinned("generator", [each.model for each in spec.generators] or [spec.generator], row.pin_generator),
        *_pinned("verifier", [each.model for each in spec.verifiers] or [spec.verifier], row.pin_verifier),
        ("checker", spec.checker, row.pin_checker),
    ):
        if name and known and (role, name) not in known:
            lines.append(f"job {row.job_id}: its {role} {name} is none of the system's")
        elif name and known and pin and known[role, name] != pin:
            lines.append(f"job {row.job_id}: its {role} {name} is pinned to {pin}, and the system has {known[role, name]}")
    return lines


def _pinned(role: str, names: list[str], pin: str) -> list[tuple[str, str, str]]:
    """Role, name and revision of each of the models; no revision as long as the job has none."""
    revisions = pin.split(",") if pin else [""] * len(names)
    return [(role, name, revision) for name, revision in zip(names, revisions, strict=True)]


async def _running(subject: Subject, query: Any) -> Any:
    query = query.where(jobs.c.state == job_pb2.JOB_STATE_RUNNING).order_by(jobs.c.number.desc()).limit(JOBS_MAX)
    async with subject.database.read() as connection:
        return (await connection.execute(query)).all()
