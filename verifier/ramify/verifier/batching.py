"""Continuous batching: many small requests become few large calls of a model, and the next call takes what waits by then.

One `Batcher` a model: a bounded queue of requests, the lowest priority number first and then in order of arrival, and workers
that cut batches from its head, by tokens, and run them in threads. A request larger than a batch is cut; a batch takes from as
many requests as fit. What can't be done before its deadline is refused when it comes, or dropped before it is computed.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from ramify.verifier.backends.base import Scorer
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import DeadlineError, InvalidRequestError, ModelError, OverloadedError, UnavailableError
from ramify.verifier.metrics import Metrics, ModelMetrics

logger = logging.getLogger(__name__)

Learn: TypeAlias = Callable[[int, ChainColumns, ColumnScores], None]
"""Takes chains of a request, from the one of that number on, and their scores."""

QUEUE_CHAINS_MAX = 65_536
QUEUE_BYTES_MAX = 256 << 20
PRIORITY_MAX = 100

# Bounds on the advice to an overloaded caller, and the advice before there is any throughput to go by.
_RETRY_DELAY_MS_MIN, _RETRY_DELAY_MS_MAX, _RETRY_DELAY_MS_UNKNOWN = 10, 10_000, 100

# Weight of the newest batch in the recent throughput: it forgets in about ten batches.
_THROUGHPUT_WEIGHT = 0.2

# Times the expected delay that a deadline has to allow: whoever is taken on is to be in time, and what is expected is a guess.
_PATIENCE = 2.0

# A batch is to take no longer, so that deadlines can be met; or than this many times what the shortest batches take, which is
# what a batch costs whatever is in it.
_BATCH_S, _BATCH_SHORTEST = 0.05, 3.0

# The shortest batch is forgotten by this with each batch.
_SHORTEST_GROWTH = 1.01

# What the throughput is thought to grow by with each request that it makes us drop, up to so many times what was ever measured: a
# wrong one must not keep itself alive.
_DOUBT, _DOUBT_MAX = 1.1, 100.0


@dataclass(eq=False, slots=True)
class _Request:
    """Chains that arrived together. Those before `taken` are in a batch or done."""

    chains: ChainColumns
    ends: NDArray[np.int64]  # [R] where each chain's tokens end
    priority: int
    deadline_s: float
    arrived_s: float
    done: asyncio.Future[ColumnScores]
    learn: Learn | None
    scores: NDArray[np.float32]  # of all steps, as far as they are there
    missing: int  # chains without scores
    taken: int = 0
    faults: list[ChainFault] = field(default_factory=list)

    def tokens(self, start: int, end: int) -> int:
        """Of the chains [start, end)."""
        return int(self.ends[end - 1] - (self.ends[start - 1] if start else 0)) if end > start else 0

    def fitting(self, tokens_max: int) -> int:
        """The end of the longest run of chains that are not taken and have at most so many tokens."""
        before = int(self.ends[self.taken - 1]) if self.taken else 0
        return max(self.taken, int(np.searchsorted(self.ends, before + tokens_max, "right")))


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
        metrics: Where it tells how it fares; None: nowhere.
        now_s: The clock, in seconds, that deadlines are on; the event loop's by default.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        queue_chains_max: int = QUEUE_CHAINS_MAX,
        metrics: ModelMetrics | None = None,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        self.scorer = scorer
        self.metrics = metrics or ModelMetrics(Metrics(CollectorRegistry()), scorer.name)
        self._queue_chains_max = queue_chains_max
        self._now_s = now_s or asyncio.get_running_loop().time
        self._queues: dict[int, OrderedDict[_Request, None]] = {}  # by priority; none of them is empty
        self._waiting_chains = self._waiting_bytes = 0  # with those whose tokens are being counted
        self._waiting: Counter[int] = Counter()  # tokens by priority
        self._computing_tokens = 0
        self._arrived = asyncio.Event()
        self._tokens_per_s = self._fastest = 0.0
        self._shortest_s = float("inf")
        self._executor = ThreadPoolExecutor(scorer.calls_max, thread_name_prefix=f"scorer-{scorer.name}")
        self._counting = ThreadPoolExecutor(1, thread_name_prefix=f"tokens-{scorer.name}")
        self._workers = [asyncio.create_task(self._work(), name=f"batcher-{scorer.name}") for _ in range(scorer.calls_max)]
        self._closed = False

    @property
    def waiting_chains(self) -> int:
        """Chains in the queue, those being computed not among them."""
        return self._waiting_chains

    @property
    def waiting_tokens(self) -> int:
        """Of the chains in the queue, as far as they have been counted."""
        return self._waiting.total()

    @property
    def failure(self) -> str:
        """Why it scores no more; empty while it can."""
        dead = next((worker for worker in self._workers if worker.done() and not self._closed), None)
        return self.scorer.failure or (f"its worker has ended: {dead.exception()}" if dead is not None else "")

    async def score(
        self, chains: ChainColumns, deadline_s: float | None = None, priority: int = 0, learn: Learn | None = None
    ) -> ColumnScores:
        """The scores of the chains. A cancelled call leaves the queue at once.

        Args:
            chains: What to score.
            deadline_s: When the scores are worthless, on the batcher's clock.
            priority: Who has the lower number is scored first.
            learn: Called with the scores of the chains from a number on as soon as they are there, even if nobody waits any more.

        Raises:
            OverloadedError: the queue has no room for them all, or they could not be done before the deadline.
            DeadlineError: the deadline passed while they waited.
            ModelError: the model failed on a batch with one of them.
            UnavailableError: the batcher is closed, or the model can score no more.
        """
        self._check_there()
        if not len(chains):
            return ColumnScores(np.empty(0, np.float32), [])
        if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
            raise InvalidRequestError(f"priority is {priority}; it must be from {-PRIORITY_MAX} to {PRIORITY_MAX}")
        deadline_s = float("inf") if deadline_s is None else deadline_s
        self._check_room(chains)
        self._hold(len(chains), len(chains.text))
        try:
            ends = np.cumsum(await self._tokens(chains), dtype=np.int64)
            self._check_time(int(ends[-1]), priority, deadline_s)
        except BaseException:
            self._hold(-len(chains), -len(chains.text))
            raise
        done: asyncio.Future[ColumnScores] = asyncio.get_running_loop().create_future()
        scores = np.empty(chains.step_count, np.float32)
        request = _Request(chains, ends, priority, deadline_s, self._now_s(), done, learn, scores, len(chains))
        self._queues.setdefault(priority, OrderedDict())[request] = None
        self._waiting[priority] += int(ends[-1])
        self._arrived.set()
        try:
            self._check_there()  # meanwhile
            return await done
        finally:
            self._leave(request)

    async def close(self) -> None:
        """Fails what still waits, waits for the batches that are being computed, and stops."""
        self._closed = True
        self._fail_waiting(self._stopping())
        self._arrived.set()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for executor in (self._counting, self._executor):
            await asyncio.to_thread(executor.shutdown)
        self.scorer.close()

    def _fail_waiting(self, error: Exception) -> None:
        for request in [request for queue in self._queues.values() for request in queue]:
            self._leave(request)
            _fail(request, error)

    async def _tokens(self, chains: ChainColumns) -> NDArray[np.int64]:
        if not self.scorer.tokenizes:
            return self.scorer.tokens(chains)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._counting, self.scorer.tokens, chains)
        except RuntimeError as error:
            if self._closed:  # the executor takes nothing more
                raise self._stopping() from error
            raise

    def _check_there(self) -> None:
        if self._closed:
            raise self._stopping()
        if failure := self.failure:
            raise self._gone(failure)

    def _check_time(self, tokens: int, priority: int, deadline_s: float) -> None:
        """Refuses what will probably not have its first batch in time: the others' turn will come when it is asked again."""
        wait_s = self._wait_s(priority) + self._seconds_for(min(tokens, self._batch_tokens))
        if self._queues and self._now_s() + _PATIENCE * wait_s > deadline_s:
            why = f"they would wait for about {wait_s * 1000:.0f} ms, too long for their deadline"
            raise OverloadedError(f"model '{self.scorer.name}' is busy: {why}", self._retry_delay_ms())

    def _check_room(self, chains: ChainColumns) -> None:
        waiting = self._waiting_chains
        if not (waiting or self._computing_tokens):
            return  # what is larger than the queue comes alone
        if waiting + len(chains) > self._queue_chains_max:
            why = f"and room for {self._queue_chains_max}; these are {len(chains)} more"
        elif self._waiting_bytes + len(chains.text) > QUEUE_BYTES_MAX:
            why = f"of {self._waiting_bytes >> 20} MiB, and room for {QUEUE_BYTES_MAX >> 20} MiB"
        else:
            return
        raise OverloadedError(f"model '{self.scorer.name}' has {waiting} chains waiting {why}", self._retry_delay_ms())

    def _stopping(self) -> UnavailableError:
        return UnavailableError(f"model '{self.scorer.name}' is stopping")

    def _gone(self, failure: str) -> UnavailableError:
        return UnavailableError(f"model '{self.scorer.name}' scores no more: {failure}")

    def _hold(self, chains: int, size_bytes: int) -> None:
        self._waiting_chains += chains
        self._waiting_bytes += size_bytes
        self.metrics.queue_chains.set(self._waiting_chains)

    def _leave(self, request: _Request) -> None:
        """Takes what is left of a request out of the queue."""
        if request in self._queues.get(request.priority, ()):
            self._dequeue(request)
            self._take_from(request, len(request.chains))

    def _dequeue(self, request: _Request) -> None:
        queue = self._queues[request.priority]
        del queue[request]
        if not queue:
            del self._queues[request.priority]

    def _take_from(self, request: _Request, end: int) -> int:
        """Takes a request's chains up to `end`; their tokens."""
        start, chains, tokens = request.taken, request.chains, request.tokens(request.taken, end)
        self._hold(start - end, chains.bytes_before(start) - chains.bytes_before(end))
        self._waiting[request.priority] -= tokens
        if not self._waiting[request.priority]:
            del self._waiting[request.priority]
        request.taken = end
        return tokens

    async def _work(self) -> None:
        while not self._closed:
            if not self._queues:
                await self._wait_for_work()
            parts, tokens = self._take()
            if parts:
                await self._compute(parts, tokens)

    async def _wait_for_work(self) -> None:
        """Waits for a request; then, since the model was idle, a little for others to share its batch."""
        while not self._queues and not self._closed:
            self._arrived.clear()
            await self._arrived.wait()
        try:
            async with asyncio.timeout(self.scorer.batch_wait_ms_max / 1000):
                while self.waiting_tokens < self.scorer.batch_tokens_max and not self._closed:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def _take(self) -> tuple[list[_Part], int]:
        """Cuts a batch of at least one chain from the head of the queue; and its tokens. Drops what is too late."""
        parts: list[_Part] = []
        tokens, now_s = 0, self._now_s()
        while self._queues:
            request = next(iter(self._queues[min(self._queues)]))
            room = self._batch_tokens - tokens
            start, end = request.taken, request.fitting(room)
            if end == start and not parts:
                end += 1
            if now_s + self._seconds_for(tokens + request.tokens(start, end)) >= request.deadline_s:
                self._leave(request)
                if now_s < request.deadline_s:
                    self._tokens_per_s = min(self._tokens_per_s * _DOUBT, self._fastest * _DOUBT_MAX)
                self.metrics.expired_chains.inc(len(request.chains) - start)
                _fail(request, DeadlineError("the deadline passed while the chains waited for the model, or would have"))
                continue
            if end > start:
                self.metrics.queue_seconds.observe(now_s - request.arrived_s)
                tokens += self._take_from(request, end)
                parts.append(_Part(request, start, end))
            if end < len(request.chains):
                break
            self._dequeue(request)
        return parts, max(tokens, 1)

    async def _compute(self, parts: list[_Part], tokens: int) -> None:
        """Runs a batch and hands out its scores. Never raises the model's failure."""
        started_s, full = self._now_s(), bool(self._queues) or tokens > self.scorer.batch_tokens_max // 2
        self._computing_tokens += tokens
        try:
            batch = ChainColumns.concatenate([part.chains for part in parts])
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self.scorer.score_columns, batch)
            found = found.checked(batch)
        except Exception as error:
            self._failed(parts, error)
            return
        finally:
            self._computing_tokens -= tokens
        elapsed_s = self._now_s() - started_s
        self._shortest_s = min(self._shortest_s * _SHORTEST_GROWTH, elapsed_s)
        if full or elapsed_s > _BATCH_S:  # a small batch of an idle model says little
            self._learn_throughput(tokens, elapsed_s)
        self.metrics.batch(tokens, elapsed_s)
        at = 0
        for part in parts:
            at = self._hand_out(part, found, batch, at)

    def _failed(self, parts: list[_Part], error: Exception) -> None:
        """Fails the requests of a batch; if the model is gone, so that they may go elsewhere."""
        name, gone = self.scorer.name, self.scorer.failure
        logger.error(
            "model '%s' failed on a batch of %d chains", name, sum(part.end - part.start for part in parts), exc_info=error
        )
        self.metrics.failed_batches.inc()
        for part in parts:
            self._leave(part.request)
            told = f"model '{name}' failed: {type(error).__name__}: {error}"
            _fail(part.request, self._gone(gone) if gone else ModelError(told))
        if gone:
            self._fail_waiting(self._gone(gone))

    def _hand_out(self, part: _Part, found: ColumnScores, batch: ChainColumns, at: int) -> int:
        """Gives a request the scores of its chains, which are those of the batch from `at` on; where they end there."""
        request, end = part.request, at + part.end - part.start
        mine, ends = found.part(batch, at, end), request.chains.step_ends
        first = int(ends[part.start - 1]) if part.start else 0
        request.scores[first : first + len(mine.scores)] = mine.scores
        request.faults.extend(fault._replace(chain=fault.chain + part.start) for fault in mine.faults)
        if request.learn is not None:
            request.learn(part.start, part.chains, mine)
        request.missing -= part.end - part.start
        if not request.missing and not request.done.done():
            request.done.set_result(ColumnScores(request.scores, sorted(request.faults)))
        return end

    @property
    def _batch_tokens(self) -> int:
        """Tokens that are worth one call and don't take too long, by the recent throughput."""
        if not self._tokens_per_s:
            return self.scorer.batch_tokens_max
        return min(self.scorer.batch_tokens_max, int(self._tokens_per_s * max(_BATCH_S, _BATCH_SHORTEST * self._shortest_s)))

    def _learn_throughput(self, tokens: int, elapsed_s: float) -> None:
        newest = max(tokens, 1) / max(elapsed_s, 1e-6)
        self._fastest = max(self._fastest, newest)
        weight = _THROUGHPUT_WEIGHT if self._tokens_per_s else 1.0
        self._tokens_per_s += weight * (newest - self._tokens_per_s)

    def _seconds_for(self, tokens: int) -> float:
        """How long so many tokens will probably take, by the recent throughput; 0 before there is any."""
        return tokens / self._tokens_per_s if self._tokens_per_s else 0.0

    def _wait_s(self, priority: int = PRIORITY_MAX) -> float:
        """When it will probably have computed all that waits and goes before what would come now with this priority."""
        before = sum(tokens for each, tokens in self._waiting.items() if each <= priority)
        return self._seconds_for(before + self._computing_tokens) / len(self._workers)

    def _retry_delay_ms(self) -> int:
        """When there will probably be room."""
        if not self._tokens_per_s:
            return _RETRY_DELAY_MS_UNKNOWN
        return round(min(max(1000 * self._wait_s(), _RETRY_DELAY_MS_MIN), _RETRY_DELAY_MS_MAX))


def _fail(request: _Request, error: Exception) -> None:
    if not request.done.done():
        request.done.set_exception(error)
