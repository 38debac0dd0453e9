"""Serves what a process tells Prometheus."""

import contextlib
import logging
from collections.abc import Iterator
from math import nan
from pathlib import Path

from cryptography import x509
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics, start_http_server

log = logging.getLogger(__name__)


@contextlib.contextmanager
def metrics_server(listen: str, registry: CollectorRegistry) -> Iterator[int]:
    """Serves what is in the registry, and the process's own CPU time, memory and files, over HTTP at /metrics.

    It has a thread of its own. Port 0 takes a free one.

    Args:
        listen: HOST:PORT.
        registry: What to serve.

    Yields:
        The port.

    Raises:
        OSError: The address can't be had; also when it is none.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # a series more for each counter, which nobody asks for
    ProcessCollector(registry=registry)
    host, _, port = listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host or "127.0.0.1", registry)
    except (OSError, ValueError, OverflowError) as error:
        raise OSError(f"cannot serve metrics on '{listen}': {error}") from error
    log.info("metrics are at http://%s:%d/metrics", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def tell_certificate(file: Path, registry: CollectorRegistry) -> None:
    """Have the registry tell when the first certificate of a PEM file ends, as it is whenever it is asked."""
    gauge = Gauge("ramify_certificate_expires_timestamp_seconds", "When the certificate that is shown ends", registry=registry)
    gauge.set_function(lambda: _expires_s(file))


def _expires_s(file: Path) -> float:
    """Seconds since the epoch; NaN: it can't be read."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return nan
