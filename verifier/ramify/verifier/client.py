"""An asyncio client of the verifier, for the scheduler's shell and for anyone with chains to score.

It balances over all endpoints, keeps a chain with the one that holds what it begins with, and sends that one the new step only.
A request is asked of one endpoint at a time, never of two at once. Scoring changes nothing, so what an endpoint has failed to
answer, or refused, may be asked of another; what has run out of time is not asked again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self
from zlib import crc32

import grpc
import numpy as np
from numpy.typing import NDArray

from ramify import tracing
from ramify.tls import ClientTls
from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault
from ramify.verifier.endpoints import Endpoint, Endpoints
from ramify.verifier.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RevisionError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
    VerifierError,
)
from ramify.verifier.held import Held, Place, Texts
from ramify.verifier.messages import REQUEST_CHAINS_MAX, Wish, columns_request, names_of, scores_of
from ramify.verifier.sent import WHOLE_BYTES_MAX, Answers, SentChains
from ramify.verifier.status import error_from_call

REQUEST_BYTES_MAX = 12 << 20
"""Of the 16 MiB that the server takes; the rest is for what frames them."""

PARTS_OPEN_MAX = 4
"""Requests that one call has open at one endpoint: enough to keep the server busy, few enough to leave it room."""

DEADLINE_MS = 30_000
HELD_BYTES_MAX = 64 << 20
"""Of the names that are remembered of each model."""

NAMED_BYTES_MIN = 1024
"""Of the chains of a batch, on average, from which on it is worth while to send new steps only: what is looked up costs more time
than what is sent of shorter ones. The verifier computes new steps only in either case."""

ELSEWHERE = (OverloadedError, UnavailableError, RevisionError, UnknownModelError)
"""What another endpoint may not say; first what may pass."""


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


@dataclass(slots=True, eq=False)
class _Call:
    """One call of `score_columns`: R chains, what is asked of them, and the answers that are there."""

    model: str
    chains: ChainColumns
    wish: Wish
    until_s: float
    texts: Texts
    held: Held | None  # None: chains are sent whole
    wait_for_ready: bool
    scores: NDArray[np.float32]
    sizes: NDArray[np.int64]  # [R] scores of each chain
    starts: NDArray[np.int64]  # [R] where they begin
    open: set[int]  # chains without an answer
    faults: dict[int, ChainFault] = field(default_factory=dict)
    revisions: set[str] = field(default_factory=set)

    def take(self, numbers: Sequence[int], asked: SentChains, response: pb.ScoreColumnsResponse) -> list[int]:
        """Put the scores of the chains of those numbers where they belong.

        Returns:
            The chains that have to be sent whole.
        """
        found, given = scores_of(response), self.sizes[numbers]
        fine = np.ones(len(numbers), np.bool_)
        again = list[int]()
        for fault in found.faults:
            fine[fault.chain] = False
            number = numbers[fault.chain]
            if fault.error is ChainError.NEED_PREFIX and asked.prefixes:
                again.append(number)
            else:
                self.faults[number] = fault._replace(chain=number)
        if not (self.wish.last_only or fine.all()):
            given = np.where(fine, given, asked.chains.length)
        if int(given.sum()) != len(found.scores):
            raise ServiceError(f"the verifier gave {len(found.scores)} scores; {given.sum()} were asked for")
        sizes = self.sizes[numbers][fine]
        ends = np.cumsum(sizes)
        into = np.repeat(self.starts[numbers][fine] - ends + sizes, sizes) + np.arange(int(sizes.sum()))
        self.scores[into] = found.scores[np.repeat(fine, given)]
        self.revisions.add(response.revision)
        self.open.difference_update(numbers)
        self.open.update(again)
        return again


class VerifierClient:
    """Channels to one or more addresses. An async context manager; to be made and used in one event loop.

    Every call raises an error of `ramify.verifier.errors`: `OverloadedError` says when to come back, and
    `UnavailableError` is raised once every endpoint, or with one endpoint gRPC's own retries, have failed.

    Args:
        addresses: HOST:PORT, or any gRPC target; several with commas between them. A name of several hosts means all.
        tls: None: no TLS.
        held_bytes_max: Of what is remembered of each model, so as to send new steps only; 0: chains are always sent whole.

    Raises:
        TlsError: a file of `tls` can't be used.
    """

    def __init__(self, addresses: str, *, tls: ClientTls | None = None, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._endpoints = Endpoints([each.strip() for each in addresses.split(",") if each.strip()], tls)
        self._held_bytes_max = held_bytes_max
        self._held: dict[str, Held] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels open calls and closes the channels."""
        await self._endpoints.close()

    async def score(self, model: str, chains: Sequence[Chain], *, deadline_ms: int = DEADLINE_MS) -> Scored:
        """The scores of any number of chains; those that cannot be scored have an error of their own.

        Raises:
            VerifierError: as `score_columns`.
        """
        columns = ChainColumns.of(chains)
        found = await self.score_columns(model, columns, deadline_ms=deadline_ms)
        return Scored(Answers(found.scores, columns.length, found.faults).chains(), found.revision)

    async def score_columns(
        self,
        model: str,
        chains: ChainColumns,
        *,
        revision: str = "",
        last_only: bool = False,
        deadline_ms: int = DEADLINE_MS,
        priority: int = 0,
        wait_for_ready: bool = True,
    ) -> ColumnsScored:
        """The scores of any number of chains, as columns.

        Args:
            model: Its name.
            chains: What to score.
            revision: The model's revision that the scores must be of; empty for any.
            last_only: Only the score of each chain's last step is wanted.
            deadline_ms: Of all of it.
            priority: Whose is the lower number is scored first.
            wait_for_ready: Whether to wait until the deadline for a server that is away; else `UnavailableError` comes at once.

        Raises:
            InvalidRequestError: also when one chain alone is larger than a request may be.
            RevisionError: the model is of another revision.
            UnavailableError: also when the model's revision changed while a large batch was scored in parts.
            VerifierError: see the class.
        """
        named = self._held_bytes_max > 0 and len(chains.text) >= NAMED_BYTES_MIN * max(len(chains), 1)
        sizes = np.ones(len(chains), np.int64) if last_only else chains.length.astype(np.int64)
        call = _Call(
            model,
            chains,
            Wish(revision, last_only, priority, named),
            asyncio.get_running_loop().time() + deadline_ms / 1000,
            Texts(chains),
            self._held.setdefault(model, Held(self._held_bytes_max)) if named else None,
            wait_for_ready,
            np.full(int(sizes.sum()), np.nan, np.float32),
            sizes,
            np.cumsum(sizes) - sizes,
            set(range(len(chains))),
        )
        await self._answer(call)
        if len(call.revisions) > 1:
            raise UnavailableError(f"model '{model}' changed its revision meanwhile: {', '.join(sorted(call.revisions))}")
        return ColumnsScored(call.scores, [call.faults[number] for number in sorted(call.faults)], call.revisions.pop())

    async def get_model(self, name: str = "", *, deadline_ms: int = DEADLINE_MS) -> pb.Model:
        """What a model is; without a name, the server's first."""
        until_s = asyncio.get_running_loop().time() + deadline_ms / 1000
        endpoints = await self._endpoints.all(until_s, wait=True)
        request = pb.GetModelRequest(model=name)
        for endpoint in endpoints:
            last = endpoint is endpoints[-1]
            try:
                async with _errors():
                    response = await endpoint.stub.GetModel(request, timeout=_left_s(until_s), wait_for_ready=last)
                return response.model
            except ELSEWHERE:
                if last:
                    raise
        raise UnavailableError("there is no verifier")

    async def _answer(self, call: _Call) -> None:
        """Ask endpoints until every chain has an answer; each once, unless it is waited for."""
        endpoints = await self._endpoints.all(call.until_s, wait=call.wait_for_ready)
        failed = dict[Endpoint, VerifierError]()
        places = call.held.look(call.texts) if call.held is not None else [None] * len(call.chains)
        waits = call.wait_for_ready and len(endpoints) == 1
        numbers = list(range(len(call.chains)))
        while True:
            groups = self._groups(call, numbers, places, endpoints, failed)
            asked = [self._ask(call, endpoint, *group, wait_for_ready=waits) for endpoint, group in groups.items()]
            for endpoint, outcome in zip(groups, await asyncio.gather(*asked, return_exceptions=True), strict=True):
                if isinstance(outcome, ELSEWHERE):
                    self._endpoints.failed(endpoint, outcome)
                    failed[endpoint] = outcome
                elif isinstance(outcome, BaseException):
                    raise outcome
            if not call.open and call.revisions:
                return
            if len(failed) == len(endpoints):
                # What may pass goes before what does not: an endpoint that is away might have what another one lacks.
                error = min(failed.values(), key=lambda error: [*map(partial(isinstance, error), ELSEWHERE)].index(True))
                if waits or not call.wait_for_ready or not isinstance(error, UnavailableError):
                    raise error
                waits, failed = True, {}
            numbers, places = sorted(call.open), [None] * len(call.chains)

    def _groups(
        self,
        call: _Call,
        numbers: Sequence[int],
        places: Sequence[Place | None],
        endpoints: Sequence[Endpoint],
        failed: Mapping[Endpoint, VerifierError],
    ) -> dict[Endpoint, tuple[list[int], list[bytes]]]:
        """Which chains go where, and the names of the prefixes that are held there."""
        if len(endpoints) == 1 or not numbers:
            first = next((each for each in endpoints if each not in failed), endpoints[0])
            return {first: ([*numbers], [place.name if (place := places[number]) else b"" for number in numbers])}
        now_s = asyncio.get_running_loop().time()
        by_address = {each.address: each for each in endpoints if each not in failed and each.until_s <= now_s}
        problems = np.fromiter((crc32(call.texts.problem(number)) for number in numbers), np.uint64, len(numbers))
        routes = self._endpoints.route(problems, endpoints, failed).tolist()
        groups: dict[Endpoint, tuple[list[int], list[bytes]]] = {}
        for number, route in zip(numbers, routes, strict=True):
            place = places[number]
            holder = by_address.get(place.address) if place else None
            mine = groups.setdefault(holder or endpoints[route], ([], []))
            mine[0].append(number)
            mine[1].append(place.name if place and holder else b"")
        return groups

    async def _ask(
        self, call: _Call, endpoint: Endpoint, numbers: list[int], prefixes: list[bytes], *, wait_for_ready: bool
    ) -> None:
        """Ask one endpoint for the chains of those numbers; whole for those whose prefix it does not hold."""
        slots = asyncio.Semaphore(PARTS_OPEN_MAX)

        async def send(numbers: list[int], asked: SentChains, request: pb.ScoreColumnsRequest) -> list[int]:
            async with slots, _errors():
                response = await endpoint.stub.ScoreColumns(
                    request, timeout=_left_s(call.until_s), wait_for_ready=wait_for_ready, metadata=tracing.metadata()
                )
            try:
                again = call.take(numbers, asked, response)
            except (IndexError, ValueError) as error:
                raise ServiceError(f"{endpoint.address} gave an answer that does not fit what was asked: {error}") from error
            if call.held is not None and response.names:
                call.held.keep(call.texts, numbers, names_of(response.names), endpoint.address)
            return again

        size = len(numbers)
        endpoint.open_chains += size
        try:
            while True:
                # Not a TaskGroup: it would wrap the one error that the caller is to handle.
                parts = list(_parts(call, numbers, prefixes))
                tasks = [asyncio.create_task(send(*part)) for part in parts]
                try:
                    again = [number for found in await asyncio.gather(*tasks) for number in found]
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                if not again:
                    break
                numbers, prefixes = again, [b""] * len(again)
            endpoint.failures = 0
        finally:
            endpoint.open_chains -= size


