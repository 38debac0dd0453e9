"""The actor around a shell, without Ray: it starts the shell anew, not too often, and says how it stands."""

from collections.abc import AsyncIterator

import numpy as np
import pytest

from ramify.scheduler.actors.config import FleetConfig, SystemConfig
from ramify.scheduler.actors.shard_actor import GOOD_S, RESTART_S, RESTART_S_MAX, ShardActor
from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.events import StepsScored
from ramify.scheduler.slots import SLOTS
from tests.unit.actors.house import LIMITS, House, house

NOTHING = np.empty(0, np.uint64)
ILLEGAL = StepsScored(NOTHING.astype(np.int64), NOTHING, NOTHING, np.empty(3, np.float32), NOTHING.astype(np.int32))


class Actor:
    """One in this process, on a clock that the test moves."""

    def __init__(self, home: House) -> None:
        config = SystemConfig(home.database.url, "127.0.0.1:1", FleetConfig(()), limits=LIMITS)
        self.now_s = 1000.0
        kind = ShardActor.__ray_metadata__.modified_class  # type: ignore[attr-defined]
        self.home, self.actor = home, kind(3, config, home.engines, lambda: self.now_s)

    async def works(self) -> bool:
        return (await self.actor.status()).shell is not None

    async def dies(self) -> None:
        """Its shell ends by an event that can't be; the supervisor hears of it at its next look."""
        shell, run = self.actor._shell, self.actor._run
        shell.post(ILLEGAL)
        await self.home.until(run.done)
        assert str(self.actor) == "ramify:shard:3 stopped"
        with pytest.raises(IllegalEvent):
            await self.actor.ensure()


@pytest.fixture
async def actor(sqlite_store: str) -> AsyncIterator[Actor]:
    async with house(sqlite_store) as home:
        found = Actor(home)
        yield found
        await found.actor.drain()
        if found.actor._store is not None:
            await found.actor._store.close()
        if found.actor._closing is not None:
            await found.actor._closing
        await found.actor._verifier.close()


async def test_it_works_and_says_so(actor: Actor) -> None:
    assert str(actor.actor) == "ramify:shard:3 up to 4096 trees"
    await actor.actor.ensure()
    await actor.home.until(lambda: len(actor.actor._shell.keeper.settled_claim.epochs) == SLOTS)
    assert str(actor.actor) == "ramify:shard:3 64 slots 0 trees"
    status = await actor.actor.status()
    assert (status.index, status.failures, status.shell.state, status.shell.slots) == (3, 0, "working", SLOTS)
    assert [(lane.engine, lane.alive, lane.slots) for lane in status.shell.lanes] == [("engine 0", True, 16)]
    assert await actor.actor.drain()
    assert str(actor.actor) == "ramify:shard:3 drained"
    await actor.actor.ensure()
    assert not await actor.works()


async def test_a_drain_is_cut_short_after_the_time_that_it_is_given(actor: Actor, caplog: pytest.LogCaptureFixture) -> None:
    await actor.actor.ensure()
    await actor.home.until(lambda: len(actor.actor._shell.keeper.settled_claim.epochs) == SLOTS)
    async with actor.home.database.write():  # the store lets nobody else write
        assert not await actor.actor.drain(0.05)
    assert "was cut short: it could not commit all within 0.05 s" in caplog.text
    assert str(actor.actor) == "ramify:shard:3 drained"


async def test_it_starts_anew_after_longer_and_longer_pauses(actor: Actor) -> None:
    await actor.actor.ensure()
    owners = set()
    for deaths in range(8):
        owners.add(actor.actor._shell.keeper.owner)
        await actor.dies()
        status = await actor.actor.status()
        assert (status.shell, status.failures) == (None, deaths + 1)
        assert status.failure.startswith("IllegalEvent: an event's counts do not add up")
        pause_s = min(RESTART_S * 2**deaths, RESTART_S_MAX)
        actor.now_s += pause_s - 0.01
        await actor.actor.ensure()
        assert not await actor.works()
        actor.now_s += 0.01
        await actor.actor.ensure()
        assert await actor.works()
    assert len(owners) == 8, "each is an incarnation of its own"
    actor.now_s += GOOD_S + 1
    await actor.dies()
    assert (await actor.actor.status()).failures == 1, "it had worked well for a while"
