"""Adaptive branching decides about many trees as its plain reference decides about each of them."""

from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.policies.ab_mcts import AbMcts
from tests.property.forests import Tree, add_child, i32, planted, settle
from tests.property.plain_ab_mcts import plain_ab_mcts
from tests.property.reference import PlainMoves, has_ended
from tests.property.searched import Search, steps


@st.composite
def policies(draw: st.DrawFn) -> AbMcts:
    return AbMcts(
        iterations=draw(st.integers(1, 24)),
        parallel=draw(st.integers(1, 5)),
        belief=draw(st.sampled_from(("gaussian", "beta"))),
        max_steps=draw(st.integers(1, 5)),
        aggregate=draw(st.sampled_from(get_args(Aggregate))),
    )


@given(st.data(), policies())
def test_equals_its_reference_from_the_root_to_the_end(data: st.DataObject, policy: AbMcts) -> None:
    def plain(tree: Tree, policy: AbMcts) -> PlainMoves:
        return plain_ab_mcts(tree, policy, int(driver.forest.trees.turn[driver.grown.trees.index(tree)]))

    driver = Search(data, policy, plain)
    driver.run()
    for tree in driver.grown.trees:
        assert not any(has_ended(node, policy.max_steps) for node in steps(tree) if node.asked), "nothing follows an end"
        if not driver.budgets:
            assert len(tree.nodes) - 1 == policy.iterations, "a search always finds something to do"


def share_of_deeper(score_of_child: float, scores_below: list[float], belief: str, end: Finish = Finish.STEP) -> float:
    """How many of many walks go from a root with one child to this child or below it."""
    grown = planted(1)
    tree = grown.trees[0]
    grown.forest.trees.whole[:1] = True
    child = add_child(grown, tree, tree.root, "a\n", Finish.STEP, score_of_child)
    for score in scores_below:
        add_child(grown, tree, child, "b\n", Finish.STEP, score)
    settle(grown)
    grown.forest.finish[child.row] = end
    moves = AbMcts(iterations=4096, parallel=2000, belief=belief).advance(grown.forest, i32(0))  # type: ignore[arg-type]
    assert moves.count.sum() == 2000
    return float(np.sum(moves.count[moves.expand != tree.root.row])) / 2000


def test_goes_where_scores_are_high() -> None:
    for belief in ("gaussian", "beta"):
        assert share_of_deeper(0.5, [0.5], belief) > 0.3
        assert share_of_deeper(0.1, [0.9] * 6, belief) > 0.85, "what is below a child is better than children are"
        assert share_of_deeper(0.9, [0.1] * 6, belief) < 0.25


def test_an_ended_child_leaves_only_the_wider_way() -> None:
    for belief in ("gaussian", "beta"):
        assert share_of_deeper(0.9, [], belief) > 0
        assert share_of_deeper(0.9, [], belief, Finish.END) == share_of_deeper(0.9, [], belief, Finish.CONTEXT) == 0


def test_a_node_that_failed_is_not_gone_into() -> None:
    grown = planted(1)
    tree, forest = grown.trees[0], grown.forest
    forest.trees.whole[:1] = True
    failed = add_child(grown, tree, tree.root, "a\n", Finish.ERROR, 1.0)
    failed.status = Status.PRUNED
    settle(grown)
    assert AbMcts().advance(forest, i32(0)).expand.tolist() == [tree.root.row]
