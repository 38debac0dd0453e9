"""Dynamic batching: many small requests become few large calls of a model.

One `Batcher` a model: a bounded queue of requests in order of arrival, and one worker that cuts batches from its head
and runs them in a thread. A request larger than a batch is cut; a batch takes from as many requests as fit.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ramify.verifier.backends.base import Scorer
from ramify.verifier.chains import Chain, ChainScores
from ramify.verifier.errors import DeadlineError, ModelError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

QUEUE_CHAINS_MAX = 65_536

# Bounds on the advice to an overloaded caller, and the advice before there is any throughput to go by.
_RETRY_DELAY_MS_MIN, _RETRY_DELAY_MS_MAX, _RETRY_DELAY_MS_UNKNOWN = 10, 10_000, 100

# Weight of the newest batch in the recent throughput: it forgets in about ten batches.
_THROUGHPUT_WEIGHT = 0.2


@dataclass(eq=False, slots=True)
class _Request:
    """Chains that arrived together. Those before `taken` are in a batch or done; `scores` grows in order."""

    chains: Sequence[Chain]
    done: asyncio.Future[list[ChainScores]]
    deadline_s: float | None
    taken: int = 0
    scores: list[ChainScores] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    """A request's chains [start, end) in a batch."""

    request: _Request
    start: int
    end: int

    @property
    def chains(self) -> Sequence[Chain]:
        return self.request.chains[self.start : self.end]


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
        self._waiting_chars = 0
        self._arrived = asyncio.Event()
        self._chains_per_s = 0.0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"scorer-{scorer.name}")
        self._worker = asyncio.create_task(self._work(), name=f"batcher-{scorer.name}")
        self._closed = False

    @property
    def waiting_chains(self) -> int:
        """Chains in the queue, those being computed not among them."""
        return self._waiting_chains

    async def score(self, chains: Sequence[Chain], deadline_s: float | None = None) -> list[ChainScores]:
        """The scores of each chain, in order. A cancelled call leaves the queue at once.

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
        if not chains:
            return []
        if self._waiting_chains + len(chains) > self._queue_chains_max:
            raise OverloadedError(
                f"model '{self.scorer.name}' has {self._waiting_chains} chains waiting and room for"
                f" {self._queue_chains_max}; these are {len(chains)} more",
                self._retry_delay_ms(),
            )
        request = _Request(chains, asyncio.get_running_loop().create_future(), deadline_s)
        self._queue[request] = None
        self._waiting_chains += len(chains)
        self._waiting_chars += sum(map(_chars, chains))
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
            self._waiting_chars -= sum(map(_chars, request.chains[request.taken :]))
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
                while self._waiting_chars < self.scorer.batch_chars_max and not self._closed:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[_Part]:
        """Cuts a batch from the head of the queue, at least one chain; drops what is past its deadline."""
        parts: list[_Part] = []
        room_chars, now_s = self.scorer.batch_chars_max, self._now_s()
        while self._queue:
            request = next(iter(self._queue))
            if request.deadline_s is not None and now_s >= request.deadline_s:
                self._leave(request)
                _fail(request, DeadlineError("the deadline passed while the chains waited for the model"))
                continue
            start = end = request.taken
            while end < len(request.chains):
                chars = _chars(request.chains[end])
                if chars > room_chars and (parts or end > start):
                    break
                room_chars -= chars
                self._waiting_chars -= chars
                end += 1
            self._waiting_chains -= end - start
            request.taken = end
            if end > start:
                parts.append(_Part(request, start, end))
            if end < len(request.chains):
                break
            del self._queue[request]
        return parts

    async def _compute(self, parts: list[_Part]) -> None:
        """Runs a batch, each distinct chain once, and hands out its scores. Never raises the model's failure."""
        # A search often holds the same chain more than once: children that were sampled alike.
        unique = list(dict.fromkeys(chain for part in parts for chain in part.chains))
        started_s = self._now_s()
        try:
            loop = asyncio.get_running_loop()
            scores = await loop.run_in_executor(self._executor, self.scorer.score, unique)
            by_chain = dict(zip(unique, scores, strict=True))
        except Exception as error:
            logger.exception("model '%s' failed on a batch of %d chains", self.scorer.name, len(unique))
            for part in parts:
                self._leave(part.request)
                _fail(part.request, ModelError(f"model '{self.scorer.name}' failed: {type(error).__name__}: {error}"))
            return
        self._learn_throughput(sum(part.end - part.start for part in parts), self._now_s() - started_s)
        for part in parts:
            request = part.request
            request.scores.extend(by_chain[chain] for chain in part.chains)
            if part.end == len(request.chains) and not request.done.done():
                request.done.set_result(request.scores)

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


def _chars(chain: Chain) -> int:
    """Characters of a chain: near enough to its tokens, and free."""
    return len(chain.problem) + sum(map(len, chain.steps))


def _fail(request: _Request, error: Exception) -> None:
    if not request.done.done():
        request.done.set_exception(error)
