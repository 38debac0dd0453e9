"""What an operator sees of a gateway, for Prometheus. No label holds a job's id or a caller's words."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ramify.gateway.errors import GatewayError
from ramify.store.errors import StoreError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INTERNAL = "Internal"  # reason of a refusal that no error of ours tells


@dataclass(slots=True)
class Call:
    """One that is under way."""

    code: grpc.StatusCode = grpc.StatusCode.OK


class Metrics:
    """All that a gateway tells, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def name(of: str) -> str:
            return f"ramify_gateway_{of}"

        self._calls = Counter(name("calls"), "Calls that have ended", ("method", "code"), registry=registry)
        self._seconds = Histogram(
            name("call_seconds"),
            "How long calls took; a watch as long as it was open",
            ("method",),
            buckets=SECONDS,
            registry=registry,
        )
        self._open = Gauge(name("open_calls"), "Calls under way", ("method",), registry=registry)
        self._refusals = Counter(
            name("refusals"), "Calls that ended with an error, by what it was", ("reason",), registry=registry
        )
        self._watch_delay = Histogram(
            name("watch_delay_seconds"), "From an event's commit to its being sent to a watch", buckets=SECONDS, registry=registry
        )

    def expect(self, methods: Iterable[str]) -> None:
        """Tell of these from the start: a rate needs to have seen a zero."""
        for method in methods:
            self._calls.labels(method, grpc.StatusCode.OK.name)
            self._seconds.labels(method)
            self._open.labels(method)

    @contextmanager
    def call(self, method: str) -> Iterator[Call]:
        """Count a call, whose `code` is to be set where it is not OK."""
        began_s, call, still_open = time.perf_counter(), Call(), self._open.labels(method)
        still_open.inc()
        try:
            yield call
        except BaseException:  # if nobody said what it is, it is the client that has left
            if call.code is grpc.StatusCode.OK:
                call.code = grpc.StatusCode.CANCELLED
            raise
        finally:
            still_open.dec()
            self._seconds.labels(method).observe(time.perf_counter() - began_s)
            self._calls.labels(method, call.code.name).inc()

    def refused(self, error: Exception) -> None:
        """Count what a call failed with."""
        self._refusals.labels(type(error).__name__ if isinstance(error, GatewayError | StoreError) else INTERNAL).inc()

    def watched(self, committed_s: float) -> None:
        """An event is sent to a watch that has waited for it; it was committed at that time, in seconds since the epoch."""
        self._watch_delay.observe(max(0.0, time.time() - committed_s))
