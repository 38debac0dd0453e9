"""Health for those who speak no TLS and have no key, as a kubelet's gRPC probes: on a port of its own that tells nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

CALLS_MAX = 64

OPTIONS = (
    ("grpc.max_receive_message_length", 1024),  # a service's name is all that is asked with
    ("grpc.max_concurrent_streams", CALLS_MAX),
    ("grpc.max_allowed_incoming_connections", CALLS_MAX),
    ("grpc.so_reuseport", 0),
)


@asynccontextmanager
async def health_listener(listen: str, servicer: Any) -> AsyncIterator[str]:
    """Answer grpc.health.v1 without TLS within the block.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        servicer: which a server with more to offer sets.

    Yields:
        The address, as HOST:PORT.

    Raises:
        OSError: the address can't be had.
    """
    host, _, port_text = listen.rpartition(":")
    # gRPC would take another port without a word: its default for none, modulo 65536 for a large one.
    if not (host and port_text.isdecimal() and int(port_text) < 1 << 16):
        raise OSError(f"--health {listen}: it is not HOST:PORT")
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"--health {listen}: the address can't be had; is it taken?") from error
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await server.stop(None)
