"""Placement: every key has an engine, the same one as long as nothing forces it away, and no engine has too much."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.placement import SLACK, Fleet, place

U64 = st.integers(0, 2**64 - 1)


@st.composite
def fleets(draw: st.DrawFn, least: int = 1) -> Fleet:
    keys = draw(st.lists(U64, min_size=least, max_size=6, unique=True))
    slots, load = (
        draw(st.lists(st.integers(low, high), min_size=len(keys), max_size=len(keys))) for low, high in ((1, 300), (0, 2000))
    )
    return Fleet(np.array(keys, np.uint64), np.array(slots, np.int64), np.array(load, np.int64))


@st.composite
def wants(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    keys = draw(st.lists(U64, min_size=1, max_size=40, unique=True))
    count = draw(st.lists(st.integers(1, 64), min_size=len(keys), max_size=len(keys)))
    return np.array(keys, np.uint64), np.array(count, np.int64)


def bounds(fleet: Fleet, total: int) -> np.ndarray:
    return np.maximum((1 + SLACK) * total * fleet.slots / fleet.slots.sum(), fleet.slots)


@given(wants(), fleets())
def test_equals_its_reference(want: tuple[np.ndarray, np.ndarray], fleet: Fleet) -> None:
    keys, count = want
    assert place(keys, count, fleet).tolist() == plain(keys.tolist(), count.tolist(), fleet)


def plain(keys: list[int], count: list[int], fleet: Fleet) -> list[int]:
    """Key after key asks its engines in turn; an engine hears those that ask it at the same time by their hashes."""
    engines = range(len(fleet.key))
    scores = [[int(mix64(np.array([key], np.uint64), fleet.key[[e]])[0]) for e in engines] for key in keys]
    room = (bounds(fleet, int(fleet.load.sum()) + sum(count)) - fleet.load).tolist()
    at: dict[int, int] = {}
    for choice in engines:
        asked = {k: sorted(engines, key=lambda e, k=k: -scores[k][e])[choice] for k in range(len(keys)) if k not in at}
        for engine in engines:
            given = 0
            for k in sorted((k for k, e in asked.items() if e == engine), key=lambda k, e=engine: -scores[k][e]):
                if given < room[engine]:
                    at[k] = engine
                given += count[k]
            room[engine] -= sum(count[k] for k, e in at.items() if asked.get(k) == e == engine)
    return [at[k] for k in range(len(keys))]


@given(wants(), fleets())
def test_no_engine_has_more_than_its_bound_and_one_key(want: tuple[np.ndarray, np.ndarray], fleet: Fleet) -> None:
    keys, count = want
    at = place(keys, count, fleet)
    bound = bounds(fleet, int(fleet.load.sum() + count.sum()))
    for engine in np.unique(at).tolist():
        mine = count[at == engine]
        assert fleet.load[engine] + mine.sum() - mine.max() < bound[engine]


@given(wants(), fleets(least=2))
def test_a_lost_engine_moves_its_own_keys_alone(want: tuple[np.ndarray, np.ndarray], fleet: Fleet) -> None:
    """As long as there is room."""
    keys, count = want
    roomy = Fleet(fleet.key, np.full(len(fleet.key), 1 << 40), fleet.load)
    fewer = Fleet(roomy.key[1:], roomy.slots[1:], roomy.load[1:])
    before, after = place(keys, count, roomy), place(keys, count, fewer) + 1
    assert (before[before > 0] == after[before > 0]).all()


@given(wants(), fleets(least=2))
def test_a_key_returns_when_there_is_room_again(want: tuple[np.ndarray, np.ndarray], fleet: Fleet) -> None:
    keys, count = want
    roomy = Fleet(fleet.key, np.full(len(fleet.key), 1 << 40), np.zeros(len(fleet.key), np.int64))
    crowded = Fleet(roomy.key, roomy.slots, np.array([1 << 50] + [0] * (len(fleet.key) - 1)))
    assert (place(keys, count, crowded) != 0).all(), "nothing goes to one that has far too much"
    home = place(keys, count, roomy)
    assert (home == np.argmax(mix64(keys[:, None], fleet.key[None, :]), axis=1)).all()


def test_engines_share_keys_by_their_slots() -> None:
    keys, count = np.arange(4000, dtype=np.uint64), np.full(4000, 16)
    fleet = Fleet(np.arange(4, dtype=np.uint64), np.array([256, 256, 256, 512]), np.zeros(4, np.int64))
    share = np.bincount(place(keys, count, fleet), minlength=4) / 4000
    assert (share <= (1 + SLACK) * fleet.slots / fleet.slots.sum() + 1e-3).all()
    assert share[3] > 0.25
