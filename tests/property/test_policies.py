"""Each policy decides about many trees as its plain reference decides about each of them."""

from itertools import pairwise
from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.policies.answers import AnswerRule, CutRule, answer_texts, answering, choose, group_answers
from ramify.scheduler.policies.base import Moves
from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.policies.best_of_n import BestOfN
from ramify.scheduler.policies.extract import Extract
from tests.property.driven import assert_moves
from tests.property.forests import Grown, forests, i32, same_score, some_trees
from tests.property.reference import PlainMoves, plain_beam, plain_best_of_n, plain_choose, words


@st.composite
def beams(draw: st.DrawFn) -> Beam:
    keep, branch = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    return Beam(
        n=keep * branch,
        keep=keep,
        branch=branch,
        max_steps=draw(st.integers(1, 5)),
        finished=draw(st.sampled_from(("compete", "retire", "refill"))),
        aggregate=draw(st.sampled_from(get_args(Aggregate))),
        duplicates=draw(st.sampled_from(("drop", "keep"))),
        threshold=draw(st.sampled_from((0.0, 0.5, 1.0))),
    )


def assert_equal(moves: Moves, wanted: dict[int, PlainMoves], grown: Grown) -> None:
    """The columns say what the plain moves of each tree say, of open nodes alone."""
    assert_moves(moves, wanted)
    named = np.concatenate((moves.expand, moves.prune, moves.retire))
    assert (grown.forest.status[named] == Status.OPEN).all()


@given(st.data(), forests(levels=True), beams())
def test_beam_equals_its_reference(data: st.DataObject, grown: Grown, beam: Beam) -> None:
    chosen = some_trees(data, grown)
    moves = beam.advance(grown.forest, i32(*chosen))
    assert_equal(moves, {tree: plain_beam(grown.trees[tree], beam) for tree in chosen}, grown)


@given(st.data(), forests(), beams())
def test_beam_equals_its_reference_on_ragged_trees(data: st.DataObject, grown: Grown, beam: Beam) -> None:
    chosen = some_trees(data, grown)
    moves = beam.advance(grown.forest, i32(*chosen))
    assert_equal(moves, {tree: plain_beam(grown.trees[tree], beam) for tree in chosen}, grown)


@given(st.data(), forests(in_flight=True), st.integers(1, 8), st.integers(1, 5))
def test_best_of_n_equals_its_reference(data: st.DataObject, grown: Grown, n: int, max_steps: int) -> None:
    chosen = some_trees(data, grown)
    moves = BestOfN(n, max_steps).advance(grown.forest, i32(*chosen))
    assert_equal(moves, {tree: plain_best_of_n(grown.trees[tree], n, max_steps) for tree in chosen}, grown)


@given(forests(levels=True), beams())
def test_a_policy_reads_and_does_not_write(grown: Grown, beam: Beam) -> None:
    forest, trees = grown.forest, i32(*range(len(grown.trees)))
    before = [forest.column(name).tobytes() for name in forest.COLUMNS]
    first, second = beam.advance(forest, trees), beam.advance(forest, trees)
    assert [forest.column(name).tobytes() for name in forest.COLUMNS] == before
    for name in ("expand", "count", "prune", "retire", "finish"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@given(forests(levels=True), beams())
def test_a_tree_is_decided_about_alone(grown: Grown, beam: Beam) -> None:
    together = beam.advance(grown.forest, i32(*range(len(grown.trees))))
    alone = [beam.advance(grown.forest, i32(tree)) for tree in range(len(grown.trees))]
    assert together.expand.tolist() == [row for moves in alone for row in moves.expand.tolist()]
    assert together.count.tolist() == [count for moves in alone for count in moves.count.tolist()]


@given(forests(levels=True), beams())
def test_equal_chains_do_not_survive_together(grown: Grown, beam: Beam) -> None:
    moves = beam.advance(grown.forest, i32(*range(len(grown.trees))))
    if beam.duplicates == "keep":
        return
    for tree in grown.trees:
        going_on = [words(node) for node in tree.nodes if node.row in {*moves.expand.tolist(), *moves.retire.tolist()}]
        assert len(set(going_on)) == len(going_on)


@given(
    st.data(),
    forests(answers=True) | forests(),
    st.sampled_from(get_args(AnswerRule)),
    st.sampled_from(get_args(Aggregate)),
    st.sampled_from(get_args(CutRule)),
    st.integers(1, 4),
)
def test_choose_equals_its_reference(
    data: st.DataObject, grown: Grown, rule: AnswerRule, aggregate: Aggregate, cut: CutRule, max_steps: int
) -> None:
    chosen = some_trees(data, grown)
    extract, trees = Extract("last_line"), i32(*chosen)
    answers = answering(grown.forest, trees, cut, max_steps)
    for tree in chosen:
        mine = answers[grown.forest.tree[answers] == tree]
        grown.forest.group[mine] = group_answers(answer_texts(grown.forest, mine, extract), "exact", 0.0)
    rows, scores = choose(grown.forest, answers, rule, aggregate)
    best = [node for node in (plain_choose(grown.trees[tree], rule, aggregate, cut, max_steps) for tree in chosen) if node]
    assert rows.tolist() == [node.row for node in best]
    wanted = grown.forest.chain_scores(rows, aggregate)
    assert all(same_score(found, score) for found, score in zip(scores.tolist(), wanted.tolist(), strict=True))
    assert all(low < high for low, high in pairwise(grown.forest.tree[rows].tolist()))
