"""Traces of what is done for a job, across gateway, shards, engines and verifiers, by OpenTelemetry; off unless told where to.

All that is done for a job is one trace. Nobody stores or passes on which: a trace's id follows from the job's, and so does
the id of the span that it begins with, which is the job's submission. Work is done in batches, so a span stands for a batch. It
belongs to the trace of one of the jobs in it, and is linked to the others'.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

WHERE = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OFF = "OTEL_SDK_DISABLED"
LINKS_MAX = 32  # to jobs, of a span
FIELDS = propagate.get_global_textmap().fields
JOBS_MAX = 4096  # of which it is remembered whether they are sampled

Carrier = Mapping[str, str]
"""What tells another process which span it works for; empty: none."""

NOTHING: Mapping[str, str] = MappingProxyType({})
_NO_SPAN = NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
_first: ContextVar[str] = ContextVar("first", default="")  # the job whose trace the next span begins


class TracingError(Exception):
    """Traces are wanted, and can't be made."""


class _Place(NamedTuple):
    parent: context.Context
    links: list[Link]


class Traces:
    """What is told, once there is somewhere to tell it; see `configure`."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("ramify")
        self.of_job = lru_cache(JOBS_MAX)(self._of_job)

    def _of_job(self, job_id: str) -> SpanContext | None:
        """The span that a job's trace begins with; None: the job is not sampled."""
        trace_id, span_id = ids(job_id)
        sampled: bool = self._provider.sampler.should_sample(None, trace_id, "job").decision.is_sampled()  # type: ignore[no-untyped-call]
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)) if sampled else None

    @contextlib.contextmanager
    def span(self, name: str, jobs: Iterable[str], kind: SpanKind, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """See `span`."""
        if (place := self._place(jobs)) is None:
            yield _NO_SPAN
            return
        with self._tracer.start_as_current_span(name, place.parent, kind, attributes, place.links) as found:
            yield found

    @contextlib.contextmanager
    def served(self, name: str, carrier: Carrier, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """See `served`."""
        parent = propagate.extract(carrier)
        if not trace.get_current_span(parent).get_span_context().is_valid:
            yield _NO_SPAN
            return
        found = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        try:
            yield found
        except Exception as error:
            found.record_exception(error)
            found.set_status(StatusCode.ERROR, str(error))
            raise
        finally:
            found.end()

    def begun(self, job_id: str, name: str, began_ns: int, carrier: Carrier, attributes: Mapping[str, str | int]) -> None:
        """See `begun`."""
        caller = trace.get_current_span(propagate.extract(carrier)).get_span_context()
        token = _first.set(job_id)
        try:
            links = [Link(caller)] if caller.is_valid else []
            self._tracer.start_span(name, context.Context(), SpanKind.SERVER, attributes, links, began_ns).end()
        finally:
            _first.reset(token)

    def was(self, name: str, jobs: Iterable[str], began_ns: int, attributes: Mapping[str, str | int]) -> None:
        """See `was`."""
        if (found := self._place(jobs)) is not None:
            self._tracer.start_span(name, found.parent, SpanKind.INTERNAL, attributes, found.links, began_ns).end()

    def _place(self, jobs: Iterable[str]) -> "_Place | None":
        """Where a span belongs; None: no job of it is sampled."""
        roots = [root for job_id in islice(dict.fromkeys(jobs), LINKS_MAX) if (root := self.of_job(job_id)) is not None]
        if not roots:
            return None
        return _Place(trace.set_span_in_context(NonRecordingSpan(roots[0])), [Link(other) for other in roots[1:]])

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


_traces: Traces | None = None


@contextlib.contextmanager
def configured(service: str) -> Iterator[None]:
    """Trace inside the block, if the environment says where traces go to; what is left is sent at its end.

    Args:
        service: name of what this process is, unless OTEL_SERVICE_NAME says so.

    Raises:
        TracingError: what it takes is not installed.
    """
    configure(service)
    try:
        yield
    finally:
        close()


def configure(service: str, attributes: Mapping[str, str] = NOTHING, processors: "Sequence[SpanProcessor]" = ()) -> None:
    """Trace from now on, if the environment says where traces go to.

    Args:
        service: name of what this process is, unless OTEL_SERVICE_NAME says so.
        attributes: of the process.
        processors: take the spans in place of what the environment says.

    Raises:
        TracingError: what it takes is not installed.
    """
    global _traces  # one for each process, as the loggers are
    if not processors and (os.environ.get(OFF, "").lower() == "true" or not any(map(os.environ.get, WHERE))):
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        raise TracingError(
            f"{' or '.join(name for name in WHERE if os.environ.get(name))} is set, and traces can't be sent: "
            f"install what it takes with pip install 'ramify[otel]' ({error})"
        ) from error

    class Ids(RandomIdGenerator):
        """Random ones, but for the span that a job's trace begins with."""

        def generate_trace_id(self) -> int:
            return ids(job_id)[0] if (job_id := _first.get()) else super().generate_trace_id()

        def generate_span_id(self) -> int:
            return ids(job_id)[1] if (job_id := _first.get()) else super().generate_span_id()

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create({**named, **attributes}), id_generator=Ids())
    for processor in processors or [BatchSpanProcessor(OTLPSpanExporter())]:  # its queue is bounded: what is too much is dropped
        provider.add_span_processor(processor)
    _traces = Traces(provider)


def close() -> None:
    """Send what is left, and trace no more."""
    global _traces
    if _traces is not None:
        traces, _traces = _traces, None
        traces.close()


def ids(job_id: str) -> tuple[int, int]:
    """The id of a job's trace, and that of the span that it begins with."""
    digest = blake2b(job_id.encode(), digest_size=24, person=b"ramify trace").digest()
    return int.from_bytes(digest[:16]), int.from_bytes(digest[16:])


def span(
    name: str, jobs: Iterable[str], *, kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int
) -> contextlib.AbstractContextManager[Span]:
    """A span of what is done inside the block for some jobs, as far as they are sampled."""
    return contextlib.nullcontext(_NO_SPAN) if _traces is None else _traces.span(name, jobs, kind, attributes)


def served(name: str, carrier: Carrier, **attributes: str | int) -> contextlib.AbstractContextManager[Span]:
    """A span of what is done inside the block for the span that the caller told of; none if it told of none.

    It is nobody's parent: a generator may use it, of which nobody knows in which task it is closed.
    """
    return contextlib.nullcontext(_NO_SPAN) if _traces is None or not carrier else _traces.served(name, carrier, attributes)


def was(name: str, jobs: Iterable[str], began_ns: int, **attributes: str | int) -> None:
    """A span of what was done since `began_ns`, by `time.time_ns`, for some jobs, as far as they are sampled."""
    if _traces is not None:
        _traces.was(name, jobs, began_ns, attributes)


def begun(job_id: str, name: str, began_ns: int, carrier: Carrier, **attributes: str | int) -> None:
    """A job was submitted since `began_ns`: the span that its trace begins with, linked to the caller's own if there is one."""
    if _traces is not None:
        _traces.begun(job_id, name, began_ns, carrier, attributes)


def carrier() -> dict[str, str]:
    """What tells another process of the span that is at work now; empty: there is none."""
    found: dict[str, str] = {}
    if _traces is not None:
        propagate.inject(found)
    return found


def metadata() -> tuple[tuple[str, str], ...] | None:
    """The same, as metadata of a gRPC call."""
    return None if _traces is None else tuple(carrier().items())


def told_by(call: Any) -> Carrier:
    """What the caller of a gRPC call has told, of which `call` is the servicer's context."""
    return {} if _traces is None else {key: value for key, value in call.invocation_metadata() or () if key in FIELDS}
