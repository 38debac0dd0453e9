"""The search is a function of its events."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ramify.scheduler.events import Event, JobCancelled
from ramify.scheduler.shard import Shard
from tests.simulation.jobs import WORKS, assert_same, run
from tests.simulation.shards import snapshot, trace
from tests.simulation.traces import replayed
from tests.simulation.world import ROUGH, Weather, World, counts_again

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", WORKS)
def test_same_events_same_commands(name: str) -> None:
    world = run(name, ROUGH, seed=3)
    for life in world.lives:
        assert replayed(life, world) == replayed(life, world)


def test_same_commands_under_any_hash_seed() -> None:
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, "-m", "tests.simulation.traces"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
        found.add(done.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


def assert_deaf(world: World, events: list[Event]) -> None:
    """The shard does not react to `events`, which it has seen before."""
    before = snapshot(world.shard)
    found = world.shard.handle(events)
    after = snapshot(world.shard)
    assert not found, f"{trace(found)[:500]} {world!r}"
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"{changed} {world!r}"


def repeat_all(world: World, events: list[Event]) -> None:
    """What has just been handled comes again, and so does something from long ago."""
    assert_deaf(world, [event for event in events if not counts_again(event)])
    old = world.lives[-1][world.now_ms % len(world.lives[-1])]
    # An old admission may be of a tree that is long gone: not to ask for it again is the caller's part.
    assert_deaf(world, [event for event in old if not counts_again(event) and type(event).__name__ != "TreesAdmitted"])


@pytest.mark.parametrize("name", WORKS)
def test_a_repeated_or_late_event_changes_nothing(name: str) -> None:
    for seed in range(2):
        world = World(WORKS[name], Weather(delay_ms_max=15, batch_max=3, lose=0.1), seed, watch=repeat_all).run()
        assert_same(world, name)


def test_what_nobody_has_asked_for_changes_nothing() -> None:
    """Events of a world whose trees this shard never had."""
    stranger = run("beam_retire", Weather(delay_ms_max=5), seed=1)
    world = World(WORKS["best_of_n"])  # of other problems
    for _ in range(3):
        world.turn()
    for events in stranger.lives[0]:
        assert_deaf(world, [event for event in events if type(event).__name__ in ("StepsSampled", "StepsScored", "StepsLost")])
    assert_deaf(world, [JobCancelled("no such job")])


def test_an_empty_shard_takes_any_late_event() -> None:
    stranger = run("two_jobs", Weather(delay_ms_max=5, lose=0.2), seed=1)
    shard = Shard()
    for events in stranger.lives[0]:
        late = [event for event in events if type(event).__name__ not in ("TreesAdmitted", "Committed")]
        assert shard.handle(late) == []
    assert shard.forest.size == 0
    assert shard.live_trees == 0
