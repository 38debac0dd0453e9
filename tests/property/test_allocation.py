"""The laws of sharing: nothing is lost, nothing lies idle, nobody gains by taking from one who has less."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.allocation import level, whole

WEIGHTS = st.floats(0.01, 100)
AMOUNTS = st.floats(0, 1e6)


@st.composite
def claims(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What some want, their weights, and what they hold."""
    count = draw(st.integers(1, 6))
    wanted = draw(st.lists(st.one_of(AMOUNTS, st.just(np.inf)), min_size=count, max_size=count))
    weight = draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    held = draw(st.one_of(st.just([0.0] * count), st.lists(AMOUNTS, min_size=count, max_size=count)))
    return np.array(wanted), np.array(weight), np.array(held)


@given(claims(), AMOUNTS)
def test_all_is_given_away_and_nobody_is_worse_off_for_its_weight_than_one_who_was_given_more(
    claim: tuple[np.ndarray, np.ndarray, np.ndarray], total: float
) -> None:
    wanted, weight, held = claim
    given = level(wanted, weight, total, held)
    assert (given >= 0).all()
    assert (given <= wanted * (1 + 1e-9)).all()
    assert np.isclose(given.sum(), min(total, wanted.sum()), rtol=1e-6, atol=1e-6)
    height = (held + given) / weight
    hungry = given < wanted - 1e-6 * (1 + total)
    if hungry.any() and (given > 1e-6 * (1 + total)).any():
        fed = height[given > 1e-6 * (1 + total)].max()
        assert fed <= height[hungry].min() + 1e-6 * (1 + fed), "who was given anything stands no higher than who wants more"


@given(claims(), AMOUNTS, AMOUNTS)
def test_nobody_gets_less_of_more_and_everyone_its_part_at_least(
    claim: tuple[np.ndarray, np.ndarray, np.ndarray], total: float, more: float
) -> None:
    wanted, weight, _ = claim
    given = level(wanted, weight, total)
    assert (level(wanted, weight, total + more) >= given - 1e-6 * (1 + total + more)).all()
    part = total * weight / weight.sum()
    assert (given >= np.minimum(part, wanted) - 1e-6 * (1 + total)).all()


@given(claims(), st.integers(0, 1000))
def test_whole_pieces_are_shares_to_within_one_and_none_is_left(
    claim: tuple[np.ndarray, np.ndarray, np.ndarray], total: int
) -> None:
    wanted, weight, held = claim
    pieces = np.floor(np.minimum(wanted, 10_000)).astype(np.int64)
    share = level(pieces.astype(np.float64), weight, total, held)
    found = np.array(whole(share, pieces, total))
    assert found.sum() == min(total, pieces.sum())
    assert (found <= pieces).all()
    assert (np.abs(found - share) <= 1 + 1e-6).all()
