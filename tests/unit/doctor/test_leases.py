import json
from dataclasses import replace

from sqlalchemy import delete, update

from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.leases import shards_are_heard_of, slots_are_held
from ramify.cli.doctor.subject import Subject
from ramify.cli.doctor.work import waits
from ramify.store.clock import db_now_ms
from ramify.store.jobs import Jobs
from ramify.store.schema import slots
from tests.unit.doctor.defects import execute, put_shard
from tests.unit.store.helpers import running_job


async def test_without_jobs_nobody_need_hold_anything(subject: Subject) -> None:
    assert (await shards_are_heard_of(subject)).summary == "none, and no job runs"
    assert (await slots_are_held(subject)).summary == "0 of 64 are held, and no job runs"


async def test_jobs_without_a_shard(subject: Subject) -> None:
    await running_job(subject.database)
    missing = await shards_are_heard_of(subject)
    assert (missing.level, missing.summary) == (Level.BAD, "1 job runs, and no shard is alive")
    assert (await slots_are_held(subject)).level is Level.SKIPPED
    stopped = await shards_are_heard_of(replace(subject, stopped=True))
    assert (stopped.level, stopped.summary) == (Level.WARN, "1 job runs, and no system does")


async def test_all_is_held(subject: Subject) -> None:
    await running_job(subject.database)
    await put_shard(subject.database, "shard:0@1f", ends_in_s=14)
    alive = await shards_are_heard_of(subject)
    assert (alive.level, alive.details) == (Level.OK, ("shard:0@1f: 64 slots, 192 live chains, heard of 1 s ago",))
    assert (await slots_are_held(subject)).summary == "all 64 are held"


async def test_a_shard_that_is_silent_and_slots_that_are_free(subject: Subject) -> None:
    await running_job(subject.database)
    await put_shard(subject.database, "shard:0@1f", ends_in_s=-5, held=range(3))
    await put_shard(subject.database, "shard:1@2e", ends_in_s=10, held=range(3, 62))
    silent = await shards_are_heard_of(subject)
    assert (silent.level, silent.summary) == (Level.WARN, "1 shard of 2 not heard of")
    assert silent.details[0] == "shard:0@1f: 3 slots, 9 live chains, not heard of for 20 s"
    unheld = await slots_are_held(subject)
    assert (unheld.level, unheld.summary) == (Level.WARN, "5 of 64 slots are held by nobody while jobs run")
    assert unheld.details == ("shard:0@1f: the lease of 0-2 ended 5 s ago", "free: 62-63")
    assert "shard:1 should claim them" in unheld.remedy
    await execute(subject.database, update(slots).where(slots.c.owner == "shard:1@2e").values(expires_ms=0))


async def test_rows_of_slots_that_are_gone(subject: Subject) -> None:
    await execute(subject.database, delete(slots).where(slots.c.slot.in_([7, 8])))
    finding = await slots_are_held(subject)
    assert (finding.level, finding.summary) == (Level.BAD, "the rows of slots 7-8 are not there")


async def test_what_jobs_wait_for(subject: Subject) -> None:
    assert (await waits(subject)).level is Level.OK
    job = await running_job(subject.database)
    async with subject.database.read() as connection:
        since_ms = await db_now_ms(connection) - 12_000
    wait = {"job_id": job.job_id, "what": "verifier", "reason": "connection refused", "count": 340, "since_ms": since_ms}
    await put_shard(subject.database, "shard:0@1f", ends_in_s=10, waits=json.dumps([wait]))
    finding = await waits(subject)
    assert (finding.level, finding.summary) == (Level.WARN, "1 of 1 running jobs wait for something")
    assert finding.details == (f"job {job.job_id}: 340 chains for verifier: connection refused, 12 s",)
    await Jobs(subject.database).cancel(job.job_id)
    assert (await waits(subject)).summary == "no job runs"


async def test_what_a_shard_has_told_that_is_gone_is_no_wait(subject: Subject) -> None:
    job = await running_job(subject.database)
    wait = {"job_id": job.job_id, "what": "verifier", "reason": "connection refused", "count": 340, "since_ms": 0}
    await put_shard(subject.database, "shard:0@1f", ends_in_s=-1, waits=json.dumps([wait]))
    assert (await waits(subject)).summary == "no job waits for anything"
