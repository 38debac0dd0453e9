"""Trees that a policy grows for several turns, as columns and as plain objects side by side.

Whatever happens to a shard's trees happens here too: steps fail, budgets cut moves, dead rows are freed, trees are in different
phases. Every turn is decided by the policy and by its plain reference, and they must agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Flag, Status, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.policies.base import Moves, Policy
from tests.property.forests import SCORES, TEXTS, Grown, Node, Tree, bytes_of, i32, planted
from tests.property.reference import PlainMoves

TURNS_MAX = 60  # a tree that is still growing then is taken to grow for ever
FINISHES = (Finish.STEP, Finish.STEP, Finish.STEP, Finish.STEP_CUT, Finish.END, Finish.CONTEXT, Finish.ERROR)
scores = st.sampled_from(SCORES) | st.floats(0, 1, width=32)


@dataclass
class Wanted(PlainMoves):
    """What a policy wants done with one tree, and what it wants kept of it."""

    greedy: set[int] = field(default_factory=set)  # rows whose new children are sampled at temperature 0
    visits: dict[int, int] = field(default_factory=dict)  # by row


Plain = Callable[[Tree, Forest], Wanted]
"""The reference; it may take nothing from the forest but the tree's turn, and the `visits` that it wanted kept."""


def grow(data: st.DataObject, policy: Policy, plain: Plain, max_trees: int = 3) -> Grown:
    """Grow some trees to their ends, comparing at every turn."""
    grown = planted(data.draw(st.integers(1, max_trees)))
    budgets = data.draw(st.booleans())
    for _ in range(TURNS_MAX):
        growing = [index for index, tree in enumerate(grown.trees) if tree.status == TreeStatus.GROWING]
        if not growing:
            return grown
        chosen = sorted(data.draw(st.sets(st.sampled_from(growing), min_size=1)))
        moves = decide(grown.forest, policy, i32(*chosen))
        compare(moves, {index: plain(grown.trees[index], grown.forest) for index in chosen}, grown)
        carry_out(data, grown, moves, i32(*chosen), budgets)
        if data.draw(st.booleans()):
            compact(grown)
        grown.forest.validate()
    raise AssertionError("a tree does not end")


def decide(forest: Forest, policy: Policy, trees: Rows) -> Moves:
    """The policy's moves, which must be the same for each tree alone, and must leave the forest as it is."""
    before = [forest.column(name).tobytes() for name in forest.COLUMNS]
    moves = policy.advance(forest, trees)
    alone = [policy.advance(forest, trees[at : at + 1]) for at in range(len(trees))]
    assert [forest.column(name).tobytes() for name in forest.COLUMNS] == before
    for name in ("expand", "count", "finish"):
        assert getattr(moves, name).tolist() == [entry for each in alone for entry in getattr(each, name).tolist()], name
    for name in ("prune", "retire", "mark"):
        assert sorted(getattr(moves, name).tolist()) == sorted(entry for each in alone for entry in getattr(each, name).tolist())
    return moves


def compare(moves: Moves, wanted: dict[int, Wanted], grown: Grown) -> None:
    """The columns say what the plain moves of each tree say, and keep to the contract of `Moves`."""
    plain = [wanted[tree] for tree in sorted(wanted)]
    expand = list(zip(moves.expand.tolist(), moves.count.tolist(), strict=True))
    assert expand == [pair for each in plain for pair in each.expand]
    flags = np.zeros(len(expand), np.uint8) if moves.flags is None else moves.flags
    assert {row for row, flag in zip(moves.expand.tolist(), flags, strict=True) if flag} == set().union(
        *(each.greedy for each in plain)
    )
    assert {*flags.tolist()} <= {0, Flag.GREEDY}
    assert sorted(moves.prune.tolist()) == sorted(row for each in plain for row in each.prune)
    assert sorted(moves.retire.tolist()) == sorted(row for each in plain for row in each.retire)
    assert dict(zip(moves.mark.tolist(), moves.visits.tolist(), strict=True)) == {
        row: count for each in plain for row, count in each.visits.items()
    }
    assert len(moves.value) == len(moves.mark)
    assert moves.finish.tolist() == [tree for tree in sorted(wanted) if wanted[tree].finish]
    named = np.concatenate((moves.expand, moves.prune, moves.retire))
    assert len(np.unique(named)) == len(named), "a row appears in one of expand, prune and retire"
    assert (np.diff(grown.forest.tree[moves.expand]) >= 0).all(), "trees ascend"
    assert (moves.count >= 1).all()
    stays = np.isin(np.arange(len(grown.trees)), moves.finish, invert=True) & np.isin(np.arange(len(grown.trees)), sorted(wanted))
    assert np.isin(np.flatnonzero(stays), grown.forest.tree[moves.expand]).all(), "who does not end goes on"


