"""Searches without a barrier: the laws that hold for them, in any weather and through crashes."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_ROW, Flag, Status
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.ids import uniforms
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.policies.base import Moves, Policy
from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.shard import Shard
from tests.property.forests import Node, Tree, planted
from tests.property.plain_beam_async import PlainBeamAsync, PlainRace
from tests.simulation.races import RACES
from tests.simulation.shards import trace
from tests.simulation.store import steps_of
from tests.simulation.world import ROUGH, Weather, Work, World, plan

SLOW = Weather(delay_ms_max=30, batch_max=2)
SEEDS = range(3)
BEAMS = [name for name in RACES if name.startswith("beam")]


@pytest.mark.parametrize("name", RACES)
@pytest.mark.parametrize("weather", [SLOW, ROUGH], ids=["slow", "rough"])
def test_every_tree_ends_and_nothing_committed_is_lost(name: str, weather: Weather) -> None:
    """A replay that decided otherwise would leave out steps that are committed, and `check_ended` would miss their tokens."""
    for seed in SEEDS:
        World(RACES[name], weather, seed).run().check_ended()


@pytest.mark.parametrize("name", RACES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_commit_loses_nothing(name: str, when: str) -> None:
    commits = World(RACES[name], SLOW, seed=7).run().commits
    for number in range(1 + (when == "after"), commits + 1, 2):
        world = World(RACES[name], replace(SLOW, crash_at=(number, when)), seed=7).run()
        world.check_ended()
        assert len(world.lives) == 2


@pytest.mark.parametrize("name", RACES)
def test_the_same_events_lead_to_the_same_commands(name: str) -> None:
    world = World(RACES[name], ROUGH, seed=3).run()
    for life in world.lives:
        first, second = Shard(world.limits), Shard(world.limits)
        for events in life:
            assert trace(first.handle(events)) == trace(second.handle(events))


@pytest.mark.parametrize("name", RACES)
def test_a_replay_takes_the_decisions_of_the_first_run(name: str) -> None:
    """As soon as a recovered shard has its trees, it has asked for every step that is committed of them, and has got it."""
    commits = World(RACES[name], SLOW, seed=11).run().commits
    steps = 0
    for number in range(2, commits + 1):
        world = World(RACES[name], replace(SLOW, crash_at=(number, "before")), seed=11)
        while len(world.lives) == 1 or not {*world.open} <= {*world.shard.forest.trees.column("tree_id").tolist()}:
            world.turn()
        while world.shard.forest.trees.comparing.any() or world.journal._held:  # answers are compared anew, by the shell
            world.turn()
        forest = world.shard.forest
        names = zip(
            forest.trees.tree_id[forest.tree[: forest.size]].tolist(), forest.node_id[: forest.size].tolist(), strict=True
        )
        known = {name for name, finish in zip(names, forest.finish[: forest.size].tolist(), strict=True) if finish}
        committed = {name for name in world.store.steps if name[0] in world.open}
        told = {*steps_of(world.recovered.journal)}  # what else is committed is in the snapshots, or dead
        assert committed & told <= known
        steps += len(committed)
    assert steps > 20


class Shadowed:
    """A beam each of whose decisions is compared with that of its plain reference."""

    def __init__(self, beam: Beam) -> None:
        self.beam, self.decisions = beam, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beam, name)

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        moves = self.beam.advance(forest, trees)
        for tree in trees.tolist():
            self.decisions += 1
            assert_equal(moves, plain(forest, tree, self.beam), forest, tree)
        return moves


def plain(forest: Forest, tree: int, beam: Beam) -> PlainRace:
    """What the reference says of a tree."""
    nodes: dict[int, Node] = {}
    for row in np.flatnonzero(forest.tree[: forest.size] == tree).tolist():
        if forest.status[row] in (Status.SAMPLING, Status.SCORING):
            continue
        parent = None if forest.parent[row] == NO_ROW else nodes[int(forest.parent[row])]
        text = forest.texts(np.array([row], np.int32))[0] if parent else ""
        score, finish = float(forest.score[row]), int(forest.finish[row])
        node = Node(row, int(forest.node_id[row]), parent, [], text, score, finish, int(forest.status[row]))
        nodes[row] = node
    everyone = np.flatnonzero(forest.tree[: forest.size] == tree)
    speculative = everyone[(forest.flags[everyone] & Flag.SPECULATIVE) != 0]
    sent = {row: int(forest.child_count[row]) for row in nodes}
    root = next(iter(nodes.values()))
    guesses = set(forest.parent[speculative].tolist())
    return PlainBeamAsync(Tree(0, root, nodes=list(nodes.values())), beam, set(speculative.tolist()), guesses, sent).moves()


def assert_equal(moves: Moves, wanted: PlainRace, forest: Forest, tree: int) -> None:
    def mine(rows: Rows) -> list[int]:
        return [row for row in rows.tolist() if forest.tree[row] == tree]

    assert moves.flags is not None
    expand = [
        (row, count, bool(flags & Flag.SPECULATIVE))
        for row, count, flags in zip(moves.expand.tolist(), moves.count.tolist(), moves.flags.tolist(), strict=True)
        if forest.tree[row] == tree
    ]
    assert expand == wanted.expand
    assert sorted(mine(moves.confirm)) == sorted(wanted.confirm)
    assert sorted(mine(moves.prune)) == sorted(wanted.prune)
    assert sorted(mine(moves.retire)) == sorted(wanted.retire)
    assert (tree in moves.finish.tolist()) == wanted.finish


@pytest.mark.parametrize("name", BEAMS)
def test_each_decision_equals_that_of_the_reference(name: str) -> None:
    decisions = 0
    for seed in SEEDS:
        works: list[Work] = []
        shadows: list[Shadowed] = []
        for work in RACES[name]:
            assert isinstance(work.plan.policy, Beam)
            shadows.append(Shadowed(work.plan.policy))
            works.append(replace(work, plan=replace(work.plan, policy=cast(Policy, shadows[-1]))))
        World(works, ROUGH, seed).run().check_ended()
        decisions += sum(shadow.decisions for shadow in shadows)
    assert decisions > 50


def test_speculation_is_seen_and_told() -> None:
    """Some speculations are confirmed, some are in vain, and what they cost is in the results."""
    wasted = spent = 0
    for seed in SEEDS:
        world = World(RACES["beam_with_copies"], SLOW, seed).run()
        wasted += sum(result.wasted_tokens for result in world.store.results.values())
        spent += sum(result.tokens for result in world.store.results.values())
    assert 0 < wasted < spent / 2


def test_many_trees_are_decided_about_as_one_is() -> None:
    """More trees, and more of their levels, than small numbers count."""
    count = 70_000
    beam = plan(barrier="none", n=2, keep=1).policy
    forest = planted(count).forest
    trees = np.arange(count, dtype=np.int32)
    rows = forest.expand(forest.trees.root[trees], np.full(count, 2, np.int32))
    none = np.zeros(0, np.int32), np.zeros(2 * count, np.int32)
    finish = np.full(2 * count, Finish.STEP, np.uint8)
    forest.fill(rows, none[0], none[1], none[0].astype(np.uint8), none[1], np.zeros(2 * count, np.float32), finish)
    forest.score[rows] = uniforms(forest.node_id[rows], 5)
    forest.trees.whole[trees] = True
    forest.land(rows, Status.OPEN)
    moves = beam.advance(forest, trees)
    better = forest.score[rows].reshape(count, 2).argmax(1)
    text = forest.text_hash[rows].reshape(count, 2)
    assert (text[:, 0] == text[:, 1]).all(), "both say the same, so one of them goes on"
    assert moves.expand.tolist() == rows.reshape(count, 2)[trees, better].tolist()
    assert len(moves.prune) == count
