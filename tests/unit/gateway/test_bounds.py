"""What a client may ask of a gateway, and what one that does not read gets."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from sqlalchemy import insert, select, update

from ramify.gateway import calls
from ramify.gateway.admission import fill_spec
from ramify.gateway.errors import InvalidRequest, status_of
from ramify.gateway.limits import GatewayLimits
from ramify.store.audit import Actor
from ramify.store.keys import Keys, Role
from ramify.store.schema import events, jobs
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from ramify.v1.job_service_pb2_grpc import JobServiceStub
from tests.unit.gateway.guarded import bearer
from tests.unit.gateway.system import PUZZLES, SPEC, System, failure, first, further, problems, running, told
from tests.waiting import until

WATCHES = 1000
EVENTS, EVENT_BYTES = 100, 4096
NARROW = (("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0))  # what a client takes before it is read


class Counted(System):
    """A system whose gateway tells how it fares."""

    def __init__(self, system: System, registry: CollectorRegistry) -> None:
        super().__init__(system.database, system.gateway, system.address, system.channel)
        self._registry = registry

    async def until_watched(self, count: int) -> None:
        """Wait until there are so many open watches."""
        labels = {"method": "WatchJob"}
        open_now = partial(self._registry.get_sample_value, "ramify_gateway_open_calls", labels)
        await asyncio.to_thread(until, lambda: open_now() == count)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[Counted]:
    limits, registry = GatewayLimits(poll_s=0.05, read_s=0.2), CollectorRegistry()
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", limits, registry) as found:
        await found.jobs.put_models(found.MODELS)
        yield Counted(found, registry)


async def test_messages_that_are_too_large(system: Counted) -> None:
    huge = first(some=problems("1" * (5 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await system.stub.CreateJob(iter([huge])).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await system.stub.ListJobs(pb.ListJobsRequest(), metadata=(("padding", "x" * (20 << 10)),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await system.listed() == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            job_pb2.JobSpec(routing=job_pb2.Routing(regions=[f"r{number}" for number in range(101)])),
            "spec.routing.regions are 101",
        ),
        (job_pb2.JobSpec(priority=101), "spec.priority is 101, not from -100 to 100"),
        (job_pb2.JobSpec(generator="g" * 201), "spec.generator has 201 characters"),
        (job_pb2.JobSpec(search=job_pb2.Search(policy="p" * 201)), "spec.search.policy has 201 characters"),
        (job_pb2.JobSpec(search=job_pb2.Search(pattern="p" * 4097)), "spec.search.pattern has 4097 characters"),
        (job_pb2.JobSpec(name="n" * (1 << 20)), "bytes, but at most 1,048,576 are allowed"),
    ],
)
def test_specs_that_are_too_large(more: job_pb2.JobSpec, why: str) -> None:
    spec = job_pb2.JobSpec()
    spec.CopyFrom(SPEC)
    spec.MergeFrom(more)
    with pytest.raises(InvalidRequest, match=why):
        fill_spec(spec, System.MODELS)


def test_a_message_fits_into_what_clients_take() -> None:
    status = status_of(InvalidRequest("\N{SNOWMAN}" * 10_000))
    assert len(status.details) < 1010
    assert sum(len(value) for _, value in status.trailing_metadata) + 3 * len(status.details.encode()) < 16 << 10


async def test_who_does_not_read_is_sent_away_and_holds_up_nobody(system: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GOODBYE_S", 0.1)
    job = await system.running_job()
    await lengthen(system, job)
    async with grpc.aio.insecure_channel(system.address, options=NARROW) as channel:
        slow = JobServiceStub(channel).WatchJob(pb.WatchJobRequest(job_id=job.job_id))
        assert await read_one(slow) == 1
        quick = system.stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id))
        assert [await read_one(quick) for _ in range(EVENTS + 1)] == [*range(1, EVENTS + 2)]
        await system.until_watched(1)
        cursors: list[int] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(slow, cursors)
        code, message = told(caught.value)
        assert (code, "has read nothing for 0.2 s" in message) == (grpc.StatusCode.UNAVAILABLE, True)
        again = JobServiceStub(channel).WatchJob(pb.WatchJobRequest(job_id=job.job_id, cursor=cursors[-1]))
        assert await read_one(again) == cursors[-1] + 1
        again.cancel()
        quick.cancel()


async def read_one(watch: Any) -> int:
    """The cursor of the next event."""
    return int((await watch.read()).event.cursor)


async def read_all(watch: Any, cursors: list[int]) -> None:
    """Read to the end, and remember the cursors."""
    while True:
        cursors.append(await read_one(watch))


async def lengthen(system: Counted, job: job_pb2.Job) -> None:
    """Write long events into a job's history."""
    async with system.database.write() as connection:
        number = await connection.scalar(select(jobs.c.number).where(jobs.c.job_id == job.job_id))
        for cursor in range(2, EVENTS + 2):
            body = job_pb2.JobEvent(cursor=cursor, notice=job_pb2.Notice(text="x" * EVENT_BYTES)).SerializeToString()
            await connection.execute(insert(events).values(job=number, cursor=cursor, body=body))
        await connection.execute(update(jobs).where(jobs.c.number == number).values(cursor=EVENTS + 1))


