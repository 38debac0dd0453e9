"""The verifier's gRPC server: `VerifierService`, the standard health service and reflection."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

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
from ramify.verifier.messages import ScoreRequest, chains_of, columns_of, columns_response, scores_message
from ramify.verifier.status import status_from_error

logger = logging.getLogger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["VerifierService"].full_name

MESSAGE_BYTES_MAX = 16 << 20
STREAM_OPEN_MAX = 64
"""Requests of one stream that are open at once; the stream is not read further until one is answered."""

DRAIN_S_MAX = 5.0

# A string, for only the stubs know that it is generic.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class VerifierService(pb_grpc.VerifierServiceServicer):
    """The RPCs; `verifier_service.proto` says what each does. Has no models until `open`."""

    def __init__(self, queue_chains_max: int = QUEUE_CHAINS_MAX) -> None:
        self._queue_chains_max = queue_chains_max
        self._batchers: dict[str, Batcher] = {}
        self._stopping = asyncio.Event()

    def open(self, scorers: Iterable[Scorer]) -> None:
        """From now on scores with these models; the first is the default of `GetModel`."""
        self._batchers = {scorer.name: Batcher(scorer, queue_chains_max=self._queue_chains_max) for scorer in scorers}

    def stop(self) -> None:
        """Takes no more requests; those that are open go on."""
        self._stopping.set()

    async def close(self) -> None:
        """Fails what still waits."""
        self.stop()
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    async def Score(  # noqa: N802 - the generated base class names it
        self, request: pb.ScoreRequest, context: _Context
    ) -> pb.ScoreResponse:
        """See the proto."""
        async with _errors_as_status(context):
            batcher = self._batcher(request.model)
            scores = await self._score(batcher, request, _deadline_s(context))
            return pb.ScoreResponse(chains=scores, revision=batcher.scorer.revision)

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
            async with _errors_as_status(context):
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
        async with _errors_as_status(context):
            batcher = self._batcher(request.model)
            revision = batcher.scorer.revision
            if request.revision not in ("", revision):
                raise RevisionError(f"model '{request.model}' is of revision {revision} here, not {request.revision}")
            chains = columns_of(request)
            found = await batcher.score(chains, _deadline_s(context))
            return columns_response(found, chains, revision=revision, last_only=request.last_only)

    async def GetModel(  # noqa: N802 - the generated base class names it
        self, request: pb.GetModelRequest, context: _Context
    ) -> pb.GetModelResponse:
        """See the proto."""
        async with _errors_as_status(context):
            scorer = self._batcher(request.model or next(iter(self._batchers), "")).scorer
            model = pb.Model(
                name=scorer.name,
                revision=scorer.revision,
                backend=scorer.backend,
                context_tokens_max=scorer.context_tokens_max,
                models=list(self._batchers),
            )
            return pb.GetModelResponse(model=model)

    def _batcher(self, model: str) -> Batcher:
        if self._stopping.is_set() or not self._batchers:
            raise UnavailableError(f"the server is {'stopping' if self._stopping.is_set() else 'loading its models'}")
        batcher = self._batchers.get(model)
        if batcher is None:
            raise UnknownModelError(f"no model '{model}' here; there is {', '.join(self._batchers)}")
        return batcher

    async def _score(self, batcher: Batcher, request: ScoreRequest, deadline_s: float | None) -> list[pb.ChainScores]:
        chains = chains_of(request)
        return scores_message(await batcher.score(chains, deadline_s), chains)

    def _open(
        self,
        request: pb.ScoreStreamRequest,
        open_tasks: dict[asyncio.Task[pb.ScoreStreamResponse], int],
        deadline_s: float | None,
    ) -> None:
        """Begins to answer a request of a stream."""
        if request.sequence in open_tasks.values():
            raise InvalidRequestError(f"sequence {request.sequence} is open already in this stream")
        batcher = self._batcher(request.model)

        async def answer() -> pb.ScoreStreamResponse:
            scores = await self._score(batcher, request, deadline_s)
            return pb.ScoreStreamResponse(sequence=request.sequence, chains=scores, revision=batcher.scorer.revision)

        open_tasks[asyncio.create_task(answer())] = request.sequence


class VerifierServer:
    """A server on a port. Health is SERVING from `serve` to `stop`; before and after, calls are UNAVAILABLE.

    Args:
        queue_chains_max: Chains of one model that may wait; beyond it, calls are RESOURCE_EXHAUSTED.
    """

    def __init__(self, queue_chains_max: int = QUEUE_CHAINS_MAX) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            # With it a second server could share a taken port and steal half of the calls.
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options)
        self._service = VerifierService(queue_chains_max)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        pb_grpc.add_VerifierServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, listen: str) -> str:
        """Binds `HOST:PORT` and answers health checks, NOT_SERVING yet. Port 0 takes a free one.

        Returns:
            The address bound, as HOST:PORT.

        Raises:
            StartupError: the address is taken or no address.
        """
        host, _, port_text = listen.rpartition(":")
        # gRPC would take another port without a word: its default for none, modulo 65536 for a large one.
        if not (host and port_text.isdecimal() and int(port_text) < 1 << 16):
            raise StartupError(f"cannot listen on '{listen}': it is not HOST:PORT")
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on '{listen}': the address is taken, or is no address ({error})") from error
        await self._server.start()
        return f"{host}:{port}"

    async def serve(self, scorers: Sequence[Scorer]) -> None:
        """Scores with these models from now on; the first is the default."""
        self._service.open(scorers)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, drain_s: float = DRAIN_S_MAX) -> None:
        """Takes no more calls, gives the open ones `drain_s` seconds, and closes."""
        await self._health.enter_graceful_shutdown()
        self._service.stop()
        await self._server.stop(drain_s)
        await self._service.close()

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


@asynccontextmanager
async def _errors_as_status(context: _Context) -> AsyncIterator[None]:
    """The one place where errors leave the package: as the statuses of `status.STATUS`."""
    try:
        yield
    except VerifierError as error:
        await _abort(context, error)
    except Exception:
        logger.exception("a call failed")
        await _abort(context, ModelError("the verifier failed; its log says why"))


async def _abort(context: _Context, error: VerifierError) -> None:
    status = status_from_error(error)
    await context.abort(status.code, status.details, status.trailing_metadata or ())


def _deadline_s(context: _Context) -> float | None:
    """The call's deadline on the event loop's clock."""
    remaining_s: float | None = context.time_remaining()
    return None if remaining_s is None else asyncio.get_running_loop().time() + remaining_s


async def _next(requests: AsyncIterator[pb.ScoreStreamRequest]) -> pb.ScoreStreamRequest | None:
    return await anext(requests, None)
