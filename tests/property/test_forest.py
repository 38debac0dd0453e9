"""The forest's operations on many rows, against loops over plain nodes."""

from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.forest.forest import EPOCHS_KEPT, Aggregate, Forest
from ramify.scheduler.forest.ids import hash_ranges, mix64_int
from ramify.scheduler.forest.segments import Rows
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


@given(st.data(), forests(in_flight=True))
def test_children(data: st.DataObject, grown: Grown) -> None:
    """Of nodes in any order and repeated: all children that are here, oldest first, and whose they are."""
    forest = grown.forest
    for _ in range(2):
        rows = i32(*data.draw(st.lists(st.integers(0, forest.size - 1), max_size=8)))
        child, owner = forest.children(rows)
        wanted = [(int(each), at) for at, row in enumerate(rows) for each in np.flatnonzero(forest.parent[: forest.size] == row)]
        assert list(zip(child.tolist(), owner.tolist(), strict=True)) == wanted
        opens = np.flatnonzero(forest.status[: forest.size] == Status.OPEN).astype(np.int32)[:3]
        forest.expand(opens, np.full(len(opens), 2, np.int32))
        forest.compact()  # and the same of what is left


def scan(forest: Forest, trees: list[int]) -> list[int]:
    """What `landed` must hold, the long way: nodes of `trees` that are not in flight; of some that are dead it may be silent."""
    busy = (Status.SAMPLING, Status.SCORING)
    silent = (Status.EXPANDED, Status.PRUNED)
    found = []
    for tree in trees:
        for row in np.flatnonzero(forest.tree[: forest.size] == tree).tolist():
            status = forest.status[row]
            if status not in busy and (forest.trees.whole[tree] or status not in silent):
                found.append(row)
    return found


@given(st.data(), st.lists(st.booleans(), min_size=1, max_size=3))
def test_lists_of_landed_nodes_through_growth_and_compaction(data: st.DataObject, whole: list[bool]) -> None:
    """A run of all that happens to a forest, with the lists against a scan after each of its steps."""
    forest, count = Forest(), len(whole)
    one, names = np.ones(count, np.int32), np.arange(1, count + 1, dtype=np.uint64)
    for at, keeps in enumerate(whole):
        tree = np.array([at + 1], np.uint64)
        forest.admit(0, tree, np.zeros(1, np.int64), names[at : at + 1], one[:1], one[:1], bytes_of("p"), one[:1], whole=keeps)
    for _ in range(data.draw(st.integers(1, 12))):
        status = forest.status[: forest.size]
        what = data.draw(st.sampled_from(("expand", "land", "land", "unlist", "compact", "prune", "retire")))
        of = Status.SAMPLING if what == "land" else Status.OPEN
        some = [row for row in np.flatnonzero(status == of).tolist() if what != "prune" or forest.depth[row]]
        chosen = i32(*(data.draw(st.lists(st.sampled_from(some), max_size=6, unique=True)) if some else []))
        if what == "expand":
            forest.expand(chosen, np.full(len(chosen), data.draw(st.integers(1, 5)), np.int32))
        elif what == "land":
            forest.land(chosen, data.draw(st.sampled_from((Status.OPEN, Status.PRUNED))))
        elif what == "unlist":
            forest.unlist(np.arange(forest.trees.size, dtype=np.int32))
        elif what == "compact":
            forest.compact()
        else:
            forest.status[chosen] = {"prune": Status.PRUNED, "retire": Status.RETIRED}[what]
        trees = some_of(data, forest.trees.size)
        listed = forest.landed(i32(*trees)).tolist()
        wanted = scan(forest, trees)
        assert [row for row in listed if row in wanted] == wanted, what
        late = [row for row in listed if row not in wanted]
        assert all(not forest.trees.whole[forest.tree[row]] for row in late)
        if what in ("unlist", "compact"):
            assert late == [], "only what is promised is kept"
        forest.validate()


def some_of(data: st.DataObject, count: int) -> list[int]:
    """Some of `count` trees, sorted."""
    return sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))


