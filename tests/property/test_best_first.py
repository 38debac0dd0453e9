"""Best-first search decides about many trees as its plain reference decides about each of them."""

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.policies.best_first import BestFirst
from tests.property.forests import add_child, i32, planted, settle
from tests.property.plain_best_first import plain_best_first
from tests.property.reference import best_first, has_ended, words
from tests.property.searched import Search, steps


@st.composite
def policies(draw: st.DrawFn) -> BestFirst:
    return BestFirst(
        iterations=draw(st.integers(1, 12)),
        parallel=draw(st.integers(1, 4)),
        branch=draw(st.integers(1, 4)),
        threshold=draw(st.sampled_from((0.0, 0.5, 1.0))),
        max_steps=draw(st.integers(1, 5)),
        aggregate=draw(st.sampled_from(get_args(Aggregate))),
        duplicates=draw(st.sampled_from(("drop", "keep"))),
        barrier=draw(st.sampled_from(("level", "none"))),
    )


@given(st.data(), policies())
def test_equals_its_reference_from_the_root_to_the_end(data: st.DataObject, policy: BestFirst) -> None:
    driver = Search(data, policy, plain_best_first)
    driver.run()
    for tree in driver.grown.trees:
        expanded = [node for node in steps(tree) if node.asked]
        assert all(node.asked == 1 for node in expanded), "a node is expanded once"
        if driver.budgets:
            continue
        assert len(expanded) <= policy.iterations
        queue = best_first([node for node in tree.nodes if node.status == Status.OPEN], policy.aggregate)
        heads = [node for node in queue if node.finish == Finish.END or not has_ended(node, policy.max_steps)]
        found = bool(heads) and heads[0].finish == Finish.END
        assert found or not heads or len(expanded) == policy.iterations, "why a search stops"


@given(st.data(), policies())
def test_with_a_barrier_no_chain_is_expanded_twice(data: st.DataObject, policy: BestFirst) -> None:
    driver = Search(data, policy, plain_best_first)
    driver.run()
    if policy.barrier == "level" and policy.duplicates == "drop":
        for tree in driver.grown.trees:
            said = [words(node) for node in steps(tree) if node.asked]
            assert len(said) == len(set(said))


def test_goes_back_to_an_elder() -> None:
    grown = planted(1)
    tree = grown.trees[0]
    good, fair = (add_child(grown, tree, tree.root, text, Finish.STEP, score) for text, score in (("a\n", 0.75), ("b\n", 0.5)))
    worse = add_child(grown, tree, good, "c\n", Finish.STEP, 0.25)
    settle(grown)
    assert BestFirst().advance(grown.forest, i32(0)).expand.tolist() == [fair.row]
    assert BestFirst(parallel=2).advance(grown.forest, i32(0)).expand.tolist() == [fair.row, worse.row]


def test_what_stands_behind_an_ended_chain_waits() -> None:
    grown = planted(1)
    tree, forest = grown.trees[0], grown.forest
    first = add_child(grown, tree, tree.root, "a\n", Finish.STEP, 0.75)
    done = add_child(grown, tree, tree.root, "b\n", Finish.END, 0.5)
    behind = add_child(grown, tree, tree.root, "c\n", Finish.STEP, 0.25)
    settle(grown)
    assert BestFirst(parallel=3).advance(forest, i32(0)).expand.tolist() == [first.row]
    forest.finish[done.row] = Finish.CONTEXT
    assert BestFirst(parallel=3).advance(forest, i32(0)).expand.tolist() == [first.row, behind.row]
    forest.finish[done.row], forest.score[done.row] = Finish.END, 0.875
    moves = BestFirst(parallel=3).advance(forest, i32(0))
    assert (moves.expand.tolist(), moves.finish.tolist()) == ([], [0])
