"""What a tree may spend: tokens, steps, and a limit that no search is meant to reach."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler import spending
from ramify.scheduler.commands import Commit, Generate, Withdraw
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Flag, Status, TreeStatus
from ramify.scheduler.plan import UNBOUNDED, Outcome
from ramify.scheduler.policies.base import Moves
from ramify.scheduler.shard import Shard, ShardLimits
from tests.property.forests import i32, planted
from tests.simulation.jobs import WORKS, calm
from tests.simulation.world import FLUSH_MS, Weather, Work, World, plan
from tests.unit.core.scripts import begin, none_of, only, sampled, scripted, status, tick

MOST = 6  # tokens of a step
BOUND = st.none() | st.integers(0, 12)


@given(
    st.data(), st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=3), BOUND, BOUND
)
def test_a_grant_equals_its_reference(
    data: st.DataObject, shapes: list[tuple[int, int, int]], tokens: int | None, steps: int | None
) -> None:
    """Trees of (open, in flight, tokens of what has landed), each of which wants some of its open nodes continued."""
    nodes_max = data.draw(st.integers(0, 20))
    grown = planted(len(shapes))
    forest, trees = grown.forest, grown.forest.trees
    wanted: list[tuple[int, int, int]] = []  # tree, row, children
    for tree, (opens, flying, settled) in enumerate(shapes):
        children = forest.expand(i32(tree), i32(opens + flying))
        forest.land(children[:opens], Status.OPEN)
        trees.settled[tree] = settled
        grow = data.draw(st.permutations(children[:opens].tolist()))[: data.draw(st.integers(0, opens))]
        wanted += [(tree, row, data.draw(st.integers(1, 4))) for row in grow]
    expand, count = i32(*[row for _, row, _ in wanted]), i32(*[count for _, _, count in wanted])
    kinds = data.draw(st.none() | st.lists(st.sampled_from((0, 1, 2)), min_size=len(wanted), max_size=len(wanted)))
    flags = None if kinds is None else np.array(kinds, np.uint8)
    budget = UNBOUNDED if tokens is None else tokens * MOST
    job = plan(tokens_per_tree_max=budget, steps_per_tree_max=UNBOUNDED if steps is None else steps)

    found = spending.grant(forest, job, Moves(expand=expand, count=count, flags=flags), nodes_max)

    left, granted, ended, refused, cut = {}, list[int](), list[int](), list[int](), list[int]()
    for tree, (opens, flying, settled) in enumerate(shapes):
        left[tree] = min((budget - settled) // MOST - flying, (UNBOUNDED if steps is None else steps) - opens - flying)
        asks = sum(each for of, _, each in wanted if of == tree)
        if asks and opens + flying + asks > nodes_max:
            refused.append(tree)
    for tree, _, each in wanted:
        given_now = 0 if tree in refused else max(0, min(each, left[tree]))
        left[tree] -= given_now
        granted.append(given_now)
        cut += [tree] if given_now < each else []
    for tree, (_, flying, _) in enumerate(shapes):
        mine = [number for (of, _, _), number in zip(wanted, granted, strict=True) if of == tree]
        if tree in refused or (mine and not any(mine) and not flying):
            ended.append(tree)
        outcome = Outcome.FAILED if tree in refused else Outcome.BUDGET if tree in cut else 0
        assert trees.outcome[tree] == outcome
    some = [at for at, number in enumerate(granted) if number]
    assert found.expand.tolist() == expand[some].tolist()
    assert found.count.tolist() == [granted[at] for at in some]
    assert (found.flags is None) if flags is None else (found.flags is not None and found.flags.tolist() == flags[some].tolist())
    assert found.ended.tolist() == ended
    assert {*found.refused} == {int(trees.tree_id[tree]) for tree in refused}
    for (_, row, _), number in zip(wanted, granted, strict=True):
        assert forest.status[row] == (Status.OPEN if number else Status.PRUNED)


def test_without_moves_nothing_is_granted() -> None:
    forest = planted(1).forest
    found = spending.grant(forest, plan(steps_per_tree_max=0), Moves(), 0)
    assert [len(each) for each in (found.expand, found.count, found.ended)] == [0, 0, 0]
    assert forest.trees.outcome[0] == 0


def test_a_node_that_has_children_is_not_given_up_for_want_of_more() -> None:
    """A policy may widen a node that it has grown before, where the budget bears no more."""
    forest = planted(1).forest
    forest.land(forest.expand(i32(0), i32(2)), Status.OPEN)
    found = spending.grant(forest, plan(steps_per_tree_max=2), Moves(expand=i32(0), count=i32(1)), 100)
    assert (found.expand.tolist(), found.ended.tolist()) == ([], [0])
    assert forest.status[0] == Status.EXPANDED
    assert forest.trees.outcome[0] == Outcome.BUDGET


# --- in the shard -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["beam", "best_of_n"])
@pytest.mark.parametrize("steps", [0, 1, 3, 6, 7, 12, 1_000])
def test_a_budget_of_steps_is_never_overrun(policy: str, steps: int) -> None:
    """That it holds at every moment is checked by the world."""
    work = Work(plan(policy=policy, n=6, steps_per_tree_max=steps), (0, 1, 2, 3))
    free = World([replace(work, plan=replace(work.plan, steps_per_tree_max=10**9))]).run()
    world = World([work], Weather(delay_ms_max=12, batch_max=3), seed=steps).run()
    world.check_ended()
    for tree in work.trees:
        result, unbounded = world.store.results[tree], free.store.results[tree]
        if unbounded.step_count <= steps:
            assert (result.step_count, result.outcome) == (unbounded.step_count, unbounded.outcome)
        else:
            assert (result.step_count, result.outcome) == (steps, Outcome.BUDGET), "it is used up to the last step"


def test_the_tighter_of_two_budgets_holds() -> None:
    for tokens, steps in ((5 * MOST, 100), (10**6, 5)):
        job = plan(policy="best_of_n", n=9, tokens_per_tree_max=tokens, steps_per_tree_max=steps)
        _, command = begin(job)
        assert len(command.hint) == 5


def test_a_tree_that_asks_for_more_than_the_limit_fails_alone_and_says_so() -> None:
    counts = {tree: result.step_count for tree, result in calm("beam").store.results.items()}
    limit = sorted(counts.values())[1]
    assert min(counts.values()) <= limit < max(counts.values())
    world = World(WORKS["beam"], limits=ShardLimits(flush_ms=FLUSH_MS, nodes_per_tree_max=limit)).run()
    world.check_ended()
    for tree, count in counts.items():
        result = world.store.results[tree]
        if count <= limit:
            assert str(result) == str(calm("beam").store.results[tree]), "the others go on"
        else:
            assert (result.outcome, result.steps, result.answer_node_id) == (Outcome.FAILED, [], 0)
            assert f"{limit:,} steps" in result.message
            assert "nodes_per_tree_max" in result.message
            assert result.step_count <= limit


def test_what_a_failed_tree_has_in_flight_is_withdrawn() -> None:
    def greedy(turn: int, forest: object) -> Moves:
        return Moves(expand=i32(0), count=i32(3)) if turn == 0 else Moves(expand=i32(1), count=i32(3))

    shard, command = begin(scripted(greedy), Shard(ShardLimits(nodes_per_tree_max=5)))
    found = shard.handle([sampled(command, ["a\n"], Finish.STEP, at=[0])])
    withdrawn = only(found, Withdraw)
    assert withdrawn.node_id.tolist() == [node for node in command.node_id.tolist() if node != int(command.node_id[0])]
    assert none_of(found, Generate)
    assert status(shard) == TreeStatus.FINISHED
    ((result,),) = [delta.results for delta in only(tick(shard), Commit).jobs]
    assert (result.outcome, result.step_count) == (Outcome.FAILED, 1)
    assert shard.handle([sampled(command, ["b\n"], Finish.STEP, at=[1])]) == []


def test_a_step_in_flight_is_reserved_until_it_lands() -> None:
    """Without a barrier a tree asks while others of its steps are under way: none of these is paid from the same tokens."""

    def one_more(turn: int, forest: object) -> Moves:
        return Moves(expand=i32(0), count=i32(3)) if turn == 0 else Moves(expand=i32(turn), count=i32(2))

    shard, command = begin(scripted(one_more, tokens_per_tree_max=4 * MOST))
    found = shard.handle([sampled(command, ["a\n"], Finish.STEP, at=[0])])
    assert len(only(found, Generate).hint) == 1, "two are in flight, one token is spent: of 24 - 1 - 12 tokens one step is sure"
    assert shard.forest.trees.outcome[0] == Outcome.BUDGET
    assert status(shard) == TreeStatus.GROWING


def test_flags_stay_with_their_nodes() -> None:
    def both(turn: int, forest: object) -> Moves:
        if turn == 0:
            return Moves(expand=i32(0), count=i32(2), flags=np.array([Flag.GREEDY], np.uint8))
        return Moves(expand=i32(1, 2), count=i32(1, 1), flags=np.array([0, Flag.SPECULATIVE], np.uint8))

    shard, command = begin(scripted(both, barrier="level", steps_per_tree_max=9))
    assert (command.params.temperature, command.speculative) == (0.0, False)
    found = shard.handle([sampled(command, ["a\n", "b\n"], Finish.STEP)])
    kinds = [(each.params.temperature, each.speculative, len(each.hint)) for each in found if isinstance(each, Generate)]
    assert kinds == [(1.0, False, 1), (1.0, True, 1)]
