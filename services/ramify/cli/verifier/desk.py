"""A verifier to hand chains to from plain code: models loaded here, or a server."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from ramify.tls import ClientTls
from ramify.verifier.backends.base import Scorer
from ramify.verifier.batching import Batcher
from ramify.verifier.chains import ChainScores
from ramify.verifier.client import VerifierClient
from ramify.verifier.columns import ChainColumns, ColumnScores
from ramify.verifier.errors import DeadlineError, ModelError, OverloadedError, ServiceError, UnavailableError
from ramify.verifier.loading import load_scorers

log = logging.getLogger(__name__)

DEADLINE_MS = 3_600_000  # of a batch: nobody waits for it but us, and a large model may take long
GREETING_MS = 10_000
ATTEMPTS_MAX = 60  # for one batch, while a server is away or has too much to do: some four minutes
TELL_AT = 4  # so many attempts are no absence yet
WAIT_S_MAX = 8.0

Value = TypeVar("Value")


class Source(NamedTuple):
    """What scores."""

    name: str
    revision: str
    score: Callable[[ChainColumns], Awaitable[ColumnScores]]


Opening = AbstractAsyncContextManager[Source]


class Desk:
    """A source at work in a thread of its own. A context manager; what is under way when it ends is given up.

    Raises:
        VerifierError: the source cannot be had.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="verifier", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.source = self._start(self._opening.__aenter__()).result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._start(self._opening.__aexit__(None, None, None)).result()
        finally:
            self._end()

    def score(self, chains: ChainColumns) -> "Future[list[ChainScores]]":
        """Begin to score; the scores of each chain, in order."""

        async def scored() -> list[ChainScores]:
            found = await self.source.score(chains)
            return ColumnScores(found.scores, found.faults).chains(chains)

        return self._start(scored())

    def _start(self, work: Coroutine[Any, Any, Value]) -> "Future[Value]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _end(self) -> None:
        async def give_up() -> None:
            open_tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in open_tasks:
                task.cancel()
            await asyncio.gather(*open_tasks, return_exceptions=True)

        self._start(give_up()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def here(model: str, rule: str, threads: int) -> Opening:
    """A model or a rule of this process; see `load_scorers`. A model without a name has that of its folder.

    Raises:
        StartupError: it cannot be loaded.
    """
    (scorer,) = load_scorers([named(model)] if model else [], [rule] if rule else [], threads)
    return _at_work(scorer)


def named(model: str) -> str:
    """The model with a name: NAME=FOLDER."""
    place = model.partition("?")[0]
    return model if "=" in place else f"{Path(place).resolve().name or 'model'}={model}"


@asynccontextmanager
async def _at_work(scorer: Scorer) -> AsyncIterator[Source]:
    batcher = Batcher(scorer)
    try:
        yield Source(scorer.name, scorer.revision, batcher.score)
    finally:
        await batcher.close()


@asynccontextmanager
async def there(address: str, name: str, tls: ClientTls | None) -> AsyncIterator[Source]:
    """A verifier that runs; it may go away and come back meanwhile. All scores are of the model's one revision.

    Raises:
        UnavailableError: nobody answers there.
        UnknownModelError: it has no such model.
        TlsError: a file of `tls` can't be used.
    """
    async with VerifierClient(address, tls=tls, held_bytes_max=0) as client:
        try:
            model = await client.get_model(name, deadline_ms=GREETING_MS)
        except (DeadlineError, UnavailableError) as error:
            raise UnavailableError(f"no verifier answers at {address}: {error}") from error

        @retry(
            retry=retry_if_exception(_passes),
            wait=_wait_s,
            stop=stop_after_attempt(ATTEMPTS_MAX),
            before_sleep=_tell,
            reraise=True,
        )
        async def score(chains: ChainColumns) -> ColumnScores:
            found = await client.score_columns(
                model.name, chains, revision=model.revision, deadline_ms=DEADLINE_MS, wait_for_ready=False
            )
            return ColumnScores(found.scores, found.faults)

        yield Source(model.name, model.revision, score)


def _passes(error: BaseException) -> bool:
    """Whether it is a server's state, and no fault of the chains or of the model."""
    return isinstance(error, ServiceError) and not isinstance(error, (ModelError, DeadlineError))


def _tell(state: RetryCallState) -> None:
    if state.attempt_number == TELL_AT and state.outcome:
        log.warning("waiting for the verifier: %s", state.outcome.exception())


_BACK_OFF = wait_random_exponential(0.1, WAIT_S_MAX)


def _wait_s(state: RetryCallState) -> float:
    """Before the next attempt: longer each time, and at least as long as the server advises."""
    error = state.outcome.exception() if state.outcome else None
    advised_s = error.retry_delay_ms / 1000 if isinstance(error, OverloadedError) else 0.0
    return max(advised_s, _BACK_OFF(state))
