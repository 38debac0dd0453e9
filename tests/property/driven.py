"""Drives a policy for several rounds: what it wants is done, to the columns and to the plain objects, and drawn steps land."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_GROUP, Status
from ramify.scheduler.policies.base import Moves
from tests.property.forests import SCORES, Grown, Node, Tree, bytes_of, i32, planted
from tests.property.reference import PlainMoves, last_line

ROUNDS_MAX = 200
LANDS = (Finish.STEP,) * 4 + (Finish.STEP_CUT, Finish.END, Finish.END, Finish.CONTEXT, Finish.ERROR)
WORDS = ("a\n", "a\n", "b\n", "c\n", "")


class Driver:
    """See the module."""

    def __init__(self, data: st.DataObject, policy: Any, plain: Callable[[Tree, Any], PlainMoves]) -> None:
        self.data, self.policy, self.plain = data, policy, plain
        self.grown: Grown = planted(data.draw(st.integers(1, 3)))
        self.forest = self.grown.forest
        self.open = list(range(len(self.grown.trees)))
        self.rounds = 0

    def run(self) -> None:
        """Until every tree has ended, each decision checked."""
        asked = list(self.open)
        while self.open:
            self.rounds += 1
            assert self.rounds < ROUNDS_MAX, "a tree ends"
            if asked:
                self.decide(asked)
            asked = self.land()

    def decide(self, trees: list[int]) -> None:
        forest = self.forest
        before = [forest.column(name).tobytes() for name in forest.COLUMNS]
        moves = self.policy.advance(forest, i32(*trees))
        assert [forest.column(name).tobytes() for name in forest.COLUMNS] == before, "a policy reads and doesn't write"
        wanted = {tree: self.plain(self.grown.trees[tree], self.policy) for tree in trees}
        assert_moves(moves, wanted)
        alone = [self.policy.advance(forest, i32(tree)) for tree in trees]
        assert moves.expand.tolist() == [row for each in alone for row in each.expand.tolist()]
        self.carry_out(moves)

    def carry_out(self, moves: Moves) -> None:
        """As the shard does."""
        forest, node = self.forest, {node.row: node for tree in self.grown.trees for node in tree.nodes}
        forest.visits[moves.mark], forest.value[moves.mark] = moves.visits, moves.value
        for rows, status in ((moves.prune, Status.PRUNED), (moves.retire, Status.RETIRED)):
            forest.status[rows] = status
            for row in rows.tolist():
                node[row].status = status
        for row in moves.expand.tolist():
            assert node[row].status in (Status.OPEN, Status.EXPANDED)
        for row in forest.expand(moves.expand, moves.count).tolist():
            parent = node[int(forest.parent[row])]
            child = Node(row, int(forest.node_id[row]), parent, [], "", status=Status.SAMPLING)
            parent.status, parent.children = Status.EXPANDED, parent.children + 1
            self.grown.trees[int(forest.tree[row])].nodes.append(child)
        for tree in moves.finish.tolist():
            self.open.remove(tree)

    def land(self) -> list[int]:
        """Some of what is in flight lands; returns the trees that may be asked about."""
        flying = [(tree, node) for tree in self.open for node in self.grown.trees[tree].nodes if node.status == Status.SAMPLING]
        assert flying or not self.open, "an open tree has something in flight"
        if self.policy.barrier == "none" and flying:
            flying = self.data.draw(st.lists(st.sampled_from(flying), min_size=1, unique=True))
        for tree, node in flying:
            self._fill(node)
            groups: dict[str, int] = {"": NO_GROUP}
            for chain in self.grown.trees[tree].nodes:
                if chain.status == Status.OPEN and chain.finish == Finish.END:
                    self.forest.group[chain.row] = groups.setdefault(last_line(chain), len(groups))
        touched = sorted({tree for tree, _ in flying})
        return [tree for tree in touched if self.policy.barrier == "none" or self.forest.trees.outstanding[tree] == 0]

    def _fill(self, node: Node) -> None:
        finish, score = self.data.draw(st.sampled_from(LANDS)), self.data.draw(st.sampled_from(SCORES))
        node.text, node.finish, node.score = self.data.draw(st.sampled_from(WORDS)), int(finish), score
        text, row = bytes_of(node.text), i32(node.row)
        count = i32(len(text))
        self.forest.fill(row, i32(0), i32(1), text, count, np.zeros(1, np.float32), np.array([finish], np.uint8))
        self.forest.score[row] = score
        node.status = Status.PRUNED if finish == Finish.ERROR else Status.OPEN
        self.forest.land(row, node.status)


def assert_moves(moves: Moves, wanted: dict[int, PlainMoves]) -> None:
    """The columns say what the plain moves of each tree say."""
    expand = [pair for tree in sorted(wanted) for pair in wanted[tree].expand]
    assert list(zip(moves.expand.tolist(), moves.count.tolist(), strict=True)) == expand
    assert sorted(moves.prune.tolist()) == sorted(row for plain in wanted.values() for row in plain.prune)
    assert sorted(moves.retire.tolist()) == sorted(row for plain in wanted.values() for row in plain.retire)
    assert moves.finish.tolist() == [tree for tree in sorted(wanted) if wanted[tree].finish]
    named = np.concatenate((moves.expand, moves.prune, moves.retire))
    assert len(np.unique(named)) == len(named), "a row appears in one of expand, prune and retire"
