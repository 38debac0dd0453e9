"""Dynamic batching: many small requests become few large calls of a model.

One `Batcher` a model: a bounded queue of requests in order of arrival, and one worker that cuts batches from its head
and runs them in a thread. A request larger than a batch is cut; a batch takes from as many requests as fit.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.backends.base import Scorer
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import DeadlineError, ModelError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

QUEUE_CHAINS_MAX = 65_536

# Bounds on the advice to an overloaded caller, and the advice before there is any throughput to go by.
_RETRY_DELAY_MS_MIN, _RETRY_DELAY_MS_MAX, _RETRY_DELAY_MS_UNKNOWN = 10, 10_000, 100

# Weight of the newest batch in the recent throughput: it forgets in about ten batches.
_THROUGHPUT_WEIGHT = 0.2


@dataclass(eq=False, slots=True)
class _Request:
    """Chains that arrived together. Those before `taken` are in a batch or done; scores and faults grow in order."""

    chains: ChainColumns
    done: asyncio.Future[ColumnScores]
    deadline_s: float | None
    taken: int = 0
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    faults: list[ChainFault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    """A request's chains [start, end) in a batch."""

    request: _Request
    start: int
    end: int

    @property
    def chains(self) -> ChainColumns:
        return self.request.chains.part(self.start, self.end)


class Batcher:
    """Scores through one model, in batches. Belongs to the event loop in which it is made.

    Args:
        scorer: The model.
        queue_chains_max: Chains that may wait; beyond it, `score` raises `OverloadedError`.
        now_s: The clock, in seconds, that deadlines are on; the event loop's by default.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        queue_chains_max: int = QUEUE_CHAINS_MAX,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        self.scorer = scorer
        self._queue_chains_max = queue_chains_max
        self._now_s = now_s or asyncio.get_running_loop().time
        self._queue: OrderedDict[_Request, None] = OrderedDict()
        self._waiting_chains = 0
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._chains_per_s = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"scorer-{scorer.name}")
        self._worker = asyncio.create_task(self._work(), name=f"batcher-{scorer.name}")
        self._closed = False

    @property
    def waiting_chains(self) -> int:
        """Chains in the queue, those being computed not among them."""
        return self._waiting_chains

    async def score(self, chains: ChainColumns, deadline_s: float | None = None) -> ColumnScores:
        """The scores of the chains. A cancelled call leaves the queue at once.

        Args:
            chains: What to score.
            deadline_s: When the scores are worthless, on the batcher's clock.

        Raises:
            OverloadedError: the queue has no room for them all.
            DeadlineError: the deadline passed while they waited.
            ModelError: the model failed on a batch with one of them.
            UnavailableError: the batcher is closed.
        """
        if self._closed:
            raise UnavailableError(f"model '{self.scorer.name}' is stopping")
        if not len(chains):
            return ColumnScores(np.empty(0, np.float32), [])
        if self._waiting_chains + len(chains) > self._queue_chains_max:
            raise OverloadedError(
                f"model '{self.scorer.name}' has {self._waiting_chains} chains waiting and room for"
                f" {self._queue_chains_max}; these are {len(chains)} more",
                self._retry_delay_ms(),
            )
        request = _Request(chains, asyncio.get_running_loop().create_future(), deadline_s)
        self._queue[request] = None
        self._waiting_chains += len(chains)
        self._waiting_bytes += len(chains.text)
        self._arrived.set()
        try:
            return await request.done
        finally:
            self._leave(request)

    async def close(self) -> None:
        """Fails what still waits, waits for the batch that is being computed, and stops."""
        self._closed = True
        for request in list(self._queue):
            self._leave(request)
            _fail(request, UnavailableError(f"model '{self.scorer.name}' is stopping"))
        self._arrived.set()
        await self._worker
        self._executor.shutdown()

    def _leave(self, request: _Request) -> None:
        """Takes what is left of a request out of the queue."""
        if request in self._queue:
            del self._queue[request]
            self._waiting_chains -= len(request.chains) - request.taken
            self._waiting_bytes -= len(request.chains.text) - request.chains.bytes_before(request.taken)
            request.taken = len(request.chains)

    async def _work(self) -> None:
        while not self._closed:
            if not self._queue:
                await self._wait_for_work()
            parts = self._take()
            if parts:
                await self._compute(parts)

    async def _wait_for_work(self) -> None:
        """Waits for a request; then, since the model was idle, a little for others to share its batch."""
        self._arrived.clear()
        await self._arrived.wait()
        try:
            async with asyncio.timeout(self.scorer.batch_wait_ms_max / 1000):
                while self._waiting_bytes < self.scorer.batch_tokens_max and not self._closed:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[_Part]:
        """Cuts a batch from the head of the queue, at least one chain; drops what is past its deadline."""
        parts: list[_Part] = []
        room_bytes, now_s = self.scorer.batch_tokens_max, self._now_s()
        while self._queue:
            request = next(iter(self._queue))
            if request.deadline_s is not None and now_s >= request.deadline_s:
                self._leave(request)
                _fail(request, DeadlineError("the deadline passed while the chains waited for the model"))
                continue
            start, end = request.taken, request.chains.fitting(request.taken, room_bytes)
            if end == start and not parts:
                end += 1
            if end > start:
                size_bytes = request.chains.bytes_before(end) - request.chains.bytes_before(start)
                room_bytes -= size_bytes
                self._waiting_bytes -= size_bytes
                self._waiting_chains -= end - start
                request.taken = end
                parts.append(_Part(request, start, end))
            if end < len(request.chains):
                break
            del self._queue[request]
        return parts

    async def _compute(self, parts: list[_Part]) -> None:
        """Runs a batch and hands out its scores. Never raises the model's failure."""
        batch = ChainColumns.concatenate([part.chains for part in parts])
        started_s = self._now_s()
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self.scorer.score_columns, batch)
            if len(found.scores) != batch.step_count:
                raise ValueError(f"it gave {len(found.scores)} scores for {batch.step_count} steps")
        except Exception as error:
            logger.exception("model '%s' failed on a batch of %d chains", self.scorer.name, len(batch))
            for part in parts:
                self._leave(part.request)
                _fail(part.request, ModelError(f"model '{self.scorer.name}' failed: {type(error).__name__}: {error}"))
            return
        self._learn_throughput(len(batch), self._now_s() - started_s)
        at = 0
        for part in parts:
            request, size = part.request, part.end - part.start
            mine = found.part(batch, at, at + size)
            request.scores.append(mine.scores)
            request.faults.extend(fault._replace(chain=fault.chain + part.start) for fault in mine.faults)
            at += size
            if part.end == len(request.chains) and not request.done.done():
                request.done.set_result(ColumnScores(np.concatenate(request.scores), request.faults))

    def _learn_throughput(self, chains: int, elapsed_s: float) -> None:
        newest = chains / max(elapsed_s, 1e-6)
        weight = _THROUGHPUT_WEIGHT if self._chains_per_s else 1.0
        self._chains_per_s += weight * (newest - self._chains_per_s)

    def _retry_delay_ms(self) -> int:
        """When the queue will probably be empty, by the recent throughput."""
        if not self._chains_per_s:
            return _RETRY_DELAY_MS_UNKNOWN
        delay_ms = 1000 * self._waiting_chains / self._chains_per_s
        return round(min(max(delay_ms, _RETRY_DELAY_MS_MIN), _RETRY_DELAY_MS_MAX))


def _fail(request: _Request, error: Exception) -> None:
    if not request.done.done():
        request.done.set_exception(error)
