"""The forest's operations on many rows, against loops over plain nodes."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.forest.forest import Aggregate, Forest, Status, TreeStatus
from ramify.scheduler.forest.ids import hash_ranges, mix64_int
from tests.property.forests import Grown, Node, bytes_of, forests, i32, same_score, some_trees
from tests.property.reference import chain_score, has_ended, plain_kept, words


def some_nodes(data: st.DataObject, grown: Grown) -> list[Node]:
    """Any nodes in any order, roots and repeats too."""
    return data.draw(st.lists(st.sampled_from([node for tree in grown.trees for node in tree.nodes]), max_size=8))


@given(st.data(), forests())
def test_paths(data: st.DataObject, grown: Grown) -> None:
    nodes = some_nodes(data, grown)
    path, length = grown.forest.paths(i32(*[node.row for node in nodes]))
    assert path.tolist() == [step.row for node in nodes for step in node.chain()]
    assert length.tolist() == [node.depth for node in nodes]


@given(st.data(), forests(), st.sampled_from(get_args(Aggregate)))
def test_chain_scores(data: st.DataObject, grown: Grown, aggregate: Aggregate) -> None:
    nodes = some_nodes(data, grown)
    scores = grown.forest.chain_scores(i32(*[node.row for node in nodes]), aggregate)
    for node, score in zip(nodes, scores.tolist(), strict=True):
        assert same_score(score, chain_score(node, aggregate)), (node.row, score)


@given(st.data(), forests())
def test_chain_tokens(data: st.DataObject, grown: Grown) -> None:
    nodes = some_nodes(data, grown)
    tokens, offsets = grown.forest.chain_tokens(i32(*[node.row for node in nodes]))
    root_of = {node.row: tree.root for tree in grown.trees for node in tree.nodes}
    for index, node in enumerate(nodes):
        wanted = [token for step in (root_of[node.row], *node.chain()) for token in step.tokens]
        assert tokens[offsets[index] : offsets[index + 1]].tolist() == wanted
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)


@given(st.data(), forests(in_flight=True))
def test_frontier_candidates_and_retired(data: st.DataObject, grown: Grown) -> None:
    chosen = some_trees(data, grown)
    mine = [(tree, node) for tree in chosen for node in grown.trees[tree].nodes]
    opens = [node.row for _, node in mine if node.status == Status.OPEN]
    may_answer = [node.row for _, node in mine if node.parent and node.status in (Status.OPEN, Status.RETIRED)]
    assert grown.forest.frontier(i32(*chosen)).tolist() == opens
    assert grown.forest.candidates(i32(*chosen)).tolist() == may_answer
    set_aside = [sum(node.status == Status.RETIRED for node in grown.trees[tree].nodes) for tree in chosen]
    assert grown.forest.retired(i32(*chosen, *chosen)).tolist() == [*set_aside, *set_aside]


@given(st.data(), forests(), st.integers(1, 5))
def test_ended(data: st.DataObject, grown: Grown, max_steps: int) -> None:
    nodes = some_nodes(data, grown)
    found = grown.forest.ended(i32(*[node.row for node in nodes]), max_steps)
    assert found.tolist() == [has_ended(node, max_steps) for node in nodes]


@given(forests())
def test_a_text_hash_says_whether_chains_say_the_same(grown: Grown) -> None:
    for tree in grown.trees:
        for one in tree.nodes:
            for other in tree.nodes:
                equal = grown.forest.text_hash[one.row] == grown.forest.text_hash[other.row]
                assert bool(equal) == (words(one) == words(other))


@given(forests())
def test_texts_and_sums(grown: Grown) -> None:
    nodes = [node for tree in grown.trees for node in tree.nodes]
    assert grown.forest.texts(i32(*[node.row for node in nodes])) == [node.text for node in nodes]
    for index, tree in enumerate(grown.trees):
        assert grown.forest.trees.steps[index] == len(tree.nodes) - 1
        assert grown.forest.trees.spent[index] == sum(len(node.tokens) for node in tree.nodes[1:])


@given(forests(), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_children_get_ids_from_their_place(grown: Grown, counts: list[int]) -> None:
    opens = [node for tree in grown.trees for node in tree.nodes if node.status == Status.OPEN][: len(counts)]
    counts = counts[: len(opens)]
    children = grown.forest.expand(i32(*[node.row for node in opens]), i32(*counts))
    wanted = [mix64_int(node.node_id, index) for node, count in zip(opens, counts, strict=True) for index in range(count)]
    assert grown.forest.node_id[children].tolist() == wanted
    grown.forest.validate()


Record = tuple[int, int, int, str, list[int], int, float, int, int]


def record(forest: Forest, row: int) -> Record:
    """All that is known of a node, without row numbers."""
    parent, tree = int(forest.parent[row]), int(forest.tree[row])
    start, count = int(forest.token_start[row]), int(forest.token_count[row])
    return (
        int(forest.trees.tree_id[tree]),
        int(forest.node_id[row]),
        int(forest.node_id[parent]) if parent >= 0 else 0,
        forest.texts(i32(row))[0],
        forest.tokens.data[start : start + count].tolist(),
        int(forest.status[row]),
        float(np.nan_to_num(forest.score[row], nan=-1)),
        int(forest.depth[row]),
        int(forest.dirty[row]),
    )


@given(forests(in_flight=True, ends=True))
def test_compaction_frees_dead_branches_and_nothing_else(grown: Grown) -> None:
    forest, kept = grown.forest, plain_kept(grown)
    wanted = [record(forest, node.row) for node in kept]
    best = {tree.tree_id: tree.best.node_id for tree in grown.trees if tree.best and tree.status != TreeStatus.FREE}
    trees = [tree.tree_id for tree in grown.trees if any(node in kept for node in tree.nodes)]
    forest.compact()
    forest.validate()
    assert [record(forest, row) for row in range(forest.size)] == wanted
    assert forest.trees.tree_id[: forest.trees.size].tolist() == trees
    for tree, name in enumerate(trees):
        if name in best:
            assert forest.node_id[forest.trees.best[tree]] == best[name]
    held = sum(len(node.tokens) for node in kept)
    assert forest.tokens.size == held
    forest.compact()
    assert [record(forest, row) for row in range(forest.size)] == wanted, "a second compaction changes nothing"


def test_an_empty_forest_may_be_compacted() -> None:
    forest = Forest()
    forest.compact()
    forest.validate()
    assert forest.size == 0


@given(forests(in_flight=True))
def test_a_forest_goes_on_after_a_compaction(grown: Grown) -> None:
    forest = grown.forest
    forest.compact()
    opens = np.flatnonzero(forest.status[: forest.size] == Status.OPEN).astype(np.int32)
    children = forest.expand(opens, np.full(len(opens), 2, np.int32))
    forest.validate()
    assert (forest.finish[children] == 0).all()
    assert (forest.dirty[children] == 0).all()
    assert (forest.tries[children] == 0).all()


BROKEN = {
    "a parent comes before its children": ("parent", 3),
    "depth counts steps": ("depth", 5),
    "an id names the path": ("node_id", 1),
    "children are counted": ("child_count", 0),
    "outstanding counts": ("status", Status.SAMPLING),
    "tokens lie in the arena": ("token_count", 10_000),
    "text lies in the arena": ("text_start", 10_000),
}


@pytest.mark.parametrize("message", BROKEN)
def test_validate_finds_what_is_broken(message: str) -> None:
    name, value = BROKEN[message]
    forest = Forest()
    one = np.ones(1, np.uint64)
    forest.admit(0, one, np.zeros(1, np.int64), one, i32(1), i32(1), bytes_of("p"), i32(1))
    children = forest.expand(i32(0), i32(3))
    count = i32(1, 1, 1)
    finish = np.ones(3, np.uint8)
    forest.fill(children, count, count, bytes_of("abc"), count, np.zeros(3, np.float32), finish)
    forest.status[children], forest.trees.outstanding[0] = Status.OPEN, 0
    forest.validate()
    forest.column(name)[0 if name == "child_count" else 1] = value
    with pytest.raises(AssertionError, match=message):
        forest.validate()


@given(st.lists(st.binary(max_size=6), max_size=6))
def test_runs_of_bytes_are_hashed_one_by_one(runs: list[bytes]) -> None:
    polynomial, mask = 0x5851F42D4C957F2D, 2**64 - 1
    found = hash_ranges(np.frombuffer(b"".join(runs), np.uint8), i32(*[len(run) for run in runs]))
    for run, value in zip(runs, found.tolist(), strict=True):
        total = sum((byte + 1) * pow(polynomial, place + 1, 2**64) for place, byte in enumerate(run)) & mask
        assert value == mix64_int(total, len(run))
