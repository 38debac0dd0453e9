"""The gateway's server: plain grpc.aio with standard health and reflection."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from ramify.gateway.errors import CannotListen, GatewayError, status_of
from ramify.gateway.limits import GatewayLimits
from ramify.gateway.metrics import Call, Metrics
from ramify.gateway.service import JobService
from ramify.store.database import Database
from ramify.store.errors import StoreError
from ramify.v1 import job_service_pb2
from ramify.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server

log = logging.getLogger(__name__)

_DESCRIPTOR = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
SERVICE = _DESCRIPTOR.full_name
SERVICE_METHODS = _DESCRIPTOR.methods
CALLS_MAX = 4096

VERSION_KEY = "ramify-version"  # every answer that is no error tells it at its end
_TRAILERS = ((VERSION_KEY, version("ramify")),)

OPTIONS = (
    ("grpc.max_receive_message_length", 4 << 20),  # as the proto says; a tree that is sent may be larger
    ("grpc.so_reuseport", 0),  # a second gateway on the port is a mistake and must not go unseen
    # A client that vanished without a word must not hold its calls for gRPC's two hours.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A connection without calls is closed after this; clients open a new one without that anybody sees it.
    ("grpc.max_connection_idle_ms", 30 * 60_000),
)


class Gateway:
    """A gRPC server over one store."""

    def __init__(
        self, database: Database, limits: GatewayLimits | None = None, *, registry: CollectorRegistry | None = None
    ) -> None:
        """`registry`: where it tells how it fares; None: nowhere."""
        metrics = Metrics(registry or CollectorRegistry())
        metrics.expect([method.name for method in SERVICE_METHODS])
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        self._service = JobService(database, limits or GatewayLimits(), metrics)
        interceptors = [ErrorInterceptor(metrics)]
        self._server = grpc.aio.server(interceptors=interceptors, options=OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
        add_JobServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, listen: str) -> int:
        """Listen on `host:port` (port 0: any); returns the port. Raises `CannotListen`."""
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise CannotListen(f"{listen} can't be had; is it taken? Give another one with --listen HOST:PORT") from error
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; end watches and uploads that wait, so that their clients go on elsewhere; others have `grace_s`."""
        await self._health.enter_graceful_shutdown()
        self._service.stop()
        await self._server.stop(grace_s)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns errors into their gRPC status, of which the table is in `errors`, and counts calls."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(f"/{SERVICE}/"):
            return handler
        method = handler_call_details.method.rpartition("/")[2]
        if not handler.response_streaming:

            async def unary(request: Any, context: Any) -> Any:
                context.set_trailing_metadata(_TRAILERS)
                with self._metrics.call(method) as call:
                    try:
                        return await handler.unary_unary(request, context)
                    except Exception as error:
                        await self._abort(call, context, error)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)

        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: Any) -> None:
            context.set_trailing_metadata(_TRAILERS)
            # No generator, but one that is closed here: so a call that its client has left frees what it holds at once,
            # not when the garbage is collected.
            with self._metrics.call(method) as call:
                try:
                    async with aclosing(inner(request, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                except Exception as error:
                    await self._abort(call, context, error)

        kind = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        return kind(stream, handler.request_deserializer, handler.response_serializer)

    async def _abort(self, call: Call, context: Any, error: Exception) -> None:
        if not isinstance(error, GatewayError | StoreError):
            log.error("a call failed", exc_info=error)
        status = status_of(error)
        call.code = status.code
        self._metrics.refused(error)
        await context.abort(status.code, status.details, status.trailing_metadata)
