"""The gateway's process: plain grpc.aio with standard health and reflection."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ramify.gateway.errors import GatewayError, status_of
from ramify.gateway.service import JobService
from ramify.store.database import Database
from ramify.store.errors import StoreError
from ramify.store.jobs import Jobs
from ramify.v1 import job_service_pb2
from ramify.v1.job_service_pb2_grpc import add_JobServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE = job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
CALLS_MAX = 4096


class Gateway:
    """A gRPC server over one store."""

    def __init__(self, database: Database) -> None:
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", 4 * MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),  # a second gateway on the port is a mistake and must not go unseen
            ],
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        add_JobServiceServicer_to_server(JobService(Jobs(database)), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, listen: str) -> int:
        """Listen on `host:port` (port 0: any); returns the port. Raises RuntimeError if it is taken."""
        port = self._server.add_insecure_port(listen)
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that are open have `grace_s` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns our errors into their gRPC status; the table is in `errors`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(f"/{SERVICE}/"):
            return handler
        if handler.response_streaming:

            async def stream(request: Any, context: Any) -> Any:
                inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
                try:
                    async for response in inner(request, context):
                        yield response
                except (GatewayError, StoreError) as error:
                    await context.abort(status_of(error), str(error))

            kind = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
            return kind(stream, handler.request_deserializer, handler.response_serializer)

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await handler.unary_unary(request, context)
            except (GatewayError, StoreError) as error:
                await context.abort(status_of(error), str(error))

        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
