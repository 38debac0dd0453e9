"""An asyncio client of the verifier, for the scheduler's shell and for anyone with chains to score."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from ramify.v1 import verifier_service_pb2 as pb
from ramify.v1 import verifier_service_pb2_grpc as pb_grpc
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault
from ramify.verifier.errors import InvalidRequestError, UnavailableError
from ramify.verifier.messages import REQUEST_CHAINS_MAX, columns_request, scores_of
from ramify.verifier.status import error_from_call

REQUEST_BYTES_MAX = 12 << 20
"""Of the 16 MiB that the server takes; the rest is for what frames them."""

PARTS_OPEN_MAX = 4
"""Requests that one call has open at once: enough to keep the server busy, few enough to leave it room."""

DEADLINE_MS = 30_000

_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": pb.DESCRIPTOR.services_by_name["VerifierService"].full_name}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    # Overload is not among them: the caller must slow down, not gRPC try again.
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # A request larger than this buffer would silently lose its retries; gRPC's default is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 16 << 20),
    # gRPC's default is two minutes: so long a verifier could be back without anyone's knowing.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Request = TypeVar("Request", pb.ScoreRequest, pb.ScoreColumnsRequest)
Response = TypeVar("Response", pb.ScoreResponse, pb.ScoreColumnsResponse)


class Scored(NamedTuple):
    """What `VerifierClient.score` gives: one entry for each chain, in order, and the model's revision."""

    chains: list[ChainScores]
    revision: str


class ColumnsScored(NamedTuple):
    """What `VerifierClient.score_columns` gives.

    The scores are one for each step, first step first, one chain after the other; with `last_only` one for each chain. They are
    float32 in [0, 1], NaN for a chain that has a fault.
    """

    scores: NDArray[np.float32]
    faults: list[ChainFault]
    revision: str


class VerifierClient:
    """A channel to one address. An async context manager; to be made and used in one event loop.

    Every call raises an error of `ramify.verifier.errors`: `OverloadedError` says when to come back, and
    `UnavailableError` is raised once gRPC's own retries have failed too.

    Args:
        address: HOST:PORT, or any gRPC target.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = pb_grpc.VerifierServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels open calls and closes the channel."""
        await self._channel.close()

    async def score(self, model: str, chains: Sequence[Chain], *, deadline_ms: int = DEADLINE_MS) -> Scored:
        """The scores of any number of chains; those that cannot be scored have an error of their own.

        Raises:
            InvalidRequestError: also when one chain alone is larger than a request may be.
            UnavailableError: also when the model's revision changed while a large batch was scored in parts.
            VerifierError: see the class.
        """
        responses, revision = await self._send(self._stub.Score, _requests(model, chains), deadline_ms, wait_for_ready=True)
        return Scored([_scores(chain) for response in responses for chain in response.chains], revision)

    async def score_columns(
        self,
        model: str,
        chains: ChainColumns,
        *,
        revision: str = "",
        last_only: bool = False,
        deadline_ms: int = DEADLINE_MS,
        wait_for_ready: bool = True,
    ) -> ColumnsScored:
        """The scores of any number of chains, as columns.

        Args:
            model: Its name.
            chains: What to score.
            revision: The model's revision that the scores must be of; empty for any.
            last_only: Only the score of each chain's last step is wanted.
            deadline_ms: Of each request.
            wait_for_ready: Whether to wait until the deadline for a server that is away; else `UnavailableError` comes at once.

        Raises:
            InvalidRequestError: also when one chain alone is larger than a request may be.
            RevisionError: the model is of another revision.
            UnavailableError: also when the model's revision changed while a large batch was scored in parts.
            VerifierError: see the class.
        """
        parts = _column_requests(model, chains, revision, last_only)
        requests = [request for _, request in parts]
        responses, revision = await self._send(self._stub.ScoreColumns, requests, deadline_ms, wait_for_ready=wait_for_ready)
        found = [scores_of(response) for response in responses]
        faults = [
            fault._replace(chain=fault.chain + start)
            for (start, _), part in zip(parts, found, strict=True)
            for fault in part.faults
        ]
        return ColumnsScored(np.concatenate([part.scores for part in found]), faults, revision)

    async def _send(
        self,
        call: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        requests: Sequence[Request],
        deadline_ms: int,
        *,
        wait_for_ready: bool,
    ) -> tuple[list[Response], str]:
        """The answers to the parts of a batch, in order, and the one revision that they are of."""
        slots = asyncio.Semaphore(PARTS_OPEN_MAX)

        async def send(request: Request) -> Response:
            async with slots, _calls():
                return await call(request, timeout=deadline_ms / 1000, wait_for_ready=wait_for_ready)

        # Not a TaskGroup: it would wrap the one error that the caller is to handle.
        tasks = [asyncio.create_task(send(request)) for request in requests]
        try:
            responses = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        revisions = {response.revision for response in responses}
        if len(revisions) > 1:
            raise UnavailableError(f"model '{requests[0].model}' changed its revision meanwhile: {', '.join(sorted(revisions))}")
        return responses, revisions.pop()

    async def get_model(self, name: str = "", *, deadline_ms: int = DEADLINE_MS) -> pb.Model:
        """What a model is; without a name, the server's first."""
        async with _calls():
            request = pb.GetModelRequest(model=name)
            response = await self._stub.GetModel(request, timeout=deadline_ms / 1000, wait_for_ready=True)
            return response.model


@asynccontextmanager
async def _calls() -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise error_from_call(failure) from failure


def _requests(model: str, chains: Sequence[Chain]) -> list[pb.ScoreRequest]:
    """The chains as requests within the server's limits; at least one, which tells the revision."""
    if len(chains) <= REQUEST_CHAINS_MAX:
        request = pb.ScoreRequest(model=model, chains=[pb.Chain(**chain._asdict()) for chain in chains])
        if request.ByteSize() <= REQUEST_BYTES_MAX:
            return [request]
        if len(chains) == 1:
            raise InvalidRequestError(f"one chain has {request.ByteSize()} bytes, more than {REQUEST_BYTES_MAX}")
    half = len(chains) // 2
    return _requests(model, chains[:half]) + _requests(model, chains[half:])


def _column_requests(
    model: str, chains: ChainColumns, revision: str, last_only: bool, start: int = 0
) -> list[tuple[int, pb.ScoreColumnsRequest]]:
    """As `_requests`; with the index of each one's first chain, counted from `start`."""
    if len(chains) <= REQUEST_CHAINS_MAX:
        request = columns_request(model, chains, revision=revision, last_only=last_only)
        if request.ByteSize() <= REQUEST_BYTES_MAX:
            return [(start, request)]
        if len(chains) == 1:
            raise InvalidRequestError(f"one chain has {request.ByteSize()} bytes, more than {REQUEST_BYTES_MAX}")
    half = len(chains) // 2
    head = _column_requests(model, chains.part(0, half), revision, last_only, start)
    return head + _column_requests(model, chains.part(half, len(chains)), revision, last_only, start + half)


def _scores(chain: pb.ChainScores) -> ChainScores:
    return ChainScores(list(chain.scores), ChainError(chain.error), chain.message)