def _parts(
    call: _Call, numbers: list[int], prefixes: list[bytes]
) -> Iterator[tuple[list[int], SentChains, pb.ScoreColumnsRequest]]:
    """Chains as requests within the server's limits; at least one, which tells the revision."""
    fits = not any(prefixes) or call.texts.size(numbers) <= WHOLE_BYTES_MAX or len(numbers) == 1
    if len(numbers) <= REQUEST_CHAINS_MAX and fits:
        everything = len(numbers) == len(call.chains) and not any(prefixes)
        asked = SentChains(call.chains) if everything else call.texts.sent(numbers, prefixes, call.chains.references)
        request = columns_request(call.model, asked, call.wish)
        size = request.ByteSize()
        if size <= REQUEST_BYTES_MAX:
            yield numbers, asked, request
            return
        if len(numbers) == 1:
            raise InvalidRequestError(f"one chain has {size} bytes, more than {REQUEST_BYTES_MAX}")
    half = len(numbers) // 2
    yield from _parts(call, numbers[:half], prefixes[:half])
    yield from _parts(call, numbers[half:], prefixes[half:])


def _left_s(until_s: float) -> float:
    left_s = until_s - asyncio.get_running_loop().time()
    if left_s <= 0:
        raise DeadlineError("the deadline passed before every endpoint was asked")
    return left_s


@asynccontextmanager
async def _errors() -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise error_from_call(failure) from failure
    except grpc.aio.UsageError as error:  # the endpoint's name stands for others meanwhile
        raise UnavailableError(f"the verifier is gone: {error}") from error
