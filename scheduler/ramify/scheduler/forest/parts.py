"""Some trees of a forest as columns of their own: what a snapshot holds, and what a restored forest grows from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.columns import NO_ROW, Nodes, Status, Trees, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.forest.table import select

Columns = Mapping[str, NDArray[Any]]

# What follows from other columns, or means something in one forest alone.
_TREE_DERIVED = ("plan", "listed_start", "listed_count", "listed_room", "outstanding")
_NODE_DERIVED = ("token_start", "text_start", "last_child", "elder", "dirty")
TREE_COLUMNS = {name: dtype for name, dtype in Trees.COLUMNS.items() if name not in _TREE_DERIVED}
NODE_COLUMNS = {name: dtype for name, dtype in Nodes.COLUMNS.items() if name not in _NODE_DERIVED}


@dataclass(frozen=True, slots=True)
class Part:
    """T trees of one job and their N live nodes. Rows (`root`, `best`, `tree`, `parent`) are counted within the part."""

    trees: Columns  # TREE_COLUMNS, each [T]
    nodes: Columns  # NODE_COLUMNS, each [N]; parents before their children
    tokens: NDArray[np.int32]  # of the nodes, one after the other; those of a root are the prompt
    text: NDArray[np.uint8]  # UTF-8, likewise
    messages: Mapping[int, str] = field(default_factory=dict)  # by tree id: the first thing that went wrong

    def __len__(self) -> int:
        return len(self.trees["tree_id"])


def cut(forest: Forest, trees: Rows) -> Part:
    """The trees `trees` `[T]` (sorted) with their live nodes.

    Nodes of growing trees that are with the verifier are told as still to be sampled, less what they hold: whoever restores the
    part has their samples from elsewhere, and hands them in again. In a tree that has ended nobody would ask for them: they stay.
    """
    t = forest.trees
    wanted = np.zeros(t.size, np.bool_)
    wanted[trees] = True
    rows = np.flatnonzero(wanted[forest.tree[: forest.size]]).astype(np.int32)
    rows = rows[forest.live(rows)[rows]]
    new_row = np.full(forest.size + 1, NO_ROW, np.int32)  # the last is that of NO_ROW
    new_row[rows] = np.arange(len(rows), dtype=np.int32)
    new_tree = np.zeros(t.size, np.int32)
    new_tree[trees] = np.arange(len(trees), dtype=np.int32)
    tree_columns = {name: t.column(name)[trees] for name in TREE_COLUMNS}
    tree_columns["root"], tree_columns["best"] = new_row[tree_columns["root"]], new_row[tree_columns["best"]]
    columns = {name: forest.column(name)[rows] for name in NODE_COLUMNS}
    columns["tree"], columns["parent"] = new_tree[columns["tree"]], new_row[columns["parent"]]
    scoring = (columns["status"] == Status.SCORING) & (tree_columns["status"] == TreeStatus.GROWING)[columns["tree"]]
    np.subtract.at(tree_columns["spent"], columns["tree"][scoring], columns["token_count"][scoring].astype(np.int64))
    np.subtract.at(tree_columns["steps"], columns["tree"][scoring], np.int64(1))
    columns["status"][scoring] = Status.SAMPLING
    for name, nothing in (("token_count", 0), ("text_count", 0), ("logprob", 0), ("finish", 0), ("score", np.nan)):
        columns[name][scoring] = nothing
    columns["text_hash"][scoring] = 0
    full = rows[~scoring]
    return Part(
        trees=tree_columns,
        nodes=columns,
        tokens=forest.tokens.take(forest.token_start[full], forest.token_count[full]),
        text=forest.text.take(forest.text_start[full], forest.text_count[full]),
    )


def graft(forest: Forest, part: Part, plan: int) -> Rows:
    """Add a part's trees to a forest that doesn't hold them; returns their rows `[T]`.

    Args:
        forest: gets a copy of the part's rows, written and clean.
        part: of `cut`.
        plan: index of the job's plan.
    """
    t, nodes = forest.trees, part.nodes
    trees, rows = t.append(len(part)), forest.append(len(nodes["node_id"]))
    if not len(trees):
        return trees
    row = np.append(rows, np.int32(NO_ROW))
    for name in TREE_COLUMNS:
        t.column(name)[trees] = part.trees[name]
    t.plan[trees] = plan
    t.root[trees], t.best[trees] = row[part.trees["root"]], row[part.trees["best"]]
    for name in NODE_COLUMNS:
        forest.column(name)[rows] = nodes[name]
    forest.tree[rows], forest.parent[rows] = trees[nodes["tree"]], row[nodes["parent"]]
    forest.place(rows, part.tokens, nodes["token_count"], part.text, nodes["text_count"])
    in_flight = rows[forest.status[rows] <= Status.SCORING]
    np.add.at(t.outstanding, forest.tree[in_flight], np.int32(1))
    forest.thread(rows)
    return trees


def some_trees(part: Part, which: NDArray[np.bool_]) -> Part:
    """The part less the trees that `which` `[T]` doesn't mark."""
    if which.all():
        return part
    nodes = which[part.nodes["tree"]]
    new_row = np.append(np.where(nodes, np.cumsum(nodes) - 1, NO_ROW), NO_ROW).astype(np.int32)
    new_tree = (np.cumsum(which) - 1).astype(np.int32)
    trees = {name: column[which] for name, column in part.trees.items()}
    trees["root"], trees["best"] = new_row[trees["root"]], new_row[trees["best"]]
    columns = {name: column[nodes] for name, column in part.nodes.items()}
    columns["tree"], columns["parent"] = new_tree[columns["tree"]], new_row[columns["parent"]]
    kept = dict.fromkeys(trees["tree_id"].tolist())
    return replace(
        part,
        trees=trees,
        nodes=columns,
        tokens=select(part.tokens, part.nodes["token_count"], nodes),
        text=select(part.text, part.nodes["text_count"], nodes),
        messages={tree: message for tree, message in part.messages.items() if tree in kept},
    )


def with_scores(part: Part, tree_id: NDArray[np.uint64], node_id: NDArray[np.uint64], score: NDArray[np.float32]) -> Part:
    """The part with scores that were committed after it was cut: of steps that were sampled, but had none.

    Where only whole chains are scored, a chain's steps get their scores when it ends.

    Args:
        part: of `cut`.
        tree_id: `[S]`.
        node_id: `[S]`; both together name a step, of the part or not.
        score: `[S]` the last one of each step counts; NaN: none.
    """
    nodes = part.nodes
    if not len(part):
        return part
    names = mix64(part.trees["tree_id"][nodes["tree"]], nodes["node_id"])
    order = np.argsort(names)
    wanted = mix64(tree_id, node_id)
    at = order[np.minimum(np.searchsorted(names[order], wanted), len(names) - 1)]
    here = (names[at] == wanted) & (nodes["status"][at] > Status.SCORING) & ~np.isnan(score)
    scores = nodes["score"].copy()
    scores[at[here]] = score[here]
    return replace(part, nodes={**nodes, "score": scores})
