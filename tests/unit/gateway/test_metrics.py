"""What a gateway tells Prometheus of the calls that it was asked."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from prometheus_client import CollectorRegistry

from ramify.metrics import metrics_server, tell_certificate
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.system import LIMITS, PUZZLES, SPEC, System, failure, first, running
from tests.waiting import until


class Told:
    """The figures of a registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def of(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"ramify_gateway_{name}", labels)

    async def until(self, wanted: float, name: str, **labels: str) -> None:
        """A call is counted when it has ended here, which its client may see before."""
        await asyncio.to_thread(until, lambda: self.of(name, **labels) == wanted)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def system(told: Told, tmp_path: Path) -> AsyncIterator[System]:
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", LIMITS, told.registry) as system:
        await system.jobs.put_models(system.MODELS)
        yield system


async def test_calls_are_counted_by_how_they_ended(system: System, told: Told) -> None:
    assert told.of("calls_total", method="CancelJob", code="OK") == 0, "a rate needs to have seen it"
    job = await system.running_job()
    await system.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))
    await failure(system.stub.GetJob(pb.GetJobRequest(job_id="another")))
    wrong: Any = system.stub.CreateJob()
    await wrong.write(first("", SPEC, PUZZLES))
    assert await wrong.code() is grpc.StatusCode.INVALID_ARGUMENT
    await told.until(1, "calls_total", method="GetJob", code="OK")
    await told.until(1, "calls_total", method="GetJob", code="NOT_FOUND")
    await told.until(1, "calls_total", method="CreateJob", code="OK")
    await told.until(1, "calls_total", method="CreateJob", code="INVALID_ARGUMENT")
    assert told.of("call_seconds_count", method="GetJob") == 2
    assert told.of("refusals_total", reason="JobNotFound") == 1
    assert told.of("refusals_total", reason="InvalidRequest") == 1


async def test_a_watch_is_open_until_its_client_leaves_and_tells_how_late_events_are(system: System, told: Told) -> None:
    job = await system.running_job()
    watch: Any = system.stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id))
    await watch.read()
    assert told.of("open_calls", method="WatchJob") == 1
    assert told.of("watch_delay_seconds_count") == 0, "what was there before says nothing"
    await system.finish(job, 0)
    await watch.read()
    await told.until(1, "watch_delay_seconds_count")
    assert 0 <= (told.of("watch_delay_seconds_sum") or 0) < 30
    watch.cancel()
    await told.until(1, "calls_total", method="WatchJob", code="CANCELLED")
    assert told.of("open_calls", method="WatchJob") == 0


async def test_they_are_served_to_prometheus(told: Told) -> None:
    with metrics_server("127.0.0.1:0", told.registry) as port:
        found = (await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{port}/metrics")).text
    assert "process_resident_memory_bytes" in found


def test_it_is_told_when_the_certificate_ends_as_it_is_now(told: Told, tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "tls.crt"
    tell_certificate(file, told.registry)
    name = "ramify_certificate_expires_timestamp_seconds"
    for year in (2040, 2041):
        ends = datetime(year, 5, 17, tzinfo=UTC)
        authority.issue_cert("gateway", not_after=ends).cert_chain_pems[0].write_to_path(file)
        assert told.registry.get_sample_value(name) == ends.timestamp()
    file.write_text("half of it")
    assert isnan(told.registry.get_sample_value(name) or 0)
