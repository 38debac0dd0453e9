import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import grpc
import pytest

from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.running import (
    Service,
    answers,
    gateway_latency,
    gateway_version,
    gateway_waits,
    verifier_models,
)
from ramify.gateway.limits import GatewayLimits
from ramify.gateway.server import Gateway
from ramify.store.database import Database
from ramify.store.jobs import ModelRow
from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.rules import RULES
from ramify.verifier.server import VerifierServer
from tests.unit.doctor.defects import put_shard
from tests.unit.store.helpers import running_job

PATIENCE_S = 30


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@asynccontextmanager
async def gateway(database: Database) -> AsyncIterator[Service]:
    server = Gateway(database, GatewayLimits())
    address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    try:
        yield Service(address, expected=True)
    finally:
        await server.stop(0)


@pytest.fixture
async def database(sqlite_store: str) -> AsyncIterator[Database]:
    database = Database(sqlite_store)
    await database.migrate()
    yield database
    await database.close()


@asynccontextmanager
async def verifier(*, open_: bool = True) -> AsyncIterator[Service]:
    server = VerifierServer()
    address = await server.start("127.0.0.1:0")
    try:
        if open_:
            await server.serve([RuleScorer(RULES["countdown"])])
        yield Service(address, expected=True)
    finally:
        await server.stop(drain_s=0)


async def test_a_gateway_that_serves(database: Database) -> None:
    async with gateway(database) as service:
        assert (await answers(service, "gateway")).summary == f"serves at {service.address}"
        assert (await gateway_version(service)).level is Level.OK
        assert (await gateway_latency(service)).level is Level.OK
        slow = await gateway_latency(service, clock=map(float, count()).__next__)
        assert (slow.level, slow.summary) == (Level.WARN, "a read takes 1,000 ms")


async def test_a_gateway_tells_what_jobs_wait_for(database: Database) -> None:
    async with gateway(database) as service:
        assert (await gateway_waits(service)).summary == "no job runs"
        job = await running_job(database)
        assert (await gateway_waits(service)).details == (f"job {job.job_id}: every slot is without a shard",)
        await put_shard(database, "shard:0@1f", ends_in_s=-5)
        assert (await gateway_waits(service)).details == (f"job {job.job_id}: shard:0 has not been heard of for 20 s",)


async def test_nobody_answers() -> None:
    async with verifier() as service:
        address = service.address
    gone = await answers(Service(address, expected=True), "verifier")
    assert (gone.level, gone.summary) == (Level.BAD, f"the verifier at {address} does not answer")
    assert "chains wait" in gone.why
    optional = await answers(Service(address, expected=False), "gateway")
    assert (optional.level, optional.summary) == (Level.SKIPPED, f"none answers at {address}, and none has to")


async def test_a_service_that_does_not_serve_yet_or_is_another() -> None:
    async with verifier(open_=False) as service:
        loading = await answers(service, "verifier")
        assert (loading.level, loading.summary) == (Level.BAD, f"the verifier at {service.address} is not serving")
    server = grpc.aio.server()  # which has no service at all
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    other = await answers(Service(f"127.0.0.1:{port}", expected=True), "gateway")
    await server.stop(0)
    assert (other.level, other.summary) == (Level.BAD, f"what serves at 127.0.0.1:{port} is no gateway")


async def test_models_of_a_verifier() -> None:
    revision = RULES["countdown"].revision
    async with verifier() as service:
        assert (await verifier_models(service, [])).summary == "countdown"
        same = [ModelRow("checker", "countdown", revision, "", ""), ModelRow("generator", "tiny24", "1", "\n", "")]
        assert (await verifier_models(service, same)).level is Level.OK
        other = [ModelRow("checker", "countdown", "old", "", ""), ModelRow("verifier", "tiny24-prm", "1", "", "")]
        finding = await verifier_models(service, other)
        assert finding.level is Level.BAD
        assert finding.details == (
            f"countdown is of revision {revision} there, and of old for the scheduler",
            "tiny24-prm, which jobs may ask for, is none of its models",
        )
