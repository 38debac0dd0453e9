"""The verifier's gRPC server: `VerifierService`, the standard health service and reflection."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from ramify import tracing
from ramify.tls import ServerTls, TlsError
from ramify.v1 import verifier_service_pb2 as pb
from ramify.v1 import verifier_service_pb2_grpc as pb_grpc
from ramify.verifier.backends.base import Scorer
from ramify.verifier.batching import QUEUE_CHAINS_MAX, Batcher
from ramify.verifier.errors import (
    InvalidRequestError,
    ModelError,
    RevisionError,
    StartupError,
    UnavailableError,
    UnknownModelError,
    VerifierError,
)
from ramify.verifier.memory import MEMORY_BYTES_MAX, Memory
from ramify.verifier.messages import ScoreRequest, chains_of, columns_of, columns_response, scores_message
from ramify.verifier.metrics import Metrics, ModelMetrics
from ramify.verifier.status import status_code, status_from_error

logger = logging.getLogger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["VerifierService"].full_name

MESSAGE_BYTES_MAX = 16 << 20
STREAM_OPEN_MAX = 64
"""Requests of one stream that are open at once; the stream is not read further until one is answered."""

CALLS_OPEN_MAX = 1_024
"""Calls of all clients; more are RESOURCE_EXHAUSTED."""

DRAIN_S_MAX = 5.0
LOOK_S = 1.0  # between two looks at whether the models can still score

# A string, for only the stubs know that it is generic.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each model of a server."""

    queue_chains_max: int = QUEUE_CHAINS_MAX  # that may wait; beyond it, calls are RESOURCE_EXHAUSTED
    memory_bytes_max: int = MEMORY_BYTES_MAX  # of chains and scores that are remembered


