"""Laws of how groups of engines grow and shrink."""

from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.autoscaling import Bounds, Demand, Standing, scaled
from ramify.scheduler.placement import FULL

IDLE_S = 30.0
bounds = st.builds(lambda least, more: Bounds(least, least + more, IDLE_S), st.integers(1, 20), st.integers(0, 200))
demands = st.builds(Demand, st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 7.5, 256.0]))
standings = st.builds(Standing, st.integers(0, 300), st.none() | st.floats(0, 1000))


def settled(group: Bounds, standing: Standing, demand: Demand) -> list[int]:
    """The counts of a group of which the same is asked for very long."""
    counts = []
    for now_s in range(0, 30 * 300, 30):
        standing = scaled(group, standing, demand, 1000.0 + now_s)
        counts.append(standing.count)
    return counts


@given(bounds, standings, demands)
def test_a_group_keeps_within_its_bounds(group: Bounds, standing: Standing, demand: Demand) -> None:
    assert group.count_min <= scaled(group, standing, demand, 1000.0).count <= group.count_max


@given(bounds, standings, demands, st.integers(0, 10**6))
def test_more_steps_never_mean_fewer_engines(group: Bounds, standing: Standing, demand: Demand, more: int) -> None:
    asked_more = Demand(demand.steps + more, demand.slots)
    assert scaled(group, standing, demand, 1000.0).count <= scaled(group, standing, asked_more, 1000.0).count


@given(bounds, standings, demands)
def test_a_demand_that_stays_the_same_changes_a_group_one_way_only_and_then_no_more(
    group: Bounds, standing: Standing, demand: Demand
) -> None:
    counts = settled(group, standing, demand)
    assert counts in (sorted(counts), sorted(counts, reverse=True))
    assert len({*counts[-10:]}) == 1


@given(bounds, standings, st.integers(0, 10**5), st.sampled_from([1.0, 7.5, 256.0]))
def test_engines_have_enough_to_do_and_not_too_much(group: Bounds, standing: Standing, steps: int, slots: float) -> None:
    count = settled(group, standing, Demand(steps, slots))[-1]
    assert count == group.count_max or steps <= FULL * slots * count, "none has more than it can have at its door"
    assert count == group.count_min or steps > slots * (count - 1), "none could have been spared"


def test_a_group_grows_at_once_and_shrinks_by_one_each_time_that_it_could_for_long() -> None:
    group, rush, calm = Bounds(1, 8, IDLE_S), Demand(2560, 256), Demand(300, 256)
    standing = scaled(group, Standing(1), rush, 0.0)
    assert standing.count == 7
    seen = []
    for now_s in (1.0, 30.0, 31.0, 60.0, 61.0):
        standing = scaled(group, standing, calm, now_s)
        seen.append(standing.count)
    assert seen == [7, 7, 6, 6, 5]
    assert scaled(group, scaled(group, standing, rush, 62.0), calm, 95.0).count == 7, "who was needed is kept for as long again"


def test_what_no_engine_has_told_changes_nothing() -> None:
    assert scaled(Bounds(1, 8), Standing(3, 0.0), Demand(0, 0), 1000.0).count == 3
