"""What surrounds every call of the job API: who may make it, how long its client may take to read, and how it fails."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from importlib.metadata import version
from typing import Any

import grpc
from opentelemetry.trace import SpanKind

from ramify import logs, tracing
from ramify.gateway.access import Access, Caller
from ramify.gateway.errors import Forbidden, GatewayError, SlowReader, TooManyCalls, TooManyKeys, Unauthenticated, status_of
from ramify.gateway.limits import GatewayLimits
from ramify.gateway.metrics import Metrics
from ramify.gateway.places import Places
from ramify.store.errors import QuotaExceeded, QuotaTooSmall, StoreError
from ramify.v1 import job_service_pb2

log = logging.getLogger(__name__)

_DESCRIPTOR = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]
SERVICE = _DESCRIPTOR.full_name
METHODS = tuple(method.name for method in _DESCRIPTOR.methods)

VERSION_KEY = "ramify-version"  # every answer that is no error tells it at its end
_TRAILERS = ((VERSION_KEY, version("ramify")),)

REFUSALS = (Unauthenticated, Forbidden, QuotaExceeded, QuotaTooSmall)  # which the audit log tells
UNREAD = (Unauthenticated, Forbidden, TooManyCalls, TooManyKeys)  # of a call that nothing was read of
GOODBYE_S = 5.0  # for a client to be told why its call ends


class CallInterceptor(grpc.aio.ServerInterceptor):
    """See the module; of other services, health and reflection, only the open streams are bounded."""

    def __init__(self, access: Access, limits: GatewayLimits, metrics: Metrics) -> None:
        self._access, self._limits, self._metrics = access, limits, metrics
        self._open = Places("calls", limits.calls_max)  # whoever makes them, from before that is known
        self._calls = Places("calls", limits.calls_max, limits.tenant_calls_max)
        self._other_streams = Places("streams of health and reflection", limits.other_streams_max)
        self._goodbyes = Places("goodbyes", limits.goodbyes_max)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler."""
        handler = await continuation(handler_call_details)
        _, service, method = f"/{handler_call_details.method}".rsplit("/", 2)
        if handler is None or (service != SERVICE and not handler.response_streaming):
            return handler
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        kind = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        if service != SERVICE:
            return kind(self._bounded(inner), handler.request_deserializer, handler.response_serializer)
        if not handler.response_streaming:

            async def unary(request: Any, context: Any) -> Any:
                jobs = [job_id] if (job_id := getattr(request, "job_id", "")) else []
                with tracing.span(f"{SERVICE}/{method}", jobs, kind=SpanKind.SERVER):
                    async with self._call(method, context, request):
                        return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)

        async def stream(request: Any, context: Any) -> None:
            # No generator, but one that is closed here: so a call that its client has left frees what it holds at once,
            # not when the garbage is collected.
            async with (
                self._call(method, context, request) as found,
                self._access.while_good(found),
                aclosing(inner(request, context)) as responses,
            ):
                async for response in responses:
                    await self._write(context, response)

        return kind(stream, handler.request_deserializer, handler.response_serializer)

    def _bounded(self, inner: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Awaitable[None]]:
        """A stream of another service, which has a place while it is open."""

        async def stream(request: Any, context: Any) -> None:
            try:
                with self._other_streams.one():
                    if inspect.isasyncgenfunction(inner):
                        async with aclosing(inner(request, context)) as responses:
                            async for response in responses:
                                await context.write(response)
                    else:
                        await inner(request, context)
            except TooManyCalls as error:
                self._metrics.refused(error)
                status = status_of(error)
                await context.abort(status.code, status.details, status.trailing_metadata)

        return stream

    @asynccontextmanager
    async def _call(self, method: str, context: Any, request: Any) -> AsyncIterator[Caller]:
        """Let a caller in, and turn what the block raises into its status."""
        context.set_trailing_metadata(_TRAILERS)
        with self._metrics.call(method) as call, logs.about(job=getattr(request, "job_id", "")):
            try:
                with self._open.one():
                    found = await self._access.admit(method, context.invocation_metadata() or (), context.peer())
                    with self._calls.one(found.actor.tenant), logs.about(tenant=found.actor.tenant):
                        yield found
            except Exception as error:
                status = status_of(error)
                call.code = status.code
                await self._fail(method, context, request, error, status)

    async def _fail(self, method: str, context: Any, request: Any, error: Exception, status: grpc.Status) -> None:
        self._metrics.refused(error)
        if isinstance(error, REFUSALS):
            await self._access.refused(method, getattr(request, "job_id", ""), status.code.name, status.details)
        elif not isinstance(error, GatewayError | StoreError):
            log.error("a call of %s failed", method, exc_info=error)
        if isinstance(error, UNREAD) and isinstance(request, AsyncIterator):
            # A client that is at writing its first message is told of a broken call if that ends before it is taken. Among very
            # many that are refused at once we can't be so polite: some would never write one.
            with contextlib.suppress(TimeoutError, TooManyCalls), self._goodbyes.one():
                async with asyncio.timeout(GOODBYE_S):
                    await anext(request, None)
        # The status comes after what the client has still to read. It stays with gRPC for one that doesn't; we don't.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await context.abort(status.code, status.details, status.trailing_metadata)

    async def _write(self, context: Any, response: Any) -> None:
        """Send a message once the client has room for it: what it does not read waits in the store, not here."""
        wait = asyncio.timeout(self._limits.read_s)
        try:
            async with wait:
                await context.write(response)
        except TimeoutError:
            if not wait.expired():
                raise
            raise SlowReader(f"the client has read nothing for {self._limits.read_s:g} s: come again where you were") from None
