"""Transactions that many calls share: those that come while one runs are all answered by the next one.

A transaction costs a dozen trips to the database's thread or server, whatever it is asked for. So under load a call costs its
share of one; a call that is alone is answered at once, as ever. Nothing is remembered: what a call is told was read, or written,
after it came.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import update_wrapper
from itertools import islice
from typing import Concatenate, Generic, ParamSpec, TypeVar

from ramify.store.database import Database, again

Q = TypeVar("Q")
A = TypeVar("A")
P = ParamSpec("P")
Answers = Sequence[A | Exception]

GATHERING_S = 0.005  # for calls to come to those that came during a transaction: else the next one would be for few of them
CALLS_A_READ = 4096  # that ask for the same


def together(
    most: int,
) -> Callable[
    [Callable[Concatenate[Database, Sequence[Q], P], Awaitable[Answers[A]]]],
    Callable[Concatenate[Database, Q, P], Awaitable[A]],
]:
    """Make of a transaction that answers many questions a function that asks one of them.

    The transaction returns an answer for each question, in their order, or the error that is its answer; what it raises, all are
    told. Those with equal further arguments share it. It runs to its end, though callers leave, who wait for that; and again
    where another one has undone it: see `to_its_end`.

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
                return await queue.ask(question)
            queue = database.queues[key] = _Queue()

            async def run() -> None:
                try:
                    while some := queue.take(most):
                        await _settle(some, persistent(database, [*some.values()], *args, **kwargs))
                        if queue:
                            await asyncio.sleep(GATHERING_S)
                finally:
                    del database.queues[key]  # in the same step as the look that has found nobody
                    queue.cancel()  # those who are there when it is cancelled

            task = asyncio.create_task(run())
            database.running.add(task)
            task.add_done_callback(database.running.discard)
            return await queue.ask(question)

        return update_wrapper(ask, transaction)

    return decorate


class _Queue(Generic[Q, A]):
    """Calls that wait for one kind of transaction. There are no more of them than there are open calls."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[A], Q] = {}  # in the order in which they came

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, question: Q) -> A:
        """Wait for its answer."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting[answer] = question
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if answer not in self._waiting:
                await asyncio.wait({answer})
            self._waiting.pop(answer, None)
            raise

    def cancel(self) -> None:
        """Tell all of them that nothing comes."""
        for answer in self.take(len(self)):
            answer.cancel()

    def take(self, most: int) -> "dict[asyncio.Future[A], Q]":
        """Those that are next."""
        some = dict(islice(self._waiting.items(), most))
        for answer in some:
            del self._waiting[answer]
        return some


async def _settle(waiting: "dict[asyncio.Future[A], Q]", transaction: Awaitable[Answers[A]]) -> None:
    """Tell each of them what has come of its transaction; if it is cancelled, so are they."""
    answers: Answers[A]
    try:
        answers = await transaction
    except Exception as error:
        answers = [error] * len(waiting)
    except BaseException:
        for future in waiting:
            future.cancel()
        raise
    for future, answer in zip(waiting, answers, strict=True):
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
