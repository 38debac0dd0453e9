"""Segments: what goes in comes out, whatever it is."""

from math import isnan, nan
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from ramify.scheduler.commands import NodeRows, ScoreRows
from ramify.scheduler.engines.base import Finish
from ramify.store import segments
from ramify.store.segments import (
    NO_STEPS,
    PLAIN,
    checksum,
    concat,
    decode,
    encode_nodes,
    encode_scores,
    of_trees,
    open_segment,
    take,
)
from tests.unit.store.helpers import NO_SCORES, Step, node_ids, rows, scores, texts, without_turn

T = TypeVar("T")
FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
IDS = st.integers(0, 2**64 - 1)


@st.composite
def node_rows(draw: DrawFn) -> NodeRows:
    """Up to 12 steps of up to 4 trees, no step twice."""
    trees = draw(st.lists(IDS, min_size=1, max_size=4, unique=True))
    names = draw(st.lists(st.tuples(st.sampled_from(trees), IDS), max_size=12, unique=True))

    def each(values: st.SearchStrategy[T]) -> list[T]:
        return draw(st.lists(values, min_size=len(names), max_size=len(names)))

    text = [step.encode() for step in each(st.text(max_size=6))]
    tokens = each(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4))

    def column(values: st.SearchStrategy[object], dtype: type[np.generic]) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
        return np.array(each(values), dtype)

    columns: dict[str, np.ndarray[tuple[int], np.dtype[np.generic]]] = {
        "tree_id": np.array([tree for tree, _ in names], np.uint64),
        "node_id": np.array([node for _, node in names], np.uint64),
        "parent_id": column(IDS, np.uint64),
        "child_index": column(st.integers(0, 2**31 - 1), np.int32),
        "depth": column(st.integers(0, 2**15 - 1), np.int16),
        "logprob": column(FLOATS, np.float32),
        "score": column(FLOATS, np.float32),
        "finish": column(st.integers(1, 5), np.uint8),
        "turn": column(st.integers(0, 2**31 - 1), np.int32),
        "tokens": np.array([token for step in tokens for token in step], np.int32),
        "token_count": np.array([len(step) for step in tokens], np.int32),
        "text": np.frombuffer(b"".join(text), np.uint8),
        "text_count": np.array([len(step) for step in text], np.int32),
    }
    return NodeRows(**columns)  # type: ignore[arg-type]  # each has the type that its name says


def assert_same(found: NodeRows, wanted: NodeRows) -> None:
    for name in NodeRows.__dataclass_fields__:
        here, there = getattr(found, name), getattr(wanted, name)
        assert here.dtype == there.dtype, name
        np.testing.assert_array_equal(here, there, err_msg=name)


def every_tree(*parts: NodeRows) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.unique(np.concatenate([part.tree_id for part in parts]))


def read(*written: tuple[NodeRows, ScoreRows], wanted: np.ndarray[tuple[int], np.dtype[np.uint64]] | None = None) -> NodeRows:
    trees = every_tree(*(nodes for nodes, _ in written)) if wanted is None else wanted
    return decode([of_trees(*opened(encode_nodes(nodes), encode_scores(late)), trees) for nodes, late in written])


def opened(nodes: bytes, late: bytes) -> tuple[pa.Table, pa.Table]:
    return open_segment(nodes, late, checksum(nodes, late))


@given(node_rows())
@settings(deadline=None)
def test_what_is_encoded_is_decoded(nodes: NodeRows) -> None:
    assert_same(read((nodes, NO_SCORES)), nodes)


@given(node_rows(), st.data())
@settings(deadline=None)
def test_segments_are_put_together_and_cut_to_trees(nodes: NodeRows, data: st.DataObject) -> None:
    count = len(nodes.node_id)
    first = data.draw(st.integers(0, count))
    parts = [(take(nodes, np.arange(first)), NO_SCORES), (take(nodes, np.arange(first, count)), NO_SCORES)]
    assert_same(read(*parts, wanted=every_tree(nodes)), nodes)
    assert_same(concat([part for part, _ in parts]), nodes)
    wanted = nodes.tree_id[:1]
    assert_same(read(*parts, wanted=wanted), take(nodes, np.flatnonzero(np.isin(nodes.tree_id, wanted))))


