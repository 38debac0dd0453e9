"""Snapshots as bytes: what goes in comes out, whatever it is."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import DrawFn

from ramify.scheduler.commands import Snapshot
from ramify.scheduler.forest.parts import NODE_COLUMNS, TREE_COLUMNS, Part
from ramify.store import snapshots
from ramify.store.errors import Damaged
from ramify.store.segments import NO_SCORES as NO_SCORE_TABLE
from ramify.store.segments import checksum, decode
from ramify.v1 import job_pb2
from tests.unit.store.helpers import Step, part, rows, snapshot

SEGMENT = 77


@st.composite
def parts(draw: DrawFn) -> Part:
    """Up to 4 trees with up to 12 nodes, of which nothing makes sense."""
    trees, nodes = draw(st.integers(0, 4)), draw(st.integers(0, 12))

    def columns(kinds: Any, size: int) -> dict[str, Any]:
        return {name: draw(arrays(dtype, size)) for name, dtype in kinds.items()}

    tree_columns, node_columns = columns(TREE_COLUMNS, trees), columns(NODE_COLUMNS, nodes)
    for name in ("token_count", "text_count"):
        node_columns[name] = draw(arrays(np.int32, nodes, elements=st.integers(0, 5)))
    names = tree_columns["tree_id"].tolist()
    return Part(
        tree_columns,
        node_columns,
        draw(arrays(np.int32, int(node_columns["token_count"].sum()))),
        draw(arrays(np.uint8, int(node_columns["text_count"].sum()))),
        draw(st.dictionaries(st.sampled_from(names), st.text(max_size=5))) if names else {},
    )


def read(taken: Snapshot, first: dict[int, int]) -> snapshots.StoredSnapshot:
    body = snapshots.encode(taken, first)
    return snapshots.decode(body, checksum(body), SEGMENT)


@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), parts(), max_size=3))
@settings(deadline=None)
def test_what_is_encoded_is_decoded(taken: dict[str, Part]) -> None:
    found = read(snapshot(3, taken), {})
    assert [*found.parts] == [*taken]
    for job_id, wanted in taken.items():
        here = found.parts[job_id]
        for theirs, ours in ((here.trees, wanted.trees), (here.nodes, wanted.nodes)):
            assert {*theirs} == {*ours}
            for name, column in ours.items():
                assert theirs[name].dtype == column.dtype, name
                np.testing.assert_array_equal(theirs[name], column, err_msg=name)
        np.testing.assert_array_equal(here.tokens, wanted.tokens)
        np.testing.assert_array_equal(here.text, wanted.text)
        assert (here.tokens.dtype, here.text.dtype) == (np.dtype(np.int32), np.dtype(np.uint8))
        assert here.messages == wanted.messages


def test_steps_and_first_segments() -> None:
    job = job_pb2.Job(job_id="job")
    copy = part(job, 0, 1)
    one, other = copy.trees["tree_id"].tolist()
    found = read(snapshot(3, {job.job_id: copy}, rows(Step(one, 5, text=b"five"), Step(9, 6, score=float("nan")))), {one: 12})
    steps = decode([(found.steps, NO_SCORE_TABLE)])
    assert steps.node_id.tolist() == [5, 6]
    assert steps.text.tobytes() == b"fivestep"
    assert found.first_segment == {one: 12, other: SEGMENT, 9: SEGMENT}, "what is new begins with the snapshot's own commit"


def test_nothing() -> None:
    found = read(snapshot(3), {})
    assert (found.parts, len(found.steps), found.first_segment) == ({}, 0, {})


def test_one_of_a_version_whose_forest_has_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    body = snapshots.encode(snapshot(3, {"job": part(job_pb2.Job(job_id="job"), 0)}), {})
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "TREE_COLUMNS", {**TREE_COLUMNS, "mood": np.int8})
        with pytest.raises(Damaged, match="it lacks the columns mood"):
            snapshots.decode(body, checksum(body), SEGMENT)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_one_that_was_cut(share: float) -> None:
    body = snapshots.encode(snapshot(3, {"job": part(job_pb2.Job(job_id="job"), *range(5))}), {})
    left = int(share * len(body))
    with pytest.raises(Damaged, match="its checksum is"):
        snapshots.decode(body[:left], checksum(body), SEGMENT)
    with pytest.raises(Damaged):
        snapshots.decode(body[:left], checksum(body[:left]), SEGMENT)


def test_a_snapshot_is_small() -> None:
    body = snapshots.encode(snapshot(3, {"job": part(job_pb2.Job(job_id="job"), *range(100), live=64)}), {})
    assert len(body) < 30 * 6_400
