"""Transactions that many calls share: those that come while one runs are all answered by the next one.

A transaction costs a dozen trips to the database's thread or server, whatever it is asked for. So under load a call costs its
share of one, and without any it is answered at once, as ever. Nothing is remembered: what a call is told was read, or written,
after it came.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import update_wrapper
from typing import Concatenate, Generic, ParamSpec, TypeVar

from ramify.store.database import Database, again

Q = TypeVar("Q")
A = TypeVar("A")
P = ParamSpec("P")
Answers = Sequence[A | Exception]


def together(
    most: int,
) -> Callable[
    [Callable[Concatenate[Database, Sequence[Q], P], Awaitable[Answers[A]]]],
    Callable[Concatenate[Database, Q, P], Awaitable[A]],
]:
    """Make of a transaction that answers many questions a function that asks one of them.

    The transaction returns an answer for each question, in their order, or the error that is its answer; what it raises, all are
    told. Those with equal further arguments share it. It runs to its end, though callers leave, and again where another one has
    undone it, as with `to_its_end`.

    Args:
        most: questions of one transaction.
    """

    def decorate(
        transaction: Callable[Concatenate[Database, Sequence[Q], P], Awaitable[Answers[A]]],
    ) -> Callable[Concatenate[Database, Q, P], Awaitable[A]]:
        persistent = again(transaction)

        async def ask(database: Database, question: Q, /, *args: P.args, **kwargs: P.kwargs) -> A:
            key = (transaction, args, *kwargs.items())
            queue: _Queue[Q, A] | None = database.queues.get(key)
            if queue is not None:
                return await queue.add(question)
            queue = database.queues[key] = _Queue(most)
            answer = queue.add(question)

            async def run() -> None:
                try:
                    while some := queue.take():
                        await some.settle(persistent(database, some.questions, *args, **kwargs))
                finally:
                    del database.queues[key]  # in the same step as the look that has found nobody

            task = asyncio.create_task(run())
            database.running.add(task)
            task.add_done_callback(database.running.discard)
            return await answer

        return update_wrapper(ask, transaction)

    return decorate


class _Queue(Generic[Q, A]):
    """Calls that wait for one kind of transaction. There are no more of them than there are open calls."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting = deque[tuple[Q, asyncio.Future[A]]]()

    def add(self, question: Q) -> asyncio.Future[A]:
        """What will be its answer."""
        found: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, found))
        return found

    def take(self) -> "_Batch[Q, A] | None":
        """Those that are next, without those that have left; None: nobody waits."""
        found = list[tuple[Q, asyncio.Future[A]]]()
        while self._waiting and len(found) < self._most:
            each = self._waiting.popleft()
            if not each[1].done():
                found.append(each)
        return _Batch([question for question, _ in found], [future for _, future in found]) if found else None


class _Batch(Generic[Q, A]):
    """Calls that share a transaction."""

    def __init__(self, questions: Sequence[Q], futures: Sequence[asyncio.Future[A]]) -> None:
        self.questions, self._futures = questions, futures

    async def settle(self, transaction: Awaitable[Answers[A]]) -> None:
        """Tell each of its callers what comes of it."""
        answers: Answers[A]
        try:
            answers = await transaction
        except Exception as error:
            answers = [error] * len(self._futures)
        for future, answer in zip(self._futures, answers, strict=True):
            if future.done():  # its caller has left
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