class VerifierService(pb_grpc.VerifierServiceServicer):
    """The RPCs; `verifier_service.proto` says what each does. Has no models until `open`."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._models: dict[str, Memory] = {}
        self._stopping = asyncio.Event()

    def open(self, scorers: Iterable[Scorer]) -> None:
        """From now on scores with these models; the first is the default of `GetModel`."""
        self._models = {scorer.name: self._open_model(scorer) for scorer in scorers}

    def _open_model(self, scorer: Scorer) -> Memory:
        metrics = ModelMetrics(self._metrics, scorer.name)
        batcher = Batcher(scorer, queue_chains_max=self._limits.queue_chains_max, metrics=metrics)
        return Memory(batcher, self._limits.memory_bytes_max)

    @property
    def batchers(self) -> list[Batcher]:
        """Those of the models."""
        return [model.batcher for model in self._models.values()]

    def stop(self) -> None:
        """Takes no more requests; those that are open go on."""
        self._stopping.set()

    async def close(self) -> None:
        """Fails what still waits."""
        self.stop()
        await asyncio.gather(*(model.close() for model in self._models.values()))

    async def Score(  # noqa: N802 - the generated base class names it
        self, request: pb.ScoreRequest, context: _Context
    ) -> pb.ScoreResponse:
        """See the proto."""
        async with self._call("Score", context):
            model = self._model(request.model)
            scores = await _score(model, request, _deadline_s(context))
            return pb.ScoreResponse(chains=scores, revision=model.scorer.revision)

    async def ScoreStream(  # noqa: N802 - the generated base class names it
        self,
        request_iterator: AsyncIterator[pb.ScoreStreamRequest],
        context: _Context,
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """See the proto. An error that is not of one chain ends the stream."""
        open_tasks: dict[asyncio.Task[pb.ScoreStreamResponse], int] = {}
        stopping = asyncio.create_task(self._stopping.wait())
        reading: asyncio.Task[pb.ScoreStreamRequest | None] | None = asyncio.create_task(_next(request_iterator))
        try:
            async with self._call("ScoreStream", context):
                while open_tasks or (reading and not stopping.done()):
                    waited: set[asyncio.Task[Any]] = {*open_tasks}
                    if not stopping.done():
                        waited |= {stopping, reading} if reading and len(open_tasks) < STREAM_OPEN_MAX else {stopping}
                    done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    for task in done & open_tasks.keys():
                        del open_tasks[task]
                        yield task.result()
                    if reading in done and not stopping.done():
                        request = reading.result()
                        reading = asyncio.create_task(_next(request_iterator)) if request is not None else None
                        if request is not None:
                            self._open(request, open_tasks, _deadline_s(context))
                if reading:
                    raise UnavailableError("the server is stopping")
        finally:
            unfinished: tuple[asyncio.Task[Any], ...] = (*open_tasks, stopping, *([reading] if reading else []))
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def ScoreColumns(  # noqa: N802 - the generated base class names it
        self, request: pb.ScoreColumnsRequest, context: _Context
    ) -> pb.ScoreColumnsResponse:
        """See the proto."""
        async with self._call("ScoreColumns", context):
            model = self._model(request.model)
            revision = model.scorer.revision
            if request.revision not in ("", revision):
                raise RevisionError(f"model '{request.model}' is of revision {revision} here, not {request.revision}")
            found = await model.score(
                columns_of(request), _deadline_s(context), request.priority, names=request.names, last_only=request.last_only
            )
            return columns_response(found, revision=revision, last_only=request.last_only)

    async def GetModel(  # noqa: N802 - the generated base class names it
        self, request: pb.GetModelRequest, context: _Context
    ) -> pb.GetModelResponse:
        """See the proto."""
        async with self._call("GetModel", context):
            found = self._model(request.model or next(iter(self._models), ""))
            scorer = found.scorer
            model = pb.Model(
                name=scorer.name,
                revision=scorer.revision,
                backend=scorer.backend,
                context_tokens_max=scorer.context_tokens_max,
                models=list(self._models),
                convention=scorer.convention,
                remembers=found.remembers,
            )
            return pb.GetModelResponse(model=model)

    def _model(self, name: str) -> Memory:
        if self._stopping.is_set() or not self._models:
            raise UnavailableError(f"the server is {'stopping' if self._stopping.is_set() else 'loading its models'}")
        model = self._models.get(name)
        if model is None:
            raise UnknownModelError(f"no model '{name}' here; there is {', '.join(self._models)}")
        return model

    @asynccontextmanager
    async def _call(self, method: str, context: _Context) -> AsyncIterator[None]:
        """The one place where errors leave the package: as the statuses of `status.STATUS`."""
        began_s, code = time.perf_counter(), "CANCELLED"
        try:
            with tracing.served(f"{SERVICE_NAME}/{method}", tracing.told_by(context)):
                yield
            code = "OK"
        except VerifierError as error:
            code = status_code(type(error)).name
            await _abort(context, error)
        except Exception:
            logger.exception("a call failed")
            code = status_code(ModelError).name
            await _abort(context, ModelError("the verifier failed; its log says why"))
        finally:
            self._metrics.call_seconds.labels(method, code).observe(time.perf_counter() - began_s)

    def _open(
        self,
        request: pb.ScoreStreamRequest,
        open_tasks: dict[asyncio.Task[pb.ScoreStreamResponse], int],
        deadline_s: float | None,
    ) -> None:
        """Begins to answer a request of a stream."""
        if request.sequence in open_tasks.values():
            raise InvalidRequestError(f"sequence {request.sequence} is open already in this stream")
        model = self._model(request.model)

        async def answer() -> pb.ScoreStreamResponse:
            scores = await _score(model, request, deadline_s)
            return pb.ScoreStreamResponse(sequence=request.sequence, chains=scores, revision=model.scorer.revision)

        open_tasks[asyncio.create_task(answer())] = request.sequence


class VerifierServer:
    """A server on a port. Health is SERVING from `serve` to `stop`; before and after, calls are UNAVAILABLE.

    Args:
        limits: What it takes and keeps.
        tls: None: no TLS.
        registry: Where it tells how it fares; None: nowhere.
    """

    def __init__(
        self, limits: Limits | None = None, *, tls: ServerTls | None = None, registry: CollectorRegistry | None = None
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            # With it a second server could share a taken port and steal half of the calls.
            ("grpc.so_reuseport", 0),
        ]
        self._tls = tls
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CALLS_OPEN_MAX)
        self._service = VerifierService(limits or Limits(), Metrics(registry or CollectorRegistry()))
        self.health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        pb_grpc.add_VerifierServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, listen: str) -> str:
        """Binds `HOST:PORT` and answers health checks, NOT_SERVING yet. Port 0 takes a free one.

        Returns:
            The address bound, as HOST:PORT.

        Raises:
            StartupError: the address is taken or no address, or a file of TLS can't be used.
        """
        host, _, port_text = listen.rpartition(":")
        # gRPC would take another port without a word: its default for none, modulo 65536 for a large one.
        if not (host and port_text.isdecimal() and int(port_text) < 1 << 16):
            raise StartupError(f"cannot listen on '{listen}': it is not HOST:PORT")
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, self._tls.credentials())
        except TlsError as error:
            raise StartupError(f"TLS: {error}") from error
        except RuntimeError as error:
            raise StartupError(f"cannot listen on '{listen}': the address is taken, or is no address ({error})") from error
        await self._server.start()
        return f"{host}:{port}"

    async def serve(self, scorers: Sequence[Scorer]) -> None:
        """Scores with these models from now on; the first is the default."""
        self._service.open(scorers)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def failed(self) -> str:
        """Returns once a model can score no more, with what is to be said of it. Health is NOT_SERVING then."""
        while True:
            for batcher in self._service.batchers:
                if failure := batcher.failure:
                    await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
                    return f"model '{batcher.scorer.name}': {failure}"
            await asyncio.sleep(LOOK_S)

    async def stop(self, drain_s: float = DRAIN_S_MAX) -> None:
        """Takes no more calls, gives the open ones `drain_s` seconds, and closes."""
        await self.health.enter_graceful_shutdown()
        self._service.stop()
        await self._server.stop(drain_s)
        await self._service.close()

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self.health.set(name, status)


async def _score(model: Memory, request: ScoreRequest, deadline_s: float | None) -> list[pb.ChainScores]:
    return scores_message(await model.score(chains_of(request), deadline_s, request.priority, names=request.names))


async def _abort(context: _Context, error: VerifierError) -> None:
    status = status_from_error(error)
    await context.abort(status.code, status.details, status.trailing_metadata or ())


def _deadline_s(context: _Context) -> float | None:
    """The call's deadline on the event loop's clock."""
    remaining_s: float | None = context.time_remaining()
    return None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s


async def _next(requests: AsyncIterator[pb.ScoreStreamRequest]) -> pb.ScoreStreamRequest | None:
    return await anext(requests, None)
