from importlib.metadata import version

import grpc
import pytest
from sqlalchemy import update

from ramify.store.clock import db_now_ms
from ramify.store.leases import Report, Wait
from ramify.store.schema import SLOTS, shards, slots
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.system import System

TTL_MS = 15_000


async def waits_of(system: System, job: job_pb2.Job) -> list[tuple[str, str, int, str]]:
    """By GetJob and ListJobs alike."""
    one = (await system.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).job
    (listed,) = (await system.stub.ListJobs(pb.ListJobsRequest())).jobs
    assert one == listed
    return [(wait.what, wait.reason, wait.count, wait.shard) for wait in one.waits]


async def put_back(system: System, owner: str, s: float) -> None:
    """As if a shard had been silent for so long."""
    async with system.database.write() as connection:
        for table in (shards, slots):
            past = {"expires_ms": table.c.expires_ms - int(s * 1000)}
            if table is shards:
                past["seen_ms"] = shards.c.seen_ms - int(s * 1000)
            await connection.execute(update(table).where(table.c.owner == owner).values(past))


async def test_a_job_tells_what_its_chains_wait_for(system: System) -> None:
    job = await system.running_job()
    await system.work.claim("shard:0@1f", range(SLOTS), TTL_MS)
    async with system.database.read() as connection:
        since = await db_now_ms(connection) - 12_000
    verifier = Wait(job.job_id, "verifier tiny24-prm", "connection refused", 340, since)
    await system.work.beat("shard:0@1f", TTL_MS, Report(waits=[verifier]))
    assert await waits_of(system, job) == [("verifier tiny24-prm", "connection refused", 340, "shard:0")]
    told = (await system.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).job.waits[0]
    assert told.since_time.ToMilliseconds() == since
    await system.work.beat("shard:0@1f", TTL_MS, Report())
    assert await waits_of(system, job) == []


async def test_a_shard_that_is_silent_is_waited_for_until_its_slots_are_taken_over(system: System) -> None:
    job = await system.running_job()
    assert await waits_of(system, job) == [("every slot", "is without a shard", 0, "")]
    for owner, mine in (("shard:0@1f", range(32)), ("shard:1@2e", range(32, SLOTS))):
        await system.work.claim(owner, mine, TTL_MS)
        await system.work.beat(owner, TTL_MS, Report())
    assert await waits_of(system, job) == []
    await put_back(system, "shard:1@2e", 20)
    assert await waits_of(system, job) == [("shard:1", "has not been heard of", 0, "shard:1")]
    await system.work.claim("shard:0@1f", range(32, SLOTS), TTL_MS)
    assert await waits_of(system, job) == []


async def test_a_job_that_has_ended_waits_for_nothing(system: System) -> None:
    job = await system.running_job()
    await system.stub.CancelJob(pb.CancelJobRequest(job_id=job.job_id))
    assert await waits_of(system, job) == []


async def test_answers_tell_the_version(system: System) -> None:
    call = system.stub.ListJobs(pb.ListJobsRequest())
    await call
    assert ("ramify-version", version("ramify")) in [tuple(pair) for pair in await call.trailing_metadata()]
    missing = system.stub.GetJob(pb.GetJobRequest(job_id="none"))
    with pytest.raises(grpc.aio.AioRpcError):
        await missing