@given(node_rows(), st.data())
@settings(deadline=None)
def test_scores_that_come_later_are_put_in_their_place(nodes: NodeRows, data: st.DataObject) -> None:
    count = len(nodes.node_id)
    which = data.draw(st.lists(st.integers(0, max(0, count - 1)), unique=True, max_size=count))
    late = ScoreRows(
        np.append(nodes.tree_id[which], np.uint64(3)),  # the last is of a step that nobody knows
        np.append(nodes.node_id[which], np.uint64(5)),
        np.array([*(data.draw(FLOATS) for _ in which), 1.0], np.float32),
        np.array([*(data.draw(st.integers(1, 99)) for _ in which), 1], np.int32),
    )
    found = read((nodes, NO_SCORES), (NO_STEPS, late))
    for row in range(count):
        score = late.score[which.index(row)] if row in which else nodes.score[row]
        np.testing.assert_equal(found.score[row], score)
        failed = row in which and isnan(score)
        assert found.finish[row] == (Finish.ERROR if failed else nodes.finish[row])
        assert found.turn[row] == (late.turn[which.index(row)] if row in which else nodes.turn[row])


def test_nothing() -> None:
    assert_same(decode([]), NO_STEPS)
    assert_same(read((NO_STEPS, NO_SCORES), (NO_STEPS, NO_SCORES)), NO_STEPS)
    assert_same(read((rows(Step(1, 2)), scores((1, 2, nan))), wanted=np.array([9], np.uint64)), NO_STEPS)
    assert_same(concat([]), NO_STEPS)


def test_the_last_score_counts_and_the_first_of_two_equal_steps() -> None:
    again = rows(Step(1, 5, text=b"again", score=0.9), Step(1, 6, text=b"six"))
    found = read((rows(Step(1, 5, text=b"first")), scores((1, 5, 0.1))), (again, scores((1, 5, 0.2))))
    assert (node_ids(found), texts(found)) == ([5, 6], [b"first", b"six"])
    assert found.score.tolist() == [np.float32(0.2), 0.5]


def test_a_late_score_brings_the_turn_of_its_step() -> None:
    first = rows(Step(1, 5, score=nan, turn=0), Step(1, 6, score=nan, turn=0), Step(1, 7, turn=3))
    found = read((first, NO_SCORES), (NO_STEPS, scores((1, 5, 0.25), turn=4)), (NO_STEPS, scores((1, 6, nan), turn=7)))
    assert found.turn.tolist() == [4, 7, 3]
    assert found.finish.tolist() == [Finish.STEP, Finish.ERROR, Finish.STEP]


@pytest.mark.parametrize("order", [1, -1], ids=["old first", "new first"])
def test_segments_from_before_turns_decode_beside_new_ones(order: int) -> None:
    """Decisions of a job that was upgraded on its way: what has no turn is known at once."""
    new, old = rows(Step(1, 6, text=b"new", turn=9)), rows(Step(1, 5, text=b"old", turn=8))
    tree = np.array([1], np.uint64)
    parts = [
        of_trees(*opened(without_turn(encode_nodes(old)), without_turn(encode_scores(scores((1, 5, 0.25), turn=8)))), tree),
        of_trees(*opened(encode_nodes(new), encode_scores(scores((1, 6, 0.75), turn=9))), tree),
    ]
    found = decode(parts[::order])
    assert sorted(zip(node_ids(found), texts(found), found.turn.tolist(), found.score.tolist(), strict=True)) == [
        (5, b"old", 0, 0.25),
        (6, b"new", 9, 0.75),
    ]


def test_equal_nodes_of_two_trees_are_two() -> None:
    found = read((rows(Step(1, 5, text=b"a"), Step(2, 5, text=b"b")), scores((2, 5, 0.25))))
    assert (texts(found), found.score.tolist()) == ([b"a", b"b"], [0.5, 0.25])


def test_all_plain_columns_are_written() -> None:
    lists = {"tokens", "token_count", "text", "text_count"}
    assert set(PLAIN) | lists == set(NodeRows.__dataclass_fields__)
    assert set(segments.SCORES) == set(ScoreRows.__dataclass_fields__)


def test_a_segment_is_small() -> None:
    many = rows(*(Step(1, node, text=b"5*6=30:6 30\n") for node in range(2, 1002)))
    assert len(encode_nodes(many)) < 30 * 1000
