"""The ASGI application."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ramify.client import ClientError
from ramify.http.clients import Clients
from ramify.http.completions import Completions
from ramify.http.errors import HttpError, answer_anything, answer_client_error, answer_http_error
from ramify.http.pages import Pages
from ramify.http.runs import Runs
from ramify.http.settings import HttpSettings

READY_S = 2.0  # in which the gateway says that it serves
CREATED_S = 0  # of every model: nobody knows
GENERATOR = "generator"


def make_app(settings: HttpSettings) -> Starlette:
    """The whole surface. Raises `TlsError` if the files that it names can't be read."""
    clients = Clients(settings.gateway, settings.client_tls())
    runs = Runs(clients)
    pages = Pages(clients)

    async def models(request: Request) -> Response:
        async with clients.of(request) as client:
            found = [model for model in await client.models() if model.kind == GENERATOR]
        data = [{"id": model.name, "object": "model", "created": CREATED_S, "owned_by": "ramify"} for model in found]
        return JSONResponse({"object": "list", "data": data})

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        why = await _unready(settings)
        return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await runs.close()
        await clients.close()

    routes = [
        Route("/v1/chat/completions", Completions(settings, runs).create, methods=["POST"]),
        Route("/v1/models", models),
        Route("/jobs/{job}/problems/{index:int}", pages.page),
        Route("/jobs/{job}/problems/{index:int}/tree", pages.tree),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]
    handlers = {ClientError: answer_client_error, HttpError: answer_http_error, Exception: answer_anything}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _unready(settings: HttpSettings) -> str:
    """Why the gateway can't be used; empty: it can."""
    tls = settings.client_tls()
    channel = (
        grpc.aio.insecure_channel(settings.gateway)
        if tls is None
        else grpc.aio.secure_channel(settings.gateway, tls.credentials())
    )
    async with channel:
        try:
            async with asyncio.timeout(READY_S):
                stub: Any = health_pb2_grpc.HealthStub(channel)
                found = await stub.Check(health_pb2.HealthCheckRequest())
        except (TimeoutError, grpc.RpcError):
            return f"the gateway at {settings.gateway} does not answer"
    return "" if found.status == health_pb2.HealthCheckResponse.SERVING else f"the gateway at {settings.gateway} does not serve"
