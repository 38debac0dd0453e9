"""Together, or alone."""

import asyncio

from ramify.scheduler.actors.gate import Gate


class Party:
    """Guests of a gate, who leave when they are told to."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.inside: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> list[str]:
        """Guests in capitals want to be alone; who is inside then."""
        for name in names:
            self.leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._visit(name))
        return await self.now()

    async def go(self, *names: str) -> list[str]:
        for name in names:
            self.leave[name].set()
        return await self.now()

    async def cancel(self, name: str) -> list[str]:
        self.tasks[name].cancel()
        return await self.now()

    async def now(self) -> list[str]:
        for _ in range(10):
            await asyncio.sleep(0)
        return self.inside

    async def _visit(self, name: str) -> None:
        async with self.gate.passed(alone=name.isupper()):
            self.inside = [*self.inside, name]
            try:
                await self.leave[name].wait()
            finally:
                self.inside = [other for other in self.inside if other != name]


async def test_all_come_in_together_but_who_wants_to_be_alone() -> None:
    party = Party()
    assert await party.come("a", "b") == ["a", "b"]
    assert await party.come("X", "c", "Y", "d") == ["a", "b"]
    assert await party.go("a") == ["b"]
    assert await party.go("b") == ["X"]
    assert await party.go("X") == ["c"], "who came before Y"
    assert await party.go("c") == ["Y"]
    assert await party.go("Y") == ["d"]
    assert await party.go("d") == []
    assert await party.come("Z") == ["Z"]
    await party.go("Z")


async def test_who_gives_up_at_the_door_lets_the_next_one_in() -> None:
    party = Party()
    await party.come("a", "X", "b", "Y")
    assert await party.cancel("X") == ["a", "b"]
    assert await party.cancel("a") == ["b"]
    assert await party.cancel("b") == ["Y"]
    assert await party.cancel("Y") == []
    assert await party.come("c") == ["c"]
    await party.go("c")


async def test_who_gives_up_just_when_let_in_takes_nothing_along() -> None:
    party = Party()
    await party.come("X", "Y", "c")
    party.leave["X"].set()
    await asyncio.sleep(0)
    assert await party.cancel("Y") == ["c"]
    await party.go("c")
