"""Drives searches that go on by single expansions, through what happens to trees: budgets cut moves, rows are renumbered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.policies.base import Moves
from tests.property.driven import LANDS, WORDS, Driver
from tests.property.forests import SCORES, Node, Tree, bytes_of, i32
from tests.property.reference import PlainMoves

LOGPROBS = (-0.5, -0.5, -1.0, -3.0)


@dataclass(eq=False)
class Step(Node):
    """A node, and what a search over single expansions knows of it."""

    logprob: float = 0.0
    asked: int = 0  # times that its expansion was asked for, granted or not


class Search(Driver):
    """See the module."""

    def __init__(self, data: st.DataObject, policy: Any, plain: Callable[[Tree, Any], PlainMoves]) -> None:
        super().__init__(data, policy, plain)
        self.forest.trees.whole[: self.forest.trees.size] = policy.whole
        for tree in self.grown.trees:
            tree.root = Step(**vars(tree.root))
            tree.nodes = [tree.root]
        self.budgets = data.draw(st.booleans())

    def carry_out(self, moves: Moves) -> None:
        """As the shard does; a budget cuts some counts, and a tree that gets nothing at all has ended."""
        forest, every = self.forest, np.arange(len(self.grown.trees), dtype=np.int32)
        nodes = {node.row: cast(Step, node) for tree in self.grown.trees for node in tree.nodes}
        forest.trees.turn[self.asked] += 1
        forest.visits[moves.mark], forest.value[moves.mark] = moves.visits, moves.value
        for row in moves.expand.tolist():
            nodes[row].asked += 1
        count = moves.count.copy()
        if self.budgets and self.data.draw(st.integers(0, 3)) == 0:
            count = np.minimum(count, i32(*[self.data.draw(st.integers(0, 3)) for _ in count]))
        unpaid = moves.expand[(count == 0) & (forest.child_count[moves.expand] == 0)]
        for row in [*moves.prune.tolist(), *unpaid.tolist()]:
            nodes[row].status, forest.status[row] = Status.PRUNED, Status.PRUNED
        forest.unlist(every)
        for row in forest.expand(moves.expand[count > 0], count[count > 0]).tolist():
            parent = nodes[int(forest.parent[row])]
            parent.status, parent.children = Status.EXPANDED, parent.children + 1
            child = Step(row, int(forest.node_id[row]), parent, [], "", status=Status.SAMPLING)
            self.grown.trees[int(forest.tree[row])].nodes.append(child)
        stuck = forest.trees.outstanding[self.asked] == 0
        for index in {*moves.finish.tolist(), *np.array(self.asked)[stuck].tolist()}:
            self.open.remove(index)
            forest.trees.status[index] = TreeStatus.FINISHED
        if self.policy.whole and self.data.draw(st.booleans()):
            self.compact()
        forest.validate()

    def decide(self, trees: list[int]) -> None:
        self.asked = trees
        super().decide(trees)

    def compact(self) -> None:
        """Renumber the rows; those of a whole tree all stay."""
        self.forest.compact()
        forest = self.forest
        names = zip(forest.tree[: forest.size].tolist(), forest.node_id[: forest.size].tolist(), strict=True)
        row_of = {name: row for row, name in enumerate(names)}
        for index, tree in enumerate(self.grown.trees):
            for node in tree.nodes:
                node.row = row_of[index, node.node_id]

    def _fill(self, node: Node) -> None:
        draw, step = self.data.draw, cast(Step, node)
        step.finish, step.score = int(draw(st.sampled_from(LANDS))), draw(st.sampled_from(SCORES))
        step.text, step.logprob = draw(st.sampled_from(WORDS)), draw(st.sampled_from(LOGPROBS))
        step.tokens = [1] * draw(st.integers(0, 2))
        text, row, length = bytes_of(step.text), i32(step.row), i32(len(step.tokens))
        logprob, finish = np.array([step.logprob], np.float32), np.array([step.finish], np.uint8)
        self.forest.fill(row, i32(*step.tokens), length, text, i32(len(text)), logprob, finish)
        self.forest.score[row] = step.score
        step.status = Status.PRUNED if finish == Finish.ERROR else Status.OPEN
        self.forest.land(row, step.status)


def steps(tree: Tree) -> list[Step]:
    """All nodes, in the order in which they were asked for."""
    return cast(list[Step], tree.nodes)


def kids(tree: Tree, node: Node) -> list[Step]:
    """The children of a node, oldest first."""
    return [step for step in steps(tree) if step.parent is node]


def free_places(tree: Tree, iterations: int, parallel: int, branch: int) -> int:
    """How many expansions may start. Steps asked for, or in flight, count as the fewest expansions that they could come from."""
    in_flight = sum(node.status == Status.SAMPLING for node in tree.nodes)
    asked = len(tree.nodes) - 1
    return max(0, min(iterations - (asked + branch - 1) // branch, parallel - (in_flight + branch - 1) // branch))


def is_busy(tree: Tree) -> bool:
    return any(node.status == Status.SAMPLING for node in tree.nodes)
