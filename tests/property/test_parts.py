"""Trees that are cut out of a forest and grow on in another."""

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.forest.columns import NO_ROW, Status, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.parts import NODE_COLUMNS, TREE_COLUMNS, Part, cut, graft, some_trees, with_scores
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.snapshots import OPEN
from tests.property.forests import Grown, forests, i32

UNRELATED = {"visits": 9, "tries": 5, "group": 3, "flags": 4}  # columns that say nothing of the forest's shape, and values below
TREE_UNRELATED = {"problem": 99, "settled": 99, "asked": 99, "turn": 9, "outcome": 3, "verdict": 3}


def scribble(data: st.DataObject, forest: Forest) -> None:
    """Put something into every column that could be forgotten."""
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for name, below in UNRELATED.items():
        forest.column(name)[: forest.size] = chance.integers(0, below, forest.size)
    forest.value[: forest.size] = chance.random(forest.size)
    forest.grouped[: forest.size] = chance.random(forest.size) < 0.5
    for name, below in TREE_UNRELATED.items():
        forest.trees.column(name)[: forest.trees.size] = chance.integers(0, below, forest.trees.size)
    forest.trees.best_score[: forest.trees.size] = chance.random(forest.trees.size)


def drawn(data: st.DataObject, grown: Grown) -> Rows:
    """Some trees that a snapshot may hold; there may be none."""
    scribble(data, grown.forest)
    fit = [index for index, tree in enumerate(grown.trees) if tree.status in OPEN]
    return i32(*sorted(data.draw(st.sets(st.sampled_from(fit)) if fit else st.just(set()))))


def assert_equal(found: Part, wanted: Part) -> None:
    """To the last bit."""
    for name in TREE_COLUMNS:
        assert found.trees[name].tobytes() == wanted.trees[name].tobytes(), name
        assert found.trees[name].dtype == TREE_COLUMNS[name]
    for name in NODE_COLUMNS:
        assert found.nodes[name].tobytes() == wanted.nodes[name].tobytes(), name
        assert found.nodes[name].dtype == NODE_COLUMNS[name]
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.text.tobytes() == wanted.text.tobytes()
    assert found.messages == wanted.messages


def words(forest: Forest, row: int) -> tuple[str, list[int]]:
    start = int(forest.token_start[row])
    return forest.texts(i32(row))[0], forest.tokens.data[start : start + int(forest.token_count[row])].tolist()


@given(st.data(), forests(in_flight=True, ends=True), forests(in_flight=True))
def test_what_is_cut_grows_on_elsewhere(data: st.DataObject, grown: Grown, other: Grown) -> None:
    trees = drawn(data, grown)
    part = cut(grown.forest, trees)
    host = data.draw(st.sampled_from([Forest(), other.forest]))
    host.trees.tree_id[: host.trees.size] += np.uint64(1)  # both forests have trees of the same job
    grafted = graft(host, part, plan=3)
    host.validate()
    assert (host.trees.plan[grafted] == 3).all()
    assert (host.dirty[: host.size][np.isin(host.tree[: host.size], grafted)] == 0).all(), "all of it is committed"
    assert_equal(cut(host, grafted), part)
    host.compact()
    host.validate()


@given(st.data(), forests(in_flight=True, ends=True))
def test_a_part_holds_what_lives(data: st.DataObject, grown: Grown) -> None:
    """It is what a compaction would leave, if all were written; of what is with the verifier, it holds the name alone."""
    forest = grown.forest
    forest.dirty[: forest.size] = 0
    trees = drawn(data, grown)
    names = forest.trees.tree_id[trees]
    spent = forest.trees.spent[trees].copy()
    part = cut(forest, trees)
    forest.compact()
    rows = np.flatnonzero(np.isin(forest.trees.tree_id[forest.tree[: forest.size]], names))
    assert part.nodes["node_id"].tolist() == forest.node_id[rows].tolist()
    back = Forest()
    grafted = graft(back, part, 0)
    wiped = np.zeros(len(trees), np.int64)
    for at, row in enumerate(rows.tolist()):
        tree = int(back.tree[at])
        if forest.status[row] == Status.SCORING and back.trees.status[tree] == TreeStatus.GROWING:
            wiped[tree] += forest.token_count[row]
            assert (words(back, at), back.status[at], back.finish[at], back.text_hash[at]) == (("", []), Status.SAMPLING, 0, 0)
            continue
        assert words(back, at) == words(forest, row)
        for name in ("status", "finish", "text_hash", "visits", "value", "tries", "turn"):
            assert back.column(name)[at] == forest.column(name)[row], name
    assert (back.trees.spent[grafted] == spent - wiped).all()
    for tree in range(len(trees)):
        busy = np.flatnonzero((back.tree[: back.size] == tree) & (back.status[: back.size] <= Status.SCORING))
        assert back.trees.outstanding[tree] == len(busy)
        best = back.trees.best[tree]
        known = grown.trees[int(trees[tree])].best
        assert (best == NO_ROW) == (known is None)
        assert known is None or int(back.node_id[best]) == known.node_id


@given(st.data(), forests(in_flight=True, ends=True))
def test_some_trees_of_a_part(data: st.DataObject, grown: Grown) -> None:
    trees = drawn(data, grown)
    part = cut(grown.forest, trees)
    which = np.array([data.draw(st.booleans()) for _ in trees], np.bool_)
    assert_equal(some_trees(part, which), cut(grown.forest, trees[which]))


@given(st.data(), forests(in_flight=True, ends=True))
def test_messages_go_with_their_trees(data: st.DataObject, grown: Grown) -> None:
    trees = drawn(data, grown)
    names = grown.forest.trees.tree_id[trees].tolist()
    part = cut(grown.forest, trees)
    part = Part(part.trees, part.nodes, part.tokens, part.text, {name: f"of {name}" for name in names})
    which = np.array([data.draw(st.booleans()) for _ in trees], np.bool_)
    kept = [name for name, stays in zip(names, which.tolist(), strict=True) if stays]
    assert some_trees(part, which).messages == {name: f"of {name}" for name in kept}


@given(st.data(), forests(in_flight=True))
def test_scores_that_came_later(data: st.DataObject, grown: Grown) -> None:
    trees = drawn(data, grown)
    part = cut(grown.forest, trees)
    nodes = [(tree.tree_id, node.node_id) for tree in grown.trees for node in tree.nodes[1:]] + [(1, 2)]
    told = data.draw(st.lists(st.tuples(st.sampled_from(nodes), st.sampled_from([0.25, 0.75, math.nan])), max_size=6))
    names, scores = [name for name, _ in told], np.array([score for _, score in told], np.float32)
    found = with_scores(part, np.array([t for t, _ in names], np.uint64), np.array([n for _, n in names], np.uint64), scores)
    later = {name: score for name, score in told if not math.isnan(score)}
    for at, node_id in enumerate(part.nodes["node_id"].tolist()):
        name = int(part.trees["tree_id"][part.nodes["tree"][at]]), node_id
        landed = part.nodes["status"][at] > Status.SCORING
        wanted: Any = later.get(name, part.nodes["score"][at]) if landed else part.nodes["score"][at]
        assert np.array_equal(found.nodes["score"][at], np.float32(wanted), equal_nan=True)
    rest = {name: column for name, column in found.nodes.items() if name != "score"}
    assert all(column.tobytes() == part.nodes[name].tobytes() for name, column in rest.items())
