"""Placement: every key has an engine, the same one as long as nothing forces it away, and no engine has too much."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.placement import FULL, NOWHERE, SLACK, Fleet, Region, Routing, Terms, place

U64 = st.integers(0, 2**64 - 1)


@st.composite
def fleets(draw: st.DrawFn, least: int = 1, costs: tuple[float, ...] = (1.0, 2.5, 4.0)) -> Fleet:
    keys = draw(st.lists(U64, min_size=least, max_size=6, unique=True))
    slots, load = (
        draw(st.lists(st.integers(low, high), min_size=len(keys), max_size=len(keys))) for low, high in ((1, 300), (0, 2000))
    )
    cost = draw(st.lists(st.sampled_from(costs), min_size=len(keys), max_size=len(keys)))
    return Fleet(np.array(keys, np.uint64), np.array(slots, np.int64), np.array(load, np.int64), np.array(cost))


@st.composite
def wants(draw: st.DrawFn) -> tuple[Any, Any]:
    keys = draw(st.lists(U64, min_size=1, max_size=40, unique=True))
    count = draw(st.lists(st.integers(1, 64), min_size=len(keys), max_size=len(keys)))
    return np.array(keys, np.uint64), np.array(count, np.int64)


def bounds(fleet: Fleet, total: int) -> Any:
    return np.maximum((1 + SLACK) * total * fleet.slots / fleet.slots.sum(), FULL * fleet.slots)


def nowhere(keys: Any) -> Any:
    return np.full(len(keys), NOWHERE)


@given(wants(), fleets(), st.data())
def test_equals_its_reference(want: tuple[Any, Any], fleet: Fleet, data: st.DataObject) -> None:
    keys, count = want
    home = data.draw(st.lists(st.integers(NOWHERE, len(fleet.key) - 1), min_size=len(keys), max_size=len(keys)))
    found = place(keys, count, np.array(home, np.int64), fleet)
    assert found.tolist() == plain(keys.tolist(), count.tolist(), home, fleet)


def test_a_key_that_returns_does_so_once() -> None:
    """Nine leave the dearest engine; the one of the next tier, to which the last engine belongs, leaves after them."""
    slots, cost = np.array([1, 1, 1, 1, 8, 1]), np.array([4.0, 1.0, 1.0, 2.5, 1.0, 2.5])
    fleet = Fleet(np.arange(6, dtype=np.uint64), slots, np.zeros(6, np.int64), cost)
    keys, count, home = np.arange(10, dtype=np.uint64), np.ones(10, np.int64), [0] * 9 + [3]
    found = place(keys, count, np.array(home), fleet)
    assert found.tolist() == plain(keys.tolist(), count.tolist(), home, fleet)
    assert (cost[found] == 1).all()


def plain(keys: list[int], count: list[int], home: list[int], fleet: Fleet) -> list[int]:
    """Key after key asks its engines in turn; an engine hears those that ask it at the same time by their hashes."""
    engines = range(len(fleet.key))
    home = plain_returned(count, home, fleet)
    ranks = {
        (k, e): (e == home[k], -float(fleet.cost[e]), int(mix64(np.array([keys[k]], np.uint64), fleet.key[[e]])[0]))
        for k in range(len(keys))
        for e in engines
    }
    room = (bounds(fleet, int(fleet.load.sum()) + sum(count)) - fleet.load).tolist()
    at: dict[int, int] = {}
    for choice in engines:
        asks: dict[int, list[int]] = {}
        for k in range(len(keys)):
            if k not in at:
                turns = sorted(engines, key=lambda e, k=k: ranks[k, e], reverse=True)  # type: ignore[misc]
                asks.setdefault(turns[choice], []).append(k)
        for e, asking in asks.items():
            heard = 0
            # Those at home come first, in the order of their numbers; then those of the highest hashes.
            for k in sorted(asking, key=lambda k, e=e: (-ranks[k, e][0], 0 if ranks[k, e][0] else -ranks[k, e][2])):  # type: ignore[misc]
                if heard < room[e]:
                    at[k] = e
                heard += count[k]
            room[e] -= sum(count[k] for k in asking if k in at)
    return [at[k] for k in range(len(keys))]


def plain_returned(count: list[int], home: list[int], fleet: Fleet) -> list[int]:
    """The costliest home asks first whether what costs less has idle slots, for each of its keys in turn."""
    home, was = [*home], home
    load = [int(fleet.load[e]) + sum(count[k] for k in range(len(count)) if was[k] == e) for e in range(len(fleet.key))]
    taken = sum(count[k] for k in range(len(count)) if was[k] == NOWHERE)
    for cost in sorted(set(fleet.cost.tolist()), reverse=True):
        idle = sum(max(0, int(fleet.slots[e]) - load[e]) for e in range(len(load)) if fleet.cost[e] < cost)
        asked = before = taken
        for k in range(len(count)):
            if was[k] != NOWHERE and fleet.cost[was[k]] == cost:
                asked += count[k]
                if asked <= idle:
                    home[k], before = NOWHERE, asked
        taken = before
    return home


@given(wants(), fleets())
def test_no_engine_has_more_than_its_bound_and_one_key(want: tuple[Any, Any], fleet: Fleet) -> None:
    keys, count = want
    at = place(keys, count, nowhere(keys), fleet)
    bound = bounds(fleet, int(fleet.load.sum() + count.sum()))
    for engine in np.unique(at).tolist():
        mine = count[at == engine]
        assert fleet.load[engine] + mine.sum() - mine.max() < bound[engine]


@given(wants(), fleets(least=2))
def test_a_lost_engine_moves_its_own_keys_alone(want: tuple[Any, Any], fleet: Fleet) -> None:
    """As long as there is room."""
    keys, count = want
    roomy = Fleet(fleet.key, np.full(len(fleet.key), 1 << 40), fleet.load, fleet.cost)
    fewer = Fleet(roomy.key[1:], roomy.slots[1:], roomy.load[1:], roomy.cost[1:])
    before, after = place(keys, count, nowhere(keys), roomy), place(keys, count, nowhere(keys), fewer) + 1
    assert (before[before > 0] == after[before > 0]).all()


@given(wants(), fleets(costs=(3.0,)), st.data())
def test_a_key_stays_where_it_was_while_there_is_room(want: tuple[Any, Any], fleet: Fleet, data: st.DataObject) -> None:
    keys, count = want
    roomy = Fleet(fleet.key, np.full(len(fleet.key), 1 << 40), fleet.load, fleet.cost)
    home = np.array(data.draw(st.lists(st.integers(0, len(fleet.key) - 1), min_size=len(keys), max_size=len(keys))), np.int64)
    assert place(keys, count, home, roomy).tolist() == home.tolist()


@given(wants(), fleets(least=2))
def test_nothing_goes_to_an_engine_that_has_far_too_much(want: tuple[Any, Any], fleet: Fleet) -> None:
    keys, count = want
    load = np.array([1 << 50] + [0] * (len(fleet.key) - 1))
    crowded = Fleet(fleet.key, np.ones(len(fleet.key), np.int64), load, fleet.cost)
    assert (place(keys, count, np.zeros(len(keys), np.int64), crowded) != 0).all()


def test_engines_share_keys_by_their_slots() -> None:
    keys, count = np.arange(4000, dtype=np.uint64), np.full(4000, 16)
    fleet = Fleet(np.arange(4, dtype=np.uint64), np.array([256, 256, 256, 512]), np.zeros(4, np.int64), np.ones(4))
    share = np.bincount(place(keys, count, nowhere(keys), fleet), minlength=4) / 4000
    assert (share <= (1 + SLACK) * fleet.slots / fleet.slots.sum() + 1e-3).all()
    assert share[3] > 0.25


@given(wants(), fleets())
def test_what_costs_more_is_used_once_all_that_costs_less_has_its_bound(want: tuple[Any, Any], fleet: Fleet) -> None:
    keys, count = want
    at = place(keys, count, nowhere(keys), fleet)
    load = fleet.load + np.bincount(at, count, len(fleet.key))
    bound = bounds(fleet, int(fleet.load.sum() + count.sum()))
    dearest = fleet.cost[at].max()
    assert (load[fleet.cost < dearest] >= bound[fleet.cost < dearest]).all()


DEAR, CHEAP = 0, 1
TWO = np.array([7, 8], np.uint64)


def two(load: list[int]) -> Fleet:
    return Fleet(TWO, np.array([64, 64]), np.array(load), np.array([2.0, 1.0]))


def test_keys_spill_over_and_return_and_don_t_go_to_and_fro() -> None:
    keys, count = np.arange(10, dtype=np.uint64), np.full(10, 16)
    spilt = place(keys, count, nowhere(keys), two([0, 0]))
    assert np.bincount(spilt).tolist() == [4, 6], "a batch and a half where it is cheap, the rest elsewhere"
    assert place(keys, count, spilt, two([0, 0])).tolist() == spilt.tolist(), "as long as the cheap engine has no idle slot"
    there, here = keys[spilt == CHEAP], keys[spilt == DEAR]
    assert (place(here, count[:4], np.full(4, DEAR), two([0, 64])) == DEAR).all()
    assert (place(here, count[:4], np.full(4, DEAR), two([0, 31])) == CHEAP).sum() == 2, "as many as there are idle slots"
    assert (place(here, count[:4], np.full(4, DEAR), two([0, 0])) == CHEAP).all()
    assert (place(there, count[:6], np.full(6, CHEAP), two([0, 0])) == CHEAP).all(), "none leaves for what costs more"


def test_what_a_region_costs_is_up_to_the_operator_and_the_job() -> None:
    terms = Terms({"near": Region(3.0, 10, 400), "green": Region(2.5, 90, 20)}, delay_weight=0.01)
    assert terms.cost("near", Routing()) == 3.0 + 0.1
    assert terms.cost("green", Routing(carbon_weight=0.1)) == 2.5 + 0.9 + 2.0
    assert terms.cost("near", Routing(price_weight=0.0, delay_weight=0.0)) == 0.0
    assert terms.cost("unknown", Routing()) == 0.0
