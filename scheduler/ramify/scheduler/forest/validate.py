"""The invariants of a forest; for tests and for debugging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ramify.scheduler.forest.columns import NO_ROW, Status, TreeStatus
from ramify.scheduler.forest.ids import mix64

if TYPE_CHECKING:
    from ramify.scheduler.forest.forest import Forest


def validate(forest: Forest) -> None:
    """See `Forest.validate`."""
    n, t = forest.size, forest.trees.size
    rows = np.arange(n)
    child = np.flatnonzero(forest.parent[:n] != NO_ROW)
    parent = forest.parent[child]
    assert (parent < child).all(), "a parent comes before its children"
    assert (forest.tree[parent] == forest.tree[child]).all(), "parent and child are of one tree"
    assert (forest.depth[child] == forest.depth[parent] + 1).all(), "depth counts steps"
    ids = mix64(forest.node_id[parent], forest.child_index[child].astype(np.uint64))
    assert (forest.node_id[child] == ids).all(), "an id names the path"
    assert (forest.child_index[child] < forest.child_count[parent]).all(), "children are counted"
    names = np.stack((forest.trees.tree_id[forest.tree[:n]], forest.node_id[:n]))
    assert np.unique(names, axis=1).shape[1] == n, "(tree_id, node_id) is unique"
    busy = (forest.status[:n] == Status.SAMPLING) | (forest.status[:n] == Status.SCORING)
    growing = forest.trees.status[:t] == TreeStatus.GROWING
    counted = np.bincount(forest.tree[rows[busy]], minlength=t)
    assert (counted[growing] == forest.trees.outstanding[:t][growing]).all(), "outstanding counts what is in flight"
    assert (forest.parent[forest.trees.root[:t]] == NO_ROW).all(), "a root has no parent"
    assert (forest.tree[forest.trees.root[:t]] == np.arange(t)).all(), "a tree has its root"
    assert (forest.token_start[:n] + forest.token_count[:n] <= forest.tokens.size).all(), "tokens lie in the arena"
    assert (forest.text_start[:n] + forest.text_count[:n] <= forest.text.size).all(), "text lies in the arena"
    assert (forest.turn[:n][busy] == 0).all(), "what is in flight has no outcome"
    last = forest.last_child[parent]
    assert (last >= child).all(), "no child is newer than the last"
    assert (forest.parent[last] == parent).all(), "the last child is a child"
    linked, owner = forest.children(np.unique(parent).astype(np.int32))
    assert np.array_equal(np.sort(linked), child), "every child is linked to its parent, once"
    assert np.array_equal(forest.parent[linked], np.unique(parent)[owner]), "links lead to the parent's own children"
    status = forest.status[:n]
    must = (status == Status.OPEN) | (status == Status.RETIRED) | (~busy & forest.trees.whole[forest.tree[:n]])
    listed = forest.landed(np.arange(t, dtype=np.int32))
    assert np.isin(rows[must], listed).all(), "a tree's list holds its landed nodes"
    assert len(np.unique(listed)) == len(listed), "a node is listed once"
    assert not busy[listed].any(), "a node is listed when it has landed"
