"""Whatever the order of arrival, the batches, the delays and the repeats: the same trees, the same answers."""

import pytest

from ramify.scheduler import shard
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.plan import Outcome
from tests.simulation.jobs import WORKS, assert_same, calm, run
from tests.simulation.world import ROUGH, Weather, World

OVERTAKING = Weather(delay_ms_max=20, batch_max=2)
REPEATED = Weather(delay_ms_max=20, batch_max=4, duplicate=0.7)
LOSSY = Weather(delay_ms_max=20, batch_max=4, lose=0.3, late=0.6)
SEEDS = 2  # of each job


@pytest.mark.parametrize("weather", [OVERTAKING, REPEATED, LOSSY], ids=["overtaking", "repeated", "lossy"])
@pytest.mark.parametrize("name", WORKS)
def test_same_outcome_in_any_order(name: str, weather: Weather) -> None:
    assert_same(run(name, weather, seed=1), name)


@pytest.mark.parametrize("name", WORKS)
def test_same_outcome_when_rows_are_renumbered_all_the_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "COMPACT_MIN", 1)
    monkeypatch.setattr(Forest, "dead_rows", lambda forest: forest.size)
    world = run(name, REPEATED, seed=2)
    assert_same(world, name)
    assert world.shard.forest._epoch > 0, "compaction did happen"


@pytest.mark.parametrize("name", WORKS)
def test_random_schedules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it at once, crashes too; the seed is in the message of whatever fails."""
    for seed in range(100, 100 + SEEDS):
        monkeypatch.setattr(shard, "COMPACT_MIN", 1 if seed % 2 else 4096)
        assert_same(run(name, ROUGH, seed), name)


def test_the_jobs_are_worth_running() -> None:
    """Between them the calm runs show every outcome, finish and verdict that the laws speak of."""
    worlds = [calm(name) for name in WORKS]
    results = [result for world in worlds for result in world.store.results.values()]
    steps = [step for world in worlds for step in world.store.steps.values()]
    assert {result.outcome for result in results} == {*Outcome}
    assert {result.verdict for result in results} == {0, 1, 2}
    assert {step.finish for step in steps} == {*Finish}
    assert {step.depth for step in steps} >= {1, 2, 3, 4}
    assert sum(step.finish == Finish.ERROR and step.text != b"" for step in steps) > 3, "some could not be scored"


def test_every_tree_ends_in_time() -> None:
    for name in WORKS:
        world = World(WORKS[name])
        turns = 0
        while world.open:
            world.turn()
            turns += 1
        assert turns < 60, f"{name} took {turns} turns"
