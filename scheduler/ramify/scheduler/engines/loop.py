"""The asyncio side of an engine: open iterators, one task that keeps the work going, faults that reach everybody."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from itertools import count

from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.columns import check_batch, concatenate
from ramify.scheduler.errors import EngineError

Ended = Sequence[tuple[int, StepResults]]
"""Rows that ended, by the ticket of the call they belong to."""


class EngineLoop(ABC):
    """Runs an engine's turns while there is work. Subclasses hold the work; all their methods run one at a time.

    A call of `generate` is known by its ticket. Submissions and cancellations are handed over between turns only, so
    a turn may run in another thread. The number of open rows is bounded by `slots + waiting_rows_max`.
    """

    def __init__(self, vocabulary: int, waiting_rows_max: int) -> None:
        self._vocabulary = vocabulary
        self._waiting_rows_max = waiting_rows_max
        self._tickets = count()
        self._inboxes: dict[int, asyncio.Queue[StepResults | EngineError]] = {}
        self._submitted: list[tuple[int, StepBatch]] = []
        self._cancelled: list[int] = []
        self._rows_open = 0
        self._rows_sampled = 0
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._closed = False

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """What the model is."""

    @abstractmethod
    def _check(self, batch: StepBatch) -> None:
        """Refuse what only this model can't take, with an EngineError."""

    @abstractmethod
    def _submit(self, ticket: int, batch: StepBatch) -> None:
        """Take in a call's rows."""

    @abstractmethod
    def _cancel(self, ticket: int) -> None:
        """Give a call's rows up; none of them may come up again."""

    @abstractmethod
    async def _turn(self) -> Ended:
        """Work for some milliseconds."""

    @abstractmethod
    def _idle(self) -> bool:
        """Whether no row waits or runs."""

    @abstractmethod
    async def _release(self) -> None:
        """Free what is held. Called once, after the last turn."""

    async def generate(self, batch: StepBatch) -> AsyncGenerator[StepResults, None]:
        """See `Engine.generate`; also raises where the engine is closed or dead, or too many rows wait."""
        self._raise_failure()
        check_batch(batch, self._vocabulary)
        self._check(batch)
        left = len(batch)
        if self._rows_open + left > self.info.slots + self._waiting_rows_max:
            raise EngineError(f"{self._rows_open} rows are open, {left} more would exceed the bound of waiting rows")
        if not left:
            return
        ticket, inbox = next(self._tickets), asyncio.Queue[StepResults | EngineError]()
        self._inboxes[ticket] = inbox
        self._submitted.append((ticket, batch))
        self._rows_open += left
        try:
            self._wake()
            while left:
                results = await _drain(inbox)
                left -= len(results.row)
                self._rows_open -= len(results.row)
                yield results
        finally:
            del self._inboxes[ticket]
            if left:
                self._rows_open -= left
                self._cancelled.append(ticket)
                self._wake()

    async def close(self) -> None:
        """See `Engine.close`: open iterators end with an EngineError."""
        if self._closed:
            return
        self._closed = True
        self._fail(EngineError("the engine was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._release()

    def _wake(self) -> None:
        # An idle engine has no task: one that is dropped unclosed leaves nothing behind.
        if self._failure is None and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._submitted or self._cancelled or not self._idle():
                self._hand_over()
                for ticket, results in await self._turn():
                    self._rows_sampled += len(results.row)
                    if (inbox := self._inboxes.get(ticket)) is not None:
                        inbox.put_nowait(results)
        except BaseException as fault:
            self._fail(fault)
            if not isinstance(fault, Exception):
                raise

    def _hand_over(self) -> None:
        for ticket, batch in self._submitted:
            self._submit(ticket, batch)
        for ticket in self._cancelled:
            self._cancel(ticket)
        self._submitted.clear()
        self._cancelled.clear()

    def _fail(self, fault: BaseException) -> None:
        self._failure = self._failure or fault
        for inbox in self._inboxes.values():
            inbox.put_nowait(self._error())

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._error()

    def _error(self) -> EngineError:
        error = EngineError(f"the engine can't go on: {self._failure!r}")
        error.__cause__ = self._failure
        return error


async def _drain(inbox: asyncio.Queue[StepResults | EngineError]) -> StepResults:
    """Everything that has come, at least one row; what came before a fault is lost with it."""
    parts = [await inbox.get()]
    while not inbox.empty():
        parts.append(inbox.get_nowait())
    results = []
    for part in parts:
        if isinstance(part, EngineError):
            raise part
        results.append(part)
    return concatenate(results)
