"""Keepers of leases on one store, on clocks that the test moves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from ramify.scheduler.actors.leases import BEAT_S_MAX, JOIN_S, MOVE_CHAINS_MAX, LeaseKeeper
from ramify.scheduler.actors.store_time import StoreTime
from ramify.scheduler.slots import SLOTS
from ramify.store.errors import Fenced, StoreUnavailable
from ramify.store.leases import Beat, Claim, Report
from ramify.store.work import Work
from tests.unit.store.stores import SqlStore, opened

LEASE_S = 12
Slots = list[int]


@dataclass
class Member:
    """A keeper, and what it has asked of its shard."""

    town: "Town"
    name: str
    loads: dict[int, int] = field(default_factory=dict)
    gained: list[Slots] = field(default_factory=list)
    offered: list[Slots] = field(default_factory=list)

    def __post_init__(self) -> None:
        work = self.town.store.other_work()
        assert isinstance(work, Work)
        self.work = work
        self.store_time = StoreTime(lambda: self.town.now_s)
        self.naps: asyncio.Queue[float] = asyncio.Queue()
        self.woken = asyncio.Event()
        self.keeper = LeaseKeeper(
            self.work,
            self.name,
            1000 * LEASE_S,
            report=lambda: Report(self.keeper.draining, {slot: self.loads.get(slot, 0) for slot in self.keeper.slots}),
            gained=self._gain,
            give_up=lambda slots: self.offered.append(list(slots)),
            store_time=self.store_time,
            now_s=lambda: self.town.now_s,
            sleep=self._sleep,
        )

    def _gain(self, claim: Claim) -> None:
        self.gained.append(list(claim.slots))
        if not self.town.slow:
            self.keeper.settled(claim.slots)

    async def _sleep(self, seconds: float) -> None:
        self.naps.put_nowait(seconds)
        await self.woken.wait()
        self.woken.clear()

    @property
    def slots(self) -> Slots:
        return self.keeper.slots

    async def hand_over(self) -> None:
        """Give up what was offered, as a commit does."""
        for slots in self.offered:
            await self.work.release(self.keeper.claim, slots)
            self.keeper.gone(slots)
        self.offered.clear()


class Town:
    """A store, a clock, and members."""

    def __init__(self, store: SqlStore) -> None:
        self.store, self.now_s = store, 100.0
        self.members: dict[str, Member] = {}
        self.slow = False  # whether what is gained takes time to settle

    def join(self, name: str) -> Member:
        self.members[name] = Member(self, name)
        return self.members[name]

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.store.advance(round(1000 * seconds))

    async def beat(self, *members: Member, times: int = 1, hand_over: bool = True) -> None:
        """Some (or all) beat in turn, a second passes, and what was offered is handed over."""
        for _ in range(times):
            for member in members or self.members.values():
                await member.keeper.beat()
            if hand_over:
                for member in members or self.members.values():
                    await member.hand_over()
            self.pass_time(1)

    @property
    def shares(self) -> list[int]:
        slots = [slot for member in self.members.values() for slot in member.slots]
        assert len(slots) == len(set(slots)), "nobody holds what another one holds"
        return [len(member.slots) for member in self.members.values()]


@pytest.fixture
async def town(sqlite_store: str) -> AsyncIterator[Town]:
    async with opened(sqlite_store) as store:
        assert isinstance(store, SqlStore)
        yield Town(store)


async def test_one_alone_says_that_it_is_there_and_then_takes_all(town: Town) -> None:
    one = town.join("shard:0@a")
    await town.beat()
    assert one.slots == [], "others may be just starting"
    await town.beat()
    assert one.slots == [*range(SLOTS)]
    assert one.gained == [[*range(SLOTS)]]
    assert sorted(one.keeper.claim.epochs) == [*range(SLOTS)]
    await town.beat(times=3)
    assert len(one.gained) == 1


async def test_those_that_start_at_once_share_without_a_move(town: Town) -> None:
    members = [town.join(f"shard:{index}@a") for index in range(3)]
    await town.beat(times=4)
    assert sorted(town.shares) == [21, 21, 22]
    assert not any(member.offered for member in members)
    assert all(len(member.gained) == 1 for member in members)


async def test_slots_move_to_who_comes_and_from_who_goes(town: Town) -> None:
    one, two = town.join("shard:0@a"), town.join("shard:1@a")
    await town.beat(times=3)
    three = town.join("shard:2@a")
    await town.beat(times=5)
    assert sorted(town.shares) == [21, 21, 22]
    two.keeper.draining = True
    await town.beat(hand_over=False)
    two.keeper.leaving(two.slots)
    two.offered.append(two.slots)
    await two.hand_over()
    await town.beat(one, three, times=2)
    assert town.shares == [32, 0, 32]
    await town.beat(times=2)
    assert (town.shares, two.offered) == ([32, 0, 32], []), "who drains takes nothing"


async def test_a_silent_shards_slots_are_taken_when_its_lease_ends_and_not_before(town: Town) -> None:
    one, two = town.join("shard:0@a"), town.join("shard:1@a")
    await town.beat(times=3)
    last_beat_s = town.now_s - 1
    while town.now_s < last_beat_s + LEASE_S:
        await town.beat(one)
        assert len(one.slots) == SLOTS / 2
    await town.beat(one)
    assert len(one.slots) == SLOTS
    with pytest.raises(Fenced, match=r"shard:1@a does not hold slots .* any more: another has taken over"):
        await two.keeper.beat()


async def test_a_successor_takes_its_predecessors_slots_with_its_first_beat(town: Town) -> None:
    one, two = town.join("shard:0@a"), town.join("shard:1@a")
    await town.beat(times=3)
    heir = town.join("shard:0@b")
    former = one.slots
    await town.beat(heir)
    assert heir.slots == former
    assert heir.gained == [former]
    with pytest.raises(Fenced):
        await one.keeper.beat()
    await town.beat(heir, two, times=3)
    assert (len(heir.slots), len(two.slots), two.offered) == (32, 32, []), "for the others nothing has changed"


async def test_shards_of_the_same_number_in_two_ray_clusters_share_and_hand_over(town: Town) -> None:
    blue, green = town.join("blue/shard:0@a"), town.join("green/shard:0@b")
    await town.beat(times=4)
    assert sorted(town.shares) == [32, 32], "neither takes the other for its own predecessor"
    heir, former = town.join("blue/shard:0@c"), blue.slots
    await town.beat(heir)
    assert heir.slots == former, "and each has its own successors"
    with pytest.raises(Fenced):
        await blue.keeper.beat()
    await town.beat(heir, green, times=3)
    assert (len(heir.slots), len(green.slots), green.offered) == (32, 32, [])


async def test_a_successor_is_the_newest_though_the_stores_clock_was_set_back(town: Town) -> None:
    one, two = town.join("shard:0@a"), town.join("shard:1@a")
    await town.beat(times=3)
    town.store.advance(-3_600_000)
    heir = town.join("shard:0@b")
    former = one.slots
    await town.beat(heir)
    assert heir.slots == former
    await town.beat(heir, two, times=3)
    assert (heir.slots, len(two.slots), two.offered, heir.offered) == (former, 32, [], [])
    with pytest.raises(Fenced):
        await one.keeper.beat()


async def test_who_leaves_while_slots_are_claimed_knows_what_it_has_to_give_up(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were nobody's until the lease ended of one that had left."""
    one = town.join("shard:0@a")
    await town.beat()
    claim, leaving = one.work.claim, list[asyncio.Task[None]]()

    async def told_meanwhile(owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        leaving.append(asyncio.create_task(one.keeper.take_no_more()))
        return await claim(owner, wanted, ttl_ms)

    monkeypatch.setattr(one.work, "claim", told_meanwhile)
    await one.keeper.beat()
    assert not leaving[0].done()
    assert one.slots == [*range(SLOTS)]
    await one.keeper.beat()
    await leaving[0]
    assert len(leaving) == 1, "nothing more was claimed"


async def test_what_is_just_handed_over_is_neither_missed_nor_taken_back(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit frees slots while a beat is under way; the beat has seen them as ours, or not any more."""
    one = town.join("shard:0@a")
    await town.beat(times=2)
    one.keeper.draining = True
    one.keeper.leaving([3])
    await one.work.release(one.keeper.claim, [3])  # it is durable, and its answer on its way
    await one.keeper.beat()
    one.keeper.gone([3])
    assert 3 not in one.slots

    beat = one.work.beat

    async def then_handed_over(owner: str, ttl_ms: int, report: Report) -> Beat:
        found = await beat(owner, ttl_ms, report)
        one.keeper.gone([5])
        return found

    one.keeper.leaving([5])
    monkeypatch.setattr(one.work, "beat", then_handed_over)
    await one.keeper.beat()
    assert 5 not in one.slots
    assert len(one.gained) == 1


async def test_a_claim_whose_answer_was_lost_is_good(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    one = town.join("shard:0@a")
    await town.beat()
    claim = one.work.claim

    async def lost(owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        await claim(owner, wanted, ttl_ms)
        raise StoreUnavailable("the connection broke")

    monkeypatch.setattr(one.work, "claim", lost)
    with pytest.raises(StoreUnavailable):
        await one.keeper.beat()
    assert one.slots == []
    await town.beat()
    assert len(one.slots) == SLOTS
    assert one.gained == [[*range(SLOTS)]]


async def test_what_is_not_settled_stays_until_it_is(town: Town) -> None:
    town.slow = True
    one = town.join("shard:0@a")
    await town.beat(times=2)
    two = town.join("shard:1@a")
    await town.beat(times=3)
    assert town.shares == [64, 0]
    assert len(one.keeper.busy) == SLOTS
    assert one.keeper.settled_claim.slots == ()
    one.keeper.settled(range(40))
    await town.beat(times=3)
    assert town.shares == [32, 32]
    assert min(two.slots) < 40
    assert not set(two.slots) - set(range(40))


async def test_heavy_slots_move_a_few_at_a_time(town: Town) -> None:
    one = town.join("shard:0@a")
    one.loads = dict.fromkeys(range(SLOTS), MOVE_CHAINS_MAX // 4)
    await town.beat(times=3)
    town.join("shard:1@a")
    offered = []
    for _ in range(12):
        await town.beat(hand_over=False)
        offered.append(sum(map(len, one.offered)))
        await one.hand_over()
    assert max(offered) == 4
    assert town.shares == [32, 32]
    one.loads = {one.slots[0]: 10 * MOVE_CHAINS_MAX}
    await town.beat(times=2)
    town.join("shard:2@a")
    await town.beat(times=4)
    assert sorted(town.shares) == [21, 21, 22], "one slot may be heavier than that"


async def test_it_is_stale_when_no_beat_has_succeeded_for_two_thirds_of_a_lease(town: Town) -> None:
    one = town.join("shard:0@a")
    await town.beat(times=2)
    assert not one.keeper.stale
    town.pass_time(LEASE_S * 2 / 3 - 1)
    assert not one.keeper.stale
    town.pass_time(0.1)
    assert one.keeper.stale, "or the process has stood still: this machine's clock has not"
    await one.keeper.beat()
    assert not one.keeper.stale
    town.pass_time(100 * LEASE_S)
    await one.keeper.beat()
    assert len(one.slots) == SLOTS, "a lease that has ended, and nobody has taken the slots: it goes on"


async def test_it_beats_every_second_and_at_once_when_it_is_hurried(town: Town) -> None:
    one = town.join("shard:0@a")
    running = asyncio.create_task(one.keeper.run())
    assert await one.naps.get() == JOIN_S
    one.woken.set()
    assert await one.naps.get() == BEAT_S_MAX
    assert len(one.slots) == SLOTS
    await town.store.work.release(one.keeper.claim, [7])
    one.keeper.hurry()
    with pytest.raises(Fenced):
        await running


async def test_it_goes_on_trying_while_the_store_is_away(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    one = town.join("shard:0@a")
    await town.beat(times=2)
    beat, tries = one.work.beat, 0

    async def away(owner: str, ttl_ms: int, report: Report) -> Beat:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StoreUnavailable("it is away")
        return await beat(owner, ttl_ms, report)

    monkeypatch.setattr(one.work, "beat", away)
    town.pass_time(LEASE_S)
    running = asyncio.create_task(one.keeper.run())
    for _ in range(4):
        assert one.keeper.stale
        await one.naps.get()
        one.woken.set()
    assert (tries, one.keeper.stale, len(one.slots)) == (4, False, SLOTS)
    running.cancel()
    await asyncio.wait({running})


# --- the store's time ---------------------------------------------------------------------------------------------------


class Clocks:
    def __init__(self) -> None:
        self.here_s = 50.0
        self.time = StoreTime(lambda: self.here_s)

    def look(self, store_ms: int) -> int:
        self.time.set(store_ms, self.here_s)
        return self.time.now_ms()

    def after(self, seconds: float) -> int:
        self.here_s += seconds
        return self.time.now_ms()


def test_time_goes_on_between_two_looks_at_the_stores_clock() -> None:
    clocks = Clocks()
    assert clocks.look(1_700_000_000_000) == 1_700_000_000_000
    assert clocks.after(1.5) == 1_700_000_001_500
    clocks.here_s += 2
    clocks.time.set(1_700_000_010_000, clocks.here_s - 1)
    assert clocks.time.now_ms() == 1_700_000_010_500, "the store's clock was read some time during the call"
    assert clocks.time.at_ms(clocks.here_s - 3) == 1_700_000_007_500


def test_time_never_goes_back_and_never_stands_still() -> None:
    clocks = Clocks()
    clocks.look(1_000_000)
    assert clocks.look(990_000) == 1_000_000, "set back by ten seconds"
    assert [clocks.after(1) for _ in range(4)] == [1_000_500, 1_001_000, 1_001_500, 1_002_000]
    assert clocks.after(30) == 1_024_000 == clocks.look(1_024_000), "caught up"
    assert clocks.after(1) == 1_025_000
    assert clocks.look(2_000_000) == 2_000_000, "forward it jumps"
