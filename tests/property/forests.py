"""Random forests, as columns and as plain objects side by side."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Dirty, Status, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.ids import root_ids, tree_ids

# Few values, so that scores tie and texts repeat; eighths, so that sums and products are exact in any order.
SCORES = (0.0, 0.25, 0.5, 0.5, 0.875, 1.0, math.nan)
TEXTS = ("a\n", "b\n", "", "bb\n")
LEAF = (Status.OPEN, Status.OPEN, Status.OPEN, Status.PRUNED, Status.RETIRED, Status.SAMPLING, Status.SCORING)
GROWN = tuple(Finish)


@dataclass(eq=False)
class Node:
    """One node, as a reader would write it down."""

    row: int
    node_id: int
    parent: "Node | None"
    tokens: list[int]
    text: str
    score: float = math.nan
    finish: int = 0
    status: int = Status.OPEN
    dirty: int = 0
    children: int = 0

    def chain(self) -> list["Node"]:
        """The steps from the first to this one, without the root."""
        return [*self.parent.chain(), self] if self.parent else []

    @property
    def depth(self) -> int:
        return len(self.chain())


@dataclass(eq=False)
class Tree:
    """One tree."""

    tree_id: int
    root: Node
    status: int = TreeStatus.GROWING
    best: Node | None = None
    nodes: list[Node] = field(default_factory=list)  # by row, the root too


@dataclass
class Grown:
    """A forest twice."""

    forest: Forest
    trees: list[Tree]

    def __repr__(self) -> str:
        lines = [
            f"  tree {index} {tree.status} row {node.row} under {node.parent.row if node.parent else '-'} {node.status}"
            f" finish={node.finish} score={node.score} text={node.text!r} dirty={node.dirty}"
            for index, tree in enumerate(self.trees)
            for node in tree.nodes
        ]
        return "\n".join(["Grown", *lines])


def bytes_of(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def i32(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def planted(count: int) -> Grown:
    """`count` trees that are bare roots."""
    forest, problems = Forest(), np.arange(count, dtype=np.int64)
    names, roots = tree_ids("job", problems), root_ids(7, problems)
    tokens = [[100 + index, 7] for index in range(count)]
    text = "".join(f"p{index}" for index in range(count))
    lengths = [len(f"p{index}") for index in range(count)]
    forest.admit(
        0,
        names,
        problems,
        roots,
        i32(*[token for each in tokens for token in each]),
        i32(*[2] * count),
        bytes_of(text),
        i32(*lengths),
    )
    trees = []
    for index in range(count):
        root = Node(index, int(roots[index]), None, tokens[index], f"p{index}")
        trees.append(Tree(int(names[index]), root, nodes=[root]))
    return Grown(forest, trees)


def add_child(grown: Grown, tree: Tree, parent: Node, text: str, finish: Finish, score: float) -> Node:
    """One more step, sampled and scored."""
    forest = grown.forest
    row = forest.expand(i32(parent.row), i32(1))
    tokens = [len(tree.nodes), *text.encode()]
    count = i32(len(tokens)), i32(len(text.encode()))
    forest.fill(row, i32(*tokens), count[0], bytes_of(text), count[1], np.zeros(1, np.float32), np.array([finish], np.uint8))
    forest.score[row] = score
    node = Node(int(row[0]), int(forest.node_id[row[0]]), parent, tokens, text, score, int(finish))
    parent.status, parent.children = Status.EXPANDED, parent.children + 1
    tree.nodes.append(node)
    return node


def settle(grown: Grown) -> None:
    """Write the statuses of the plain nodes into the columns, and count what is in flight."""
    forest = grown.forest
    for index, tree in enumerate(grown.trees):
        busy = 0
        for node in tree.nodes:
            forest.status[node.row], forest.dirty[node.row] = node.status, node.dirty
            busy += node.status in (Status.SAMPLING, Status.SCORING)
        forest.trees.outstanding[index], forest.trees.status[index] = busy, tree.status
        if tree.best:
            forest.trees.best[index] = tree.best.row
    landed = (forest.status[: forest.size] != Status.SAMPLING) & (forest.status[: forest.size] != Status.SCORING)
    forest.turn[: forest.size] = landed
    forest.relist()


@st.composite
def forests(
    draw: st.DrawFn, *, in_flight: bool = False, ends: bool = False, levels: bool = False, answers: bool = False
) -> Grown:
    """1 to 4 trees of up to 24 steps together.

    Args:
        draw: of Hypothesis.
        in_flight: whether nodes may be SAMPLING or SCORING.
        ends: whether trees may be done, and nodes may wait for a commit.
        answers: whether chains are of one step and most of them have ended.
        levels: whether steps are added to the nodes in the order in which these came, as a beam does, or to any node.
    """
    grown = planted(draw(st.integers(1, 2 if answers else 4)))
    finishes = (Finish.END,) * 4 + (Finish.STEP,) if answers else GROWN
    for _ in range(draw(st.integers(0, 24))):
        tree = draw(st.sampled_from(grown.trees))
        parents = [tree.root] if answers else tree.nodes[-4:] if levels else tree.nodes
        parent = draw(st.sampled_from(parents))
        finish, score = draw(st.sampled_from(finishes)), draw(st.sampled_from(SCORES))
        add_child(grown, tree, parent, draw(st.sampled_from(TEXTS)), finish, score)
    leaf = [status for status in LEAF if in_flight or status not in (Status.SAMPLING, Status.SCORING)]
    for tree in grown.trees:
        for node in tree.nodes:
            if not node.children:
                node.status = draw(st.sampled_from(leaf)) if node.parent else Status.OPEN
            if ends and node.parent:
                node.dirty = draw(st.sampled_from((0, 0, Dirty.NODE, Dirty.SCORE, Dirty.COMMITTING)))
        if ends:
            tree.status = draw(st.integers(TreeStatus.GROWING, TreeStatus.FREE))
            tree.best = draw(st.sampled_from([None, *tree.nodes[1:]]))
    settle(grown)
    grown.forest.validate()
    return grown


def some_trees(data: st.DataObject, grown: Grown) -> list[int]:
    """A non-empty choice of the trees' rows, sorted."""
    every = range(len(grown.trees))
    return sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))


def same_score(found: Any, wanted: float) -> bool:
    """Equal as a float32, where NaN equals NaN."""
    return bool(np.array_equal(np.float32(found), np.float32(wanted), equal_nan=True))
