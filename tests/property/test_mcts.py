"""MCTS decides about many trees as its plain reference decides about each of them."""

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.policies.base import Moves
from ramify.scheduler.policies.mcts import CLOSED, Mcts
from tests.property.forests import add_child, i32, planted, settle
from tests.property.plain_mcts import PlainMcts, plain_mcts
from tests.property.reference import has_ended
from tests.property.searched import Search, Step, kids, steps


@st.composite
def policies(draw: st.DrawFn) -> Mcts:
    return Mcts(
        iterations=draw(st.integers(1, 12)),
        parallel=draw(st.integers(1, 4)),
        branch=draw(st.integers(1, 4)),
        exploration=draw(st.sampled_from((0.0, 0.5, 1.25, 10.0))),
        max_steps=draw(st.integers(1, 5)),
        aggregate=draw(st.sampled_from(get_args(Aggregate))),
        barrier=draw(st.sampled_from(("level", "none"))),
    )


class Counted(Search):
    """After every decision, what is kept of each node is what its reference counts from nothing."""

    def carry_out(self, moves: Moves) -> None:
        super().carry_out(moves)
        for index in self.asked:
            tree = self.grown.trees[index]
            plain = PlainMcts(tree, self.policy)
            for node in steps(tree):
                if node.status == Status.SAMPLING:
                    continue
                assert self.forest.visits[node.row] == plain.visits(node)
                kept = self.forest.value[node.row]
                if kept == CLOSED:
                    assert self.is_closed(index, node), "nothing will ever be expanded below"
                else:
                    assert kept == plain.value(node)
                    assert node.parent is None or not has_ended(node, self.policy.max_steps)

    def is_closed(self, index: int, node: Step) -> bool:
        if node.status == Status.OPEN:
            return has_ended(node, self.policy.max_steps)
        below = kids(self.grown.trees[index], node)
        return node.status == Status.PRUNED or (
            node.status == Status.EXPANDED and all(self.is_closed(index, kid) for kid in below)
        )


@given(st.data(), policies())
def test_equals_its_reference_from_the_root_to_the_end(data: st.DataObject, policy: Mcts) -> None:
    driver = Counted(data, policy, plain_mcts)
    driver.run()
    for tree in driver.grown.trees:
        expanded = [node for node in steps(tree) if node.asked]
        assert all(node.asked == 1 for node in expanded), "a node is expanded once"
        if not driver.budgets:
            assert len(expanded) <= policy.iterations
            open_ = [node for node in steps(tree) if node.status == Status.OPEN and not has_ended(node, policy.max_steps)]
            assert len(expanded) == policy.iterations or not open_, "a search stops when there is nothing left to expand"


def test_of_equals_the_likelier_is_expanded() -> None:
    """A long step is not unlikely for its length alone."""
    grown = planted(1)
    tree, forest = grown.trees[0], grown.forest
    forest.trees.whole[:1] = True
    likely, unlikely = (add_child(grown, tree, tree.root, text, Finish.STEP, 0.5) for text in ("a long step\n", "b\n"))
    settle(grown)
    forest.turn[tree.root.row], forest.visits[tree.root.row] = 0, 2  # as when the two steps were asked for
    forest.logprob[[likely.row, unlikely.row]] = -4.0, -3.0
    assert forest.token_count[likely.row] > 2 * forest.token_count[unlikely.row]
    one = Mcts(parallel=1)
    assert one.advance(forest, i32(0)).expand.tolist() == [likely.row]
    # By 1.25 * sqrt(2) / (1 + 1) times the difference of the priors, 0.294, the likelier one may be worse.
    forest.score[unlikely.row] = 0.78125
    assert one.advance(forest, i32(0)).expand.tolist() == [likely.row]
    forest.score[unlikely.row] = 0.8125
    assert one.advance(forest, i32(0)).expand.tolist() == [unlikely.row]
    assert Mcts(parallel=1, exploration=0.0).advance(forest, i32(0)).expand.tolist() == [unlikely.row]
    assert Mcts(parallel=2).advance(forest, i32(0)).expand.tolist() == [unlikely.row, likely.row]


def test_expansions_side_by_side_spread() -> None:
    """The best child of the best child would come second by its value alone; what is in flight beside it counts against it."""
    grown = planted(1)
    tree, forest = grown.trees[0], grown.forest
    forest.trees.whole[:1] = True
    best, other = (add_child(grown, tree, tree.root, text, Finish.STEP, score) for text, score in (("a\n", 0.75), ("b\n", 0.5)))
    below = [add_child(grown, tree, best, text, Finish.STEP, 0.75) for text in ("a\n", "b\n")]
    settle(grown)
    forest.turn[tree.root.row] = 0
    forest.visits[[tree.root.row, best.row]] = 4, 2  # as when the four steps were asked for
    chosen = Mcts(parallel=2, branch=2, exploration=0.25).advance(forest, i32(0)).expand.tolist()
    assert chosen[0] in (below[0].row, below[1].row)
    assert chosen[1] == other.row
