"""Placement: every key has an engine, the same one as long as nothing forces it away, and no engine has too much."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.placement import FULL, NOWHERE, SLACK, Fleet, place

U64 = st.integers(0, 2**64 - 1)


@st.composite
def fleets(draw: st.DrawFn, least: int = 1) -> Fleet:
    keys = draw(st.lists(U64, min_size=least, max_size=6, unique=True))
    slots, load = (
        draw(st.lists(st.integers(low, high), min_size=len(keys), max_size=len(keys))) for low, high in ((1, 300), (0, 2000))
    )
    return Fleet(np.array(keys, np.uint64), np.array(slots, np.int64), np.array(load, np.int64))


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


def plain(keys: list[int], count: list[int], home: list[int], fleet: Fleet) -> list[int]:
    """Key after key asks its engines in turn; an engine hears those that ask it at the same time by their hashes."""
    engines = range(len(fleet.key))
    ranks = {
        (k, e): (e == home[k], int(mix64(np.array([keys[k]], np.uint64), fleet.key[[e]])[0]))
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
            for k in sorted(asking, key=lambda k, e=e: (-ranks[k, e][0], 0 if ranks[k, e][0] else -ranks[k, e][1])):  # type: ignore[misc]
                if heard < room[e]:
                    at[k] = e
                heard += count[k]
            room[e] -= sum(count[k] for k in asking if k in at)
    return [at[k] for k in range(len(keys))]


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
    roomy = Fleet(fleet.key, np.full(len(fleet.key), 1 << 40), fleet.load)
    fewer = Fleet(roomy.key[1:], roomy.slots[1:], roomy.load[1:])
    before, after = place(keys, count, nowhere(keys), roomy), place(keys, count, nowhere(keys), fewer) + 1
    assert (before[before > 0] == after[before > 0]).all()


@given(wants(), fleets(), st.data())
def test_a_key_stays_where_it_was_while_there_is_room(want: tuple[Any, Any], fleet: Fleet, data: st.DataObject) -> None:
    keys, count = want
    roomy = Fleet(fleet.key, np.full(len(fleet.key), 1 << 40), fleet.load)
    home = np.array(data.draw(st.lists(st.integers(0, len(fleet.key) - 1), min_size=len(keys), max_size=len(keys))), np.int64)
    assert place(keys, count, home, roomy).tolist() == home.tolist()


@given(wants(), fleets(least=2))
def test_nothing_goes_to_an_engine_that_has_far_too_much(want: tuple[Any, Any], fleet: Fleet) -> None:
    keys, count = want
    load = np.array([1 << 50] + [0] * (len(fleet.key) - 1))
    crowded = Fleet(fleet.key, np.ones(len(fleet.key), np.int64), load)
    assert (place(keys, count, np.zeros(len(keys), np.int64), crowded) != 0).all()


def test_engines_share_keys_by_their_slots() -> None:
    keys, count = np.arange(4000, dtype=np.uint64), np.full(4000, 16)
    fleet = Fleet(np.arange(4, dtype=np.uint64), np.array([256, 256, 256, 512]), np.zeros(4, np.int64))
    share = np.bincount(place(keys, count, nowhere(keys), fleet), minlength=4) / 4000
    assert (share <= (1 + SLACK) * fleet.slots / fleet.slots.sum() + 1e-3).all()
    assert share[3] > 0.25