@given(st.data(), forests(in_flight=True, ends=True))
def test_hints_outlive_compactions(data: st.DataObject, grown: Grown) -> None:
    """Whatever was compacted and has grown since a node was named: it is found as long as it is here, and nothing else is."""
    forest = grown.forest
    asked: list[tuple[int, NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]] = []
    for epoch in range(EPOCHS_KEPT + 3):
        rows: Rows = np.arange(forest.size, dtype=np.int32)
        asked.append((epoch, forest.hints(rows), forest.trees.tree_id[forest.tree[rows]], forest.node_id[rows].copy()))
        opens = np.flatnonzero(forest.status[: forest.size] == Status.OPEN).astype(np.int32)
        if len(opens):
            grows = np.unique(i32(*data.draw(st.lists(st.sampled_from(opens.tolist()), max_size=3))))
            forest.expand(grows, np.full(len(grows), 2, np.int32))
        dirty = forest.dirty[: forest.size]
        dirty[data.draw(st.lists(st.integers(0, forest.size - 1), max_size=6)) if forest.size else []] = 0
        gives_up = np.flatnonzero((forest.status[: forest.size] == Status.OPEN) & (forest.depth[: forest.size] > 0))
        forest.status[gives_up[: data.draw(st.integers(0, 2))]] = Status.PRUNED
        forest.compact()
        here = {name: row for row, name in enumerate(names_of(forest))}
        for _, hint, tree_id, node_id in asked:
            order = np.array(data.draw(st.permutations(range(len(hint)))), np.int64)
            found, known = forest.locate(hint[order], tree_id[order], node_id[order])
            wanted = list(zip(tree_id[order].tolist(), node_id[order].tolist(), strict=True))
            assert known.tolist() == [at for at, name in enumerate(wanted) if name in here]
            assert found.tolist() == [here[wanted[at]] for at in known.tolist()]


def names_of(forest: Forest) -> list[tuple[int, int]]:
    tree_id = forest.trees.tree_id[forest.tree[: forest.size]]
    return list(zip(tree_id.tolist(), forest.node_id[: forest.size].tolist(), strict=True))


@given(forests(in_flight=True), st.integers(0, EPOCHS_KEPT + 2))
def test_a_hint_of_another_node_or_of_none_finds_nothing_false(grown: Grown, compactions: int) -> None:
    forest = grown.forest
    for _ in range(compactions):
        forest.compact()
    rows = np.arange(forest.size, dtype=np.int32)
    tree_id, node_id = forest.trees.tree_id[forest.tree[rows]], forest.node_id[rows]
    for hint in (forest.hints(rows[::-1]), forest.hints(rows) + 10_000, np.full(len(rows), -1, np.int64)):
        found, known = forest.locate(hint, tree_id, node_id)
        assert found.tolist() == rows[known].tolist(), "the ids are the truth"
    nobody = forest.locate(forest.hints(rows), tree_id, node_id + np.uint64(1))
    assert [len(each) for each in nobody] == [0, 0]


def test_an_empty_forest_is_compacted_again_and_again() -> None:
    """Trees that were there are gone, and so are their rows; what was asked of them may yet be answered."""
    forest = Forest()
    one = np.ones(1, np.uint64)
    forest.admit(0, one, np.zeros(1, np.int64), one, i32(1), i32(1), bytes_of("p"), i32(1))
    hint = forest.hints(i32(0))
    forest.trees.status[0] = TreeStatus.FREE
    for _ in range(EPOCHS_KEPT + 2):
        forest.compact()
        forest.validate()
        assert [len(each) for each in forest.locate(hint, one, one)] == [0, 0]
    forest.admit(0, one, np.zeros(1, np.int64), one, i32(1), i32(1), bytes_of("p"), i32(1))
    forest.compact()
    assert forest.locate(hint, one, one)[0].tolist() == [0], "found by its name"


BROKEN = {
    "a parent comes before its children": ("parent", 3),
    "depth counts steps": ("depth", 5),
    "an id names the path": ("node_id", 1),
    "children are counted": ("child_count", 0),
    "outstanding counts": ("status", Status.SAMPLING),
    "tokens lie in the arena": ("token_count", 10_000),
    "text lies in the arena": ("text_start", 10_000),
    "no child is newer than the last": ("last_child", 1),
    "every child is linked": ("elder", -1),
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
    forest.land(children, Status.OPEN)
    forest.validate()
    forest.column(name)[{"child_count": 0, "last_child": 0, "elder": 3}.get(name, 1)] = value
    with pytest.raises(AssertionError, match=message):
        forest.validate()


@given(st.lists(st.binary(max_size=20) | st.text("ab", max_size=20).map(str.encode), max_size=8))
def test_runs_of_bytes_are_hashed_one_by_one(runs: list[bytes]) -> None:
    found = hash_ranges(np.frombuffer(b"".join(runs), np.uint8), i32(*[len(run) for run in runs]))
    assert found.dtype == np.uint64
    assert len(found) == len(runs)
    for run, value in zip(runs, found.tolist(), strict=True):
        assert hash_ranges(np.frombuffer(run, np.uint8), i32(len(run))).tolist() == [value], (
            "what lies beside it has no part in it"
        )
        assert [value == other for other in found.tolist()] == [run == other for other in runs]


def test_no_short_runs_share_a_hash() -> None:
    runs = [bytes(pair) for pair in product(range(0, 256, 5), repeat=2)] + [b"\0" * size for size in range(40) if size != 2]
    runs += [b"x" * size + bytes([last]) for size in range(6, 26) for last in range(64)]
    found = hash_ranges(np.frombuffer(b"".join(runs), np.uint8), i32(*[len(run) for run in runs]))
    assert len({*found.tolist()}) == len({*runs})
