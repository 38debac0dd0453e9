"""A shard that goes on from snapshots is, byte for byte, the one that replays every step from the roots."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.commands import Check, Compare, Generate, Score
from ramify.scheduler.events import Event, SlotsReleased, TreesRestored
from ramify.scheduler.forest import parts
from ramify.scheduler.forest.columns import TreeStatus
from ramify.scheduler.journal import Journal
from ramify.scheduler.shard import Shard, ShardLimits
from ramify.scheduler.slots import SLOTS
from tests.simulation import fakes
from tests.simulation.jobs import WORKS, assert_same
from tests.simulation.races import RACES
from tests.simulation.store import Name
from tests.simulation.world import FLUSH_MS, Weather, World, admitted

SLOW = Weather(delay_ms_max=30, batch_max=2)
EVERY = {**WORKS, **{f"{name} without a barrier": works for name, works in RACES.items()}}


class Recovered:
    """A shard that has gone as far as its journal leads it; engines and verifier are silent, answers are compared."""

    def __init__(self, world: World, journal: Journal, begin: list[Event]) -> None:
        self.shard, self.asked = Shard(world.limits), set[tuple[str, Name]]()
        events = begin
        while events:
            rest, events = journal.answer(self.shard.handle(events), self.shard.growing)
            self.shard.forest.validate()
            for command in rest:
                if isinstance(command, Generate):
                    self.note("sample", command.tree_id, command.node_id)
                elif isinstance(command, Score | Check):
                    self.note(type(command).__name__, command.chains.tree_id, command.chains.node_id)
                elif isinstance(command, Compare):
                    events.append(fakes.grouped(command))

    def note(self, what: str, tree_id: Any, node_id: Any) -> None:
        """It is asked for."""
        self.asked |= {(what, name) for name in zip(tree_id.tolist(), node_id.tolist(), strict=True)}

    def trees(self) -> dict[int, dict[str, Any]]:
        """All that is known of each open tree, whatever rows it lies in."""
        t = self.shard.forest.trees
        found: dict[int, dict[str, Any]] = {}
        for tree in np.flatnonzero(t.status[: t.size] != TreeStatus.FREE).astype(np.int32):
            part = parts.cut(self.shard.forest, np.array([tree], np.int32))
            order = np.argsort(part.nodes["node_id"])
            names = np.append(part.nodes["node_id"], np.uint64(0))
            nodes = {name: column[order].tobytes() for name, column in part.nodes.items() if name not in ("parent", "tree")}
            tree_columns = {
                f"tree.{name}": column.tobytes() for name, column in part.trees.items() if name not in ("root", "best")
            }
            links = {"parent": names[part.nodes["parent"][order]].tobytes(), "best": int(names[part.trees["best"][0]])}
            forest, rows = self.shard.forest, part.nodes["node_id"][order]
            at = [
                int(np.flatnonzero((forest.node_id[: forest.size] == node) & (forest.tree[: forest.size] == tree))[0])
                for node in rows
            ]
            own = {
                "tokens": [forest.tokens.take(forest.token_start[[row]], forest.token_count[[row]]).tolist() for row in at],
                "text": forest.texts(np.array(at, np.int32)),
            }
            found[int(t.tree_id[tree])] = {**nodes, **tree_columns, **links, **own}
        return found


def assert_equal(world: World) -> int:
    """What the two shards have come to, at the crash that has just been; returns how many nodes the snapshots saved them."""
    waiting = [tree for work in world.works for tree in work.trees if tree in world.open]
    recovered = world.store.recover()
    restored: list[Event] = [
        TreesRestored(work.plan, part) for work in world.works for part in recovered.parts.get(work.plan.job_id, [])
    ]
    rest = roots(world.works, {*waiting} - recovered.trees)
    replayed = Recovered(world, Journal(world.store.journal()), roots(world.works, {*waiting}))
    fresh = Recovered(world, Journal(recovered.journal), [*restored, *rest])
    mine, wanted = fresh.trees(), replayed.trees()
    assert mine.keys() == wanted.keys()
    for tree, columns in wanted.items():
        assert [name for name, values in columns.items() if mine[tree][name] != values] == [], repr(world)
    assert fresh.asked == replayed.asked, repr(world)
    return len(world.store.journal().node_id) - len(recovered.journal.node_id)


def roots(works: Any, which: set[int]) -> list[Event]:
    """Admissions of some trees."""
    found: list[Event] = []
    for work in works:
        problems = [problem for problem, tree in zip(work.problems, work.trees, strict=True) if tree in which]
        found += [admitted(work, problems)] if problems else []
    return found


@pytest.mark.parametrize("name", EVERY)
def test_a_restored_shard_equals_a_replayed_one(name: str) -> None:
    saved, seed = 0, 0 if name in WORKS else 1
    limits = ShardLimits(flush_ms=FLUSH_MS, snapshot_steps_min=2)
    commits = World(EVERY[name], SLOW, seed, limits=limits).run().commits
    for number in range(2, commits + 1, 2 if name in WORKS else 1):
        world = World(EVERY[name], replace(SLOW, crash_at=(number, "before")), seed, limits=limits)
        while len(world.lives) == 1:
            world.turn()
        saved += assert_equal(world)
    assert saved > 0


@pytest.mark.parametrize("name", EVERY)
def test_a_slot_that_was_given_up_may_come_back(name: str) -> None:
    """Before the shard has forgotten anything by itself, it gets back what it gave away a moment ago."""
    world, trips = World(EVERY[name], replace(SLOW, delay_ms_max=20), seed=1), 0
    while world.open:
        world.turn()
        if trips < 4 and world.store.steps and world.open:
            trips += 1
            give_and_take(world, tuple({tree % SLOTS for tree in world.open}))
    world.check_ended()
    assert len(world.lives) == 1
    if name in WORKS:
        assert_same(world, name)


def give_and_take(world: World, slots: tuple[int, ...]) -> None:
    """The shard gives slots up, and has them again as soon as that is durable."""
    world.feed([SlotsReleased(slots)])
    commits = world.commits
    while world.shard._leaving or not any(set(slots) <= {*commit.released} for commit in world.store.commits[commits:]):
        world.turn()
    assert not {*world.shard.forest.trees.tree_id[: world.shard.forest.trees.size].tolist()} & {*world.open}
    world.journal.release(slots)
    recovered = world.store.recover()
    world.journal.extend(recovered.journal)
    for work in world.works:
        world.feed([TreesRestored(work.plan, part) for part in recovered.parts.get(work.plan.job_id, [])])
    for event in roots(world.works, {*world.open} - recovered.trees):
        world.feed([event])
