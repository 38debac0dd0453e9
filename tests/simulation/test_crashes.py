"""A crash at any point, and a restart from what was committed, leave no trace in what a job comes to.

That committed rows are prefix-closed and that nothing is committed or, once committed, dispatched twice, is checked by the store
and the world at every moment of every run.
"""

import pytest

from tests.simulation.jobs import WORKS, assert_same, calm, run
from tests.simulation.world import FLUSH_MS, Weather

SLOW = Weather(delay_ms_max=12, batch_max=3)
COMMITS_MAX = 60
EVERY = 3  # commit or so: the clusters of `test_schedules` die at any call of the store


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", WORKS)
def test_a_crash_at_any_commit(name: str, when: str) -> None:
    number = 1
    for number in range(1 + (when == "after"), COMMITS_MAX, EVERY):
        world = run(name, Weather(SLOW.delay_ms_max, SLOW.batch_max, crash_at=(number, when)), seed=7)
        if len(world.lives) == 1:
            break  # the run has no such commit
        assert_same(world, name)
    assert 3 < number < COMMITS_MAX, f"the run has no more than {number - 1} commits"


@pytest.mark.parametrize("name", WORKS)
def test_crash_after_crash(name: str) -> None:
    lives = 0
    for seed in range(2):
        world = run(name, Weather(SLOW.delay_ms_max, SLOW.batch_max, crash=0.15), seed)
        assert_same(world, name)
        lives += len(world.lives)
    assert lives > 4, "there were crashes"


@pytest.mark.parametrize("name", WORKS)
def test_only_what_was_not_committed_is_sampled_again(name: str) -> None:
    """Without crashes each step is paid once; a crash repeats at most what was in flight or not yet flushed."""
    assert set(calm(name).tries.values()) == {1}
    again = []
    for number in (2, 3, 4):
        world = run(name, Weather(SLOW.delay_ms_max, SLOW.batch_max, crash_at=(number, "after")), seed=11)
        assert_same(world, name)
        assert len(world.lives) == 2
        assert max(world.tries.values()) <= 2
        again.append(sum(tries > 1 for tries in world.tries.values()))
    assert 0 < max(again) < len(world.store.steps), "the rest came from the journal"


def test_a_flush_window_bounds_what_is_lost() -> None:
    """The world flushes often enough that the tests above meet many commits."""
    assert all(calm(name).commits >= 2 for name in WORKS)
    assert SLOW.delay_ms_max > FLUSH_MS