def carry_out(data: st.DataObject, grown: Grown, moves: Moves, trees: Rows, budgets: bool) -> None:
    """What a shard does with moves, and then what becomes of the new steps."""
    forest = grown.forest
    nodes = {node.row: (tree, node) for tree in grown.trees for node in tree.nodes if node.row >= 0}
    forest.trees.turn[trees] += 1
    forest.visits[moves.mark], forest.value[moves.mark] = moves.visits, moves.value
    set_status(nodes, forest, moves.prune, Status.PRUNED)
    set_status(nodes, forest, moves.retire, Status.RETIRED)
    count = moves.count.copy()
    if budgets and data.draw(st.integers(0, 3)) == 0:
        count = np.minimum(count, i32(*[data.draw(st.integers(0, 3)) for _ in count]))
    unpaid = moves.expand[(count == 0) & (forest.child_count[moves.expand] == 0)]
    set_status(nodes, forest, unpaid, Status.PRUNED)
    some, flags = count > 0, moves.flags
    forest.unlist(trees)
    for index in {*moves.finish.tolist(), *(set(trees.tolist()) - set(forest.tree[moves.expand[some]].tolist()))}:
        grown.trees[index].status = TreeStatus.FINISHED
        forest.trees.status[index] = TreeStatus.FINISHED
    children = forest.expand(moves.expand[some], count[some], None if flags is None else flags[some])
    for row in children.tolist():
        tree, parent = nodes[int(forest.parent[row])]
        parent.status, parent.children = Status.EXPANDED, parent.children + 1
        land(data, grown, tree, parent, row)


def land(data: st.DataObject, grown: Grown, tree: Tree, parent: Node, row: int) -> None:
    """A step has been sampled and scored, or has failed."""
    forest, rows = grown.forest, i32(row)
    finish, score, text = data.draw(st.sampled_from(FINISHES)), data.draw(scores), data.draw(st.sampled_from(TEXTS))
    size = i32(len(text.encode()))
    forest.fill(rows, i32(1), i32(1), bytes_of(text), size, np.zeros(1, np.float32), np.array([finish], np.uint8))
    forest.score[rows] = score
    status = Status.PRUNED if finish == Finish.ERROR else Status.OPEN
    forest.land(rows, status)
    tree.nodes.append(Node(row, int(forest.node_id[row]), parent, [1], text, score, int(finish), status))


def set_status(nodes: dict[int, tuple[Tree, Node]], forest: Forest, rows: Rows, status: int) -> None:
    forest.status[rows] = status
    for row in rows.tolist():
        nodes[row][1].status = status


def compact(grown: Grown) -> None:
    """Free what a policy has no right to look at: the plain nodes stay, without a row."""
    grown.forest.compact()
    forest = grown.forest
    names = zip(forest.tree[: forest.size].tolist(), forest.node_id[: forest.size].tolist(), strict=True)
    row_of = {name: row for row, name in enumerate(names)}
    for index, tree in enumerate(grown.trees):
        for node in tree.nodes:
            node.row = row_of.get((index, node.node_id), -1)


def place_among_siblings(tree: Tree, node: Node) -> int:
    """How many children its parent had before it, failed ones too."""
    return [other for other in tree.nodes if other.parent is node.parent].index(node)


def open_nodes(tree: Tree) -> list[Node]:
    return [node for node in tree.nodes if node.status == Status.OPEN]
