"""What tenants share: places for trees, what engines can take, the verifier's calls."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ramify.scheduler.actors import sharing
from ramify.scheduler.slots import SLOTS
from ramify.store.tenants import DAY_MS, Tenant, Tenants, spend
from ramify.v1 import job_pb2
from tests.simulation.world import plan
from tests.unit.actors import desk as dispatching
from tests.unit.actors.desk import SLOTS as ENGINE_SLOTS
from tests.unit.actors.desk import nodes, settled, steps
from tests.unit.actors.house import house
from tests.unit.actors.test_admission import ALWAYS, LOW, Desk
from tests.unit.actors.test_scoring import Desk as ScoringDesk
from tests.unit.actors.test_scoring import ask

CREDITS = 2 * ENGINE_SLOTS


# --- places for trees ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def desk(sqlite_store: str) -> AsyncIterator[Desk]:
    async with house(sqlite_store) as home:
        found = Desk(home)
        found.admission.add([*range(SLOTS)])
        yield found


async def admitted(desk: Desk, trees_max: int, **live: int) -> dict[str, int]:
    """How many trees of each tenant are admitted, while it has others."""
    plans = {plan.tenant: plan for plan in desk.admission.jobs.values()}
    before = [(plans[tenant], count) for tenant, count in live.items()]
    await desk.admission.admit(trees_max, before)
    found = dict[str, int]()
    for event in desk.posted:
        tenant = event.plan.tenant  # type: ignore[union-attr]
        found[tenant] = found.get(tenant, 0) + len(event.tree_id)  # type: ignore[union-attr]
    desk.posted.clear()
    return found


async def test_a_newcomer_has_its_share_at_once_though_another_has_all_places(desk: Desk) -> None:
    await desk.home.submit(50, "flood", tenant="flood")
    assert await admitted(desk, 8) == {"flood": 8}, "who is alone has all"
    await desk.home.submit(50, "other", tenant="other")
    assert await admitted(desk, 8, flood=8) == {"other": 4}
    assert await admitted(desk, 8, flood=5, other=4) == {}
    assert await admitted(desk, 8, flood=3, other=4) == {"flood": 1}
    await Tenants(desk.home.database).put(Tenant("other", weight=3))
    desk.now_s += 1
    assert await admitted(desk, 8, flood=4, other=4) == {"other": 2}
    await desk.home.submit(2, "third", tenant="third")
    assert await admitted(desk, 8, flood=8, other=7) == {"third": 1}, "there are never more than twice as many as places"
    assert await admitted(desk, 8, flood=0, other=6, third=2) == {"flood": 2}, "who wants no more leaves the rest to others"


async def test_a_tenants_jobs_go_by_priority_then_by_age(desk: Desk) -> None:
    jobs = [await desk.home.submit(2, f"{priority}{at}", priority=priority) for at, priority in enumerate([0, 5, -1, 5])]
    await desk.admission.admit(7)
    plans = [(event.plan.job_id, event.plan.priority) for event in desk.posted]  # type: ignore[union-attr]
    assert plans == [(jobs[1], 5), (jobs[3], 5), (jobs[0], 0), (jobs[2], -1)]


async def test_a_job_that_can_not_begin_takes_nobodys_share(desk: Desk) -> None:
    await desk.home.submit(9, "flood", tenant="flood")
    held = await desk.home.submit(9, "held", tenant="held", prompt=job_pb2.Prompt(chat=ALWAYS))
    assert await admitted(desk, 8) == {"flood": 4}
    assert set(desk.admission.waits) == {held}
    assert await admitted(desk, 8, flood=4) == {"flood": 4}


async def test_a_tenant_has_no_more_chains_than_it_may_in_the_slots_that_are_here(desk: Desk) -> None:
    tenants = Tenants(desk.home.database)
    await tenants.put(Tenant("acme", live_chains_max=47))
    await desk.home.submit(50, "job", tenant="acme", n=8)
    assert await admitted(desk, 100) == {"acme": 5}
    assert await admitted(desk, 100, acme=4) == {"acme": 1}
    desk.admission.release([slot for slot in range(SLOTS) if slot not in LOW])
    assert await admitted(desk, 100, acme=1) == {}, "20 of 64 slots: 14 chains"
    await tenants.put(Tenant("acme", live_chains_max=2))
    desk.now_s += 1
    assert await admitted(desk, 100) == {"acme": 1}, "one tree at least, or its jobs would never end"


async def test_who_has_spent_the_days_tokens_begins_nothing_more_and_is_told(desk: Desk) -> None:
    tenants, today = Tenants(desk.home.database, desk.home._clock), Tenant("acme", tokens_per_day_max=1000)
    await tenants.put(today)
    async with desk.home.database.write() as connection:
        await spend(connection, "shard:0", desk.home.now_ms, {"acme": (10, 1000)})
    job_id = await desk.home.submit(5, "job", tenant="acme")
    await desk.home.submit(2, "other", tenant="other")
    assert await admitted(desk, 8) == {"other": 2}
    why = "tenant acme has spent its 1,000 tokens of today; it goes on at 00:00 UTC"
    assert desk.admission.waits == {job_id: ("quota", why, 5, 0.0)}
    desk.now_s = 5.0
    assert await admitted(desk, 8) == {}
    assert desk.admission.waits[job_id].since_s == 0.0, "since it began to wait"
    await tenants.put(replace(today, tokens_per_day_max=1001))
    desk.now_s = 6.0
    assert await admitted(desk, 8) == {"acme": 5}
    assert desk.admission.waits == {}


async def test_a_new_day_frees_who_has_spent_its_tokens(desk: Desk) -> None:
    await Tenants(desk.home.database, desk.home._clock).put(Tenant("acme", tokens_per_day_max=10))
    async with desk.home.database.write() as connection:
        await spend(connection, "shard:0", desk.home.now_ms, {"acme": (1, 10)})
    await desk.home.submit(5, "job", tenant="acme")
    assert await admitted(desk, 8) == {}
    desk.home.now_ms += DAY_MS
    desk.now_s += 1
    assert await admitted(desk, 8) == {"acme": 5}


async def test_a_job_of_higher_priority_has_places_at_once_though_its_tenant_has_given_all_away(desk: Desk) -> None:
    await desk.home.submit(50, "flood")
    assert await admitted(desk, 8) == {"default": 8}
    urgent = await desk.home.submit(3, "urgent", priority=1)
    assert await admitted(desk, 8, default=8) == {"default": 3}
    assert desk.admission.jobs[urgent].priority == 1


def test_more_tenants_than_places_have_one_each_as_far_as_trees_may_exceed_them(desk: Desk) -> None:
    found = sharing.rooms({f"t{at}": 0 for at in range(9)}, [], 4, SLOTS, desk.admission._standings)
    assert sorted(room.trees for room in found.values()) == [0] + [1] * 8


def test_ever_higher_priorities_neither_put_off_a_newcomer_nor_win_more_than_twice_a_share(desk: Desk) -> None:
    def found(*held: tuple[str, int, int], **wanting: int) -> dict[str, sharing.Room]:
        live = [(replace(plan(), tenant=tenant, priority=priority), count) for tenant, priority, count in held]
        return sharing.rooms(wanting, live, 100, SLOTS, desk.admission._standings)

    assert found(("a", 0, 100), a=1)["a"].fits(1, 1) == 100
    assert found(("a", 0, 100), ("a", 1, 100), a=2)["a"].fits(2, 1) == 0
    both = found(("a", 0, 100), ("a", 1, 100), a=2, b=0)
    assert (both["a"].fits(2, 1), both["b"].fits(0, 1)) == (0, 50)
    both = found(("a", 1, 80), ("b", 0, 50), a=2, b=0)
    assert (both["a"].fits(2, 1), both["b"].fits(0, 1)) == (20, 0)


# --- engines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "wanted"), [(1.0, (4, 4)), (3.0, (2, 6)), (1e-6, (7, 1))])
async def test_a_newcomer_is_sent_first_until_it_has_its_share(weight: float, wanted: tuple[int, int]) -> None:
    desk = dispatching.Desk(weights={"other": weight})
    flood, other = dispatching.of(steps(0, 60), "flood"), dispatching.of(steps(1, 60), "other")
    await desk.send(flood)
    assert desk.sent == nodes(flood)[:CREDITS], "who is alone has all"
    assert desk.calls[0].batch.priority.tolist() == [*range(CREDITS)]  # type: ignore[union-attr]
    await desk.send(other)
    desk.calls[0].answer(0)
    await settled()
    await desk.send()
    assert desk.sent[CREDITS:] == nodes(other)[:1]
    assert desk.calls[1].batch.priority.tolist() == [0], "it goes before what the other has at the door"  # type: ignore[union-attr]
    for row in range(1, wanted[1] + 2):
        desk.calls[0].answer(row)
        await settled()
        await desk.send()
    (lane,) = desk.dispatcher._lanes
    assert (lane.turns.held["flood"], lane.turns.held["other"]) == wanted
    await desk.dispatcher.close()


async def test_within_a_tenant_the_highest_priority_is_sent_first() -> None:
    desk = dispatching.Desk()
    low, high, urgent = (dispatching.of(steps(at, 3), "acme", priority) for at, priority in enumerate([0, 5, 9]))
    other = dispatching.of(steps(3, 3), "other", -7)
    await desk.send(low, high, urgent, other)
    assert set(desk.sent) == {*nodes(urgent), *nodes(other), *nodes(high)[:2]}, "the other's priority is its own affair"
    await desk.dispatcher.close()


async def test_steps_of_one_tenant_keep_their_order_at_the_door() -> None:
    desk = dispatching.Desk()
    await desk.send(dispatching.of(steps(0, 60), "flood"))
    places = list[int]()
    for rows in ((0, 1, 2, 3), (4,), (5, 6, 7)):
        desk.calls[0].answer(*rows)
        await settled()
        await desk.send()
    arrived = 0
    for call in desk.calls:
        assert call.batch.priority is not None
        places += (arrived + call.batch.priority).tolist()
        arrived += len(call.batch)
    assert places == sorted(places), "as an engine counts"
    await desk.dispatcher.close()


# --- the verifier -------------------------------------------------------------------------------------------------------


async def test_a_newcomers_chains_are_scored_with_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramify.scheduler.actors.scoring.BATCH_MAX", 3)
    desk = ScoringDesk()

    def asked(tenant: str, tree: int) -> object:
        command = ask("a", ("p", f"{tenant}{tree}"), first_tree=tree)
        return replace(command, plan=replace(command.plan, tenant=tenant))

    await desk.pump(*(asked("flood", tree) for tree in range(20)))  # type: ignore[arg-type]
    desk.now_s += 1
    await desk.pump(*(asked("other", tree) for tree in range(100, 104)))  # type: ignore[arg-type]
    assert [len(call.chains) for call in desk.calls] == [3, 3], "two calls at a time"
    await desk.answer([0.5] * 3, call=0)
    desk.scoring.pump()
    await desk.settle()
    assert [chain.steps[0] for chain in desk.calls[2].chains] == ["other100", "other101", "other102"]
    await desk.answer([0.5] * 3, call=1)
    desk.scoring.pump()
    await desk.settle()
    assert next(chain.steps[0] for chain in desk.calls[3].chains) == "flood6", "it has three there, the flood none"
    await desk.scoring.close()