async def test_a_thousand_idle_streams(system: Counted) -> None:
    job = await system.running_job()
    idle: list[Any] = [system.stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id, cursor=1)) for _ in range(WATCHES)]
    waiting = [asyncio.create_task(watch.read()) for watch in idle]
    await system.until_watched(WATCHES)
    other = await system.create(first("meanwhile", SPEC, PUZZLES), further(3, last=True))
    assert (await system.stub.GetJob(pb.GetJobRequest(job_id=other.job_id))).job.progress.problems_total == 3
    await system.finish(job, 0)
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert {answer.event.cursor for answer in answers} == {2}
    for watch in idle:
        watch.cancel()
    await system.until_watched(0)


async def test_streams_that_take_no_key_are_bounded_and_take_no_job_s_place(tmp_path: Path) -> None:
    limits, registry = GatewayLimits(calls_max=2, other_streams_max=2), CollectorRegistry()
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", limits, registry) as system:
        health: Any = health_pb2_grpc.HealthStub(system.channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(system.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        question, asked = reflection_pb2.ServerReflectionRequest(list_services=""), reflection.ServerReflectionInfo()
        await asked.write(question)
        assert (await asked.read()).HasField("list_services_response")
        for more in (*(health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)), reflection.ServerReflectionInfo()):
            code, why = await failure(more.read())
            assert (code, "2 open streams of health and reflection" in why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        assert registry.get_sample_value("ramify_gateway_refusals_total", {"reason": "TooManyCalls"}) == 4
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        await system.stub.ListModels(pb.ListModelsRequest())
        await asked.done_writing()
        assert await asked.read() is grpc.aio.EOF
        again = reflection.ServerReflectionInfo(iter([question]))
        assert (await again.read()).HasField("list_services_response"), "a place that is free is free"
        watch.cancel()


async def test_uploads_without_a_key_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "GOODBYE_S", 60.0)
    limits, registry = GatewayLimits(calls_max=2, goodbyes_max=3), CollectorRegistry()
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", limits, registry, keys=True) as system:
        _, key = await Keys(system.database).create(Actor("", "test"), "acme", Role.READ, "test")
        silent: list[Any] = [system.stub.CreateJob() for _ in range(20)]
        ends = [asyncio.create_task(call.code()) for call in silent]
        for end in islice(asyncio.as_completed(ends), 17):
            assert await end is grpc.StatusCode.UNAUTHENTICATED
        assert sum(not end.done() for end in ends) == 3, "only these are waited for"
        await system.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(key))
        assert registry.get_sample_value("ramify_gateway_refusals_total", {"reason": "Unauthenticated"}) == 20
        assert registry.get_sample_value("ramify_gateway_open_calls", {"method": "CreateJob"}) == 3
        for call in silent:
            call.cancel()
        await asyncio.wait(ends)
