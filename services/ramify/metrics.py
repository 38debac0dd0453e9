"""Serves what a process tells Prometheus."""

import contextlib
import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics, start_http_server

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
