"""Traces of a job, from a real gateway, shell, engine actor and verifier, all in this process."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind

from ramify import logs, tracing
from ramify.scheduler.actors.config import EngineConfig
from ramify.scheduler.actors.engine_actor import EngineActor, RayEngine
from ramify.scheduler.actors.shell import Shell
from ramify.store.jobs import ModelRow
from ramify.store.work import Work
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from ramify.verifier.client import VerifierClient
from ramify.verifier.loading import load_scorers
from ramify.verifier.server import VerifierServer
from tests.unit.actors.house import LIMITS
from tests.unit.gateway.system import LIMITS as GATEWAY_LIMITS
from tests.unit.gateway.system import System, first, problems, running

PATIENCE_S = 60
ENGINE = EngineConfig("local:0", "simulated?time_scale=0&slots=16")
SEARCH = job_pb2.Search(policy="beam", n=4, max_steps=3, max_step_tokens=16)
SPEC = job_pb2.JobSpec(generator="simulated", verifier="simulated-prm", search=SEARCH)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Near:
    """An engine's actor in this process, as `RayEngine` calls it."""

    def __init__(self) -> None:
        self._actor = EngineActor.__ray_metadata__.modified_class(ENGINE)  # type: ignore[attr-defined]
        self.describe, self.generate = SimpleNamespace(remote=self._actor.describe), SimpleNamespace(remote=self._generate)

    async def _generate(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async for results in self._actor.generate(*arguments, **options):
            yield asyncio.sleep(0, results)


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """All that works on a job; it solves what it is given."""
    verifier = VerifierServer()
    address = await verifier.start("127.0.0.1:0")
    await verifier.serve(load_scorers(["simulated-prm=simulated"], [], 1))
    async with (
        running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", GATEWAY_LIMITS) as system,
        VerifierClient(address) as client,
    ):
        rows = [ModelRow("generator", "simulated", "", "\n", ""), ModelRow("verifier", "simulated-prm", "", "", "")]
        await system.jobs.put_models(rows)
        shell = Shell(Work(system.database), "shard:0@1", [RayEngine(ENGINE, [{}], Near())], client, LIMITS)
        run = asyncio.create_task(shell.run())
        yield system
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
    await verifier.stop(0)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure("ramify-test", processors=[SimpleSpanProcessor(exporter)])
    yield exporter
    tracing.close()


async def solved(system: System, *metadata: tuple[str, str]) -> job_pb2.Job:
    call = system.stub.CreateJob(metadata=metadata)
    await call.write(first("a request", SPEC, problems("one", "two"), last=True))
    job = (await call.read()).job
    await call.done_writing()
    async with asyncio.timeout(PATIENCE_S):
        async for _ in system.stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id)):
            pass
    found: job_pb2.Job = (await system.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).job
    assert found.state == job_pb2.JOB_STATE_DONE
    return found


def at(span: ReadableSpan) -> SpanContext:
    found: SpanContext | None = span.context
    assert found is not None
    return found


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


async def test_all_that_is_done_for_a_job_is_one_trace(system: System, spans: InMemorySpanExporter) -> None:
    job = await solved(system, ("traceparent", CALLER))
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    trace_id, root_id = tracing.ids(job.job_id)
    assert {at(span).trace_id for several in found.values() for span in several} == {trace_id}
    (begun,) = found["CreateJob"]
    assert (at(begun).span_id, begun.parent, begun.kind) == (root_id, None, SpanKind.SERVER)
    assert [format(link.context.span_id, "016x") for link in begun.links] == [CALLER.split("-")[2]], "the caller's own trace"
    ours = ["shard.admit", "shard.decide", "shard.commit", "engine.generate", "verifier.score", "ramify.v1.JobService/GetJob"]
    for name in ours:
        assert {parent(span) for span in found[name]} == {root_id}, name
    for served, asked in (
        ("engine.sample", "engine.generate"),
        ("ramify.v1.VerifierService/ScoreColumns", "verifier.score"),
    ):
        callers = {at(span).span_id for span in found[asked]}
        assert callers <= {parent(span) for span in found[served]}, "each call that has ended has its other side"
    assert {str((span.attributes or {})["engine"]) for span in found["engine.generate"]} == {"local:0"}
    assert not {"two", "one"} & {str(value) for span in spans.get_finished_spans() for value in (span.attributes or {}).values()}
    again = await solved(system)
    assert again.job_id == job.job_id
    assert [span.name for span in spans.get_finished_spans()].count("CreateJob") == 1, "a job is begun once"


async def test_nothing_is_traced_unless_it_is_asked_for(system: System) -> None:
    await solved(system, ("traceparent", CALLER))
    assert tracing.carrier() == {}
    assert tracing.metadata() is None
    with tracing.span("nothing", ["job"]) as span:
        assert isinstance(span, NonRecordingSpan)


def test_a_batch_of_several_jobs_is_linked_to_all_of_them(spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture) -> None:
    with tracing.span("batch", ["a", "b", "a", *(str(number) for number in range(100))]):
        record = logging.makeLogRecord({"msg": "inside"})
        logs._Fields({}).filter(record)
    (span,) = spans.get_finished_spans()
    assert at(span).trace_id == tracing.ids("a")[0]
    assert len(span.links) == tracing.LINKS_MAX - 1
    assert (span.links[0].context.trace_id, span.links[0].context.span_id) == tracing.ids("b")
    assert record.__dict__["trace_id"] == format(at(span).trace_id, "032x")


def test_jobs_are_sampled_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does something for a job decides alike, though nobody tells the others."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    jobs = [f"job {number}" for number in range(200)]
    seen = []
    for _ in range(2):
        exporter = InMemorySpanExporter()
        tracing.configure("ramify-test", processors=[SimpleSpanProcessor(exporter)])
        for job_id in jobs:
            tracing.begun(job_id, "CreateJob", 0, {})
            with tracing.span("work", [job_id]):
                pass
        tracing.close()
        spans = exporter.get_finished_spans()
        traces = [{at(span).trace_id for span in spans if span.name == name} for name in ("CreateJob", "work")]
        assert traces[0] == traces[1]
        seen.append(traces[0])
    assert seen[0] == seen[1]
    assert 60 < len(seen[0]) < 140


def test_what_it_takes_and_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(tracing.TracingError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set, .* pip install 'ramify\[otel\]'"):
        tracing.configure("ramify-test")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.configure("ramify-test")


class Collector:
    """Takes what is sent by OTLP."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []  # of service and span

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        for each in request.resource_spans:
            service = next(pair.value.string_value for pair in each.resource.attributes if pair.key == "service.name")
            self.names += [(service, span.name) for scope in each.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


async def test_a_process_sends_its_spans_where_it_is_told_to(tmp_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server

    collector, server = Collector(), grpc.aio.server()
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    program = "from ramify import tracing\nwith tracing.configured('ramify-gateway'):\n tracing.begun('job', 'CreateJob', 0, {})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    )
    async with asyncio.timeout(PATIENCE_S):
        assert await process.wait() == 0
    assert collector.names == [("ramify-gateway", "CreateJob")]
    await server.stop(0)
