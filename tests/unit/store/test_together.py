"""Calls that share transactions. The transactions here are stand-ins that end when they are told to."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ramify.store.database import Database
from ramify.store.errors import Contention, DiskFull, JobNotFound
from ramify.store.together import together
from tests.waiting import WAIT_S


class Transactions:
    """Answers to numbers, at most three at once, once `go` is set."""

    def __init__(self) -> None:
        self.database = Database("sqlite+aiosqlite:///nobody-opens-it.db")
        self.batches: list[list[int]] = []
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.raises: list[Exception] = []
        self._ask: Callable[[Database, int], Awaitable[str]] = together(most=3)(self._answer)

    async def _answer(self, database: Database, numbers: Sequence[int]) -> list[str | Exception]:
        self.batches.append([*numbers])
        self.begun.set()
        await self.go.wait()
        if self.raises:
            raise self.raises.pop()
        return [JobNotFound(f"no {number}") if number < 0 else f"answer {number}" for number in numbers]

    async def ask(self, *numbers: int) -> Sequence[asyncio.Future[str]]:
        """Calls, of which the first one's transaction runs already."""
        first, *others = numbers
        calls = [asyncio.ensure_future(self._ask(self.database, first))]
        await self.begun.wait()
        calls += [asyncio.ensure_future(self._ask(self.database, number)) for number in others]
        await asyncio.sleep(0)  # so that they have asked
        return calls


async def test_calls_that_come_meanwhile_share_the_next_ones() -> None:
    transactions = Transactions()
    calls = await transactions.ask(0, 1, 2, 3, 4, 5)
    transactions.go.set()
    assert await asyncio.gather(*calls) == [f"answer {number}" for number in range(6)]
    (again,) = await transactions.ask(7)
    assert await again == "answer 7"
    assert transactions.batches == [[0], [1, 2, 3], [4, 5], [7]]
    await asyncio.gather(*transactions.database.running)
    assert not transactions.database.queues


async def test_errors_of_one_and_of_all() -> None:
    transactions = Transactions()
    calls = await transactions.ask(0, 1, -2, 3, 4)
    transactions.raises = [DiskFull("full")]
    transactions.go.set()
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(each) for each in told] == ["full", "answer 1", "no -2", "answer 3", "answer 4"]
    assert isinstance(told[2], JobNotFound)


async def test_who_leaves_waits_for_what_it_has_begun_and_takes_nobody_along() -> None:
    transactions = Transactions()
    begun, waits, stays = await transactions.ask(0, 1, 2)
    for left in (begun, waits):
        left.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    assert not begun.done()
    transactions.go.set()
    assert await stays == "answer 2"
    assert begun.cancelled()
    assert transactions.batches == [[0], [2]]


async def test_what_was_undone_starts_again_for_all() -> None:
    transactions = Transactions()
    transactions.raises = [Contention("again"), Contention("again")]
    calls = await transactions.ask(0, 1)
    transactions.go.set()
    assert await asyncio.gather(*calls) == ["answer 0", "answer 1"]
    assert transactions.batches == [[0], [0], [0], [1]]


async def test_a_store_that_closes_waits_for_them() -> None:
    transactions = Transactions()
    calls = await transactions.ask(0, 1)
    asyncio.get_running_loop().call_soon(transactions.go.set)
    await transactions.database.close()
    assert [call.done() for call in calls] == [True, True]


async def test_who_waits_for_one_that_is_cancelled_is_so_too() -> None:
    transactions = Transactions()
    calls = await transactions.ask(0, 1, 2)
    calls[0].cancel()
    (running,) = transactions.database.running
    running.cancel()
    await asyncio.wait(calls, timeout=WAIT_S)
    assert all(call.cancelled() for call in calls)
    assert running.cancelled()
    assert not transactions.database.queues
