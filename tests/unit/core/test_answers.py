"""Which chain answers, by example; the property tests compare `choose` with its plain reference."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.scheduler import collapse
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.policies.answers import AnswerRule, CutRule, answering, choose
from tests.property.forests import Grown, add_child, i32, planted, settle
from tests.simulation.world import plan


class Chain(NamedTuple):
    """A chain of one step."""

    text: str
    score: float
    finish: Finish = Finish.END
    status: int = Status.OPEN


NONE = Chain("none", math.nan)
CASES: dict[str, tuple[AnswerRule, list[Chain], Chain | None]] = {
    "the best": ("best", [Chain("a", 0.25), Chain("b", 0.75), Chain("c", 0.5)], Chain("b", 0.75)),
    "a chain without a score comes last": ("best", [NONE, Chain("a", 0.0)], Chain("a", 0.0)),
    "and yet it may answer": ("best", [NONE], NONE),
    "nobody": ("best", [], None),
    "one that was cut is no answer": ("best", [Chain("a", 1.0, Finish.STEP), Chain("b", 0.5)], Chain("b", 0.5)),
    "nor one whose context is full": ("best", [Chain("a", 1.0, Finish.CONTEXT)], None),
    "nor one that was given up": ("best", [Chain("a", 1.0, status=Status.PRUNED)], None),
    "nor one that ends at its depth alone": ("best", [Chain("a", 1.0, Finish.STEP_CUT)], None),
    "one that was set aside is": ("best", [Chain("a", 1.0, status=Status.RETIRED), Chain("b", 0.5)], Chain("a", 1.0)),
    "most votes": ("vote", [Chain("a", 1.0), Chain("b", 0.25), Chain("b", 0.5)], Chain("b", 0.5)),
    "most votes, none of them scored": ("vote", [Chain("a", 1.0), NONE, NONE], NONE),
    "equal votes": ("vote", [Chain("a", 0.25), Chain("b", 0.75), Chain("c", 0.5)], Chain("b", 0.75)),
    "most weight": ("weighted_vote", [Chain("a", 0.875), Chain("b", 0.5), Chain("b", 0.75)], Chain("b", 0.75)),
    "much weight on one": ("weighted_vote", [Chain("a", 1.0), Chain("b", 0.25), Chain("b", 0.5)], Chain("a", 1.0)),
    "who says nothing has no vote": ("vote", [Chain(" \n", 1.0), Chain("\n", 0.75), Chain("a", 0.25)], Chain("a", 0.25)),
    "and answers where nobody says anything": ("vote", [Chain(" ", 0.25), Chain("\n", 0.75)], Chain("\n", 0.75)),
    "white space is no difference": ("vote", [Chain("a", 1.0), Chain("b", 0.25), Chain(" b \n", 0.5)], Chain(" b \n", 0.5)),
    "no score weighs nothing": ("weighted_vote", [NONE, NONE, NONE, Chain("a", 0.25)], Chain("a", 0.25)),
}


def chosen(
    grown: Grown, trees: Rows, rule: AnswerRule, cut: CutRule = "discard", max_steps: int = 9
) -> tuple[Rows, NDArray[np.float32]]:
    """What `choose` says once the answers are compared."""
    job = plan(answer=rule, cut=cut, max_steps=max_steps)
    assert len(collapse.compare(grown.forest, job, trees)[1]) == 0
    return choose(grown.forest, answering(grown.forest, trees, cut, max_steps), rule, "last")


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_choose(case: str, backwards: bool) -> None:
    rule, chains, wanted = CASES[case]
    grown = planted(3)  # a tree on either side, which has no say
    for chain in chains[::-1] if backwards else chains:
        node = add_child(grown, grown.trees[1], grown.trees[1].root, chain.text, chain.finish, chain.score)
        node.status = chain.status
        for other in (grown.trees[0], grown.trees[2]):
            add_child(grown, other, other.root, "c", Finish.END, 0.5)
    settle(grown)
    rows, scores = chosen(grown, i32(1), rule)
    found = list(zip(grown.forest.texts(rows), map(str, scores.tolist()), strict=True))
    assert found == ([(wanted.text, str(wanted.score))] if wanted else [])


def test_the_lower_id_wins_a_tie() -> None:
    for rule in ("best", "vote", "weighted_vote"):
        grown = planted(1)
        nodes = [add_child(grown, grown.trees[0], grown.trees[0].root, text, Finish.END, 0.5) for text in "cabd"]
        settle(grown)
        rows, _ = chosen(grown, i32(0), rule)
        assert rows.tolist() == [min(nodes, key=lambda node: node.node_id).row]


CUT = [Finish.END, Finish.CONTEXT, Finish.STEP, Finish.STEP_CUT]


@pytest.mark.parametrize(
    ("cut", "max_steps", "answers"),
    [
        ("discard", 1, [Finish.END]),
        ("discard", 2, [Finish.END]),
        ("answer", 2, [Finish.END, Finish.CONTEXT]),
        ("answer", 1, CUT),  # each of them is at its depth
    ],
)
def test_a_chain_that_was_cut_is_an_answer_only_if_the_job_says_so(cut: CutRule, max_steps: int, answers: list[Finish]) -> None:
    grown = planted(1)
    nodes = [add_child(grown, grown.trees[0], grown.trees[0].root, str(finish), finish, 0.5) for finish in CUT]
    settle(grown)
    found = answering(grown.forest, i32(0), cut, max_steps)
    assert found.tolist() == [node.row for node in nodes if node.finish in answers]
    rows, _ = chosen(grown, i32(0), "best", cut, max_steps)
    assert grown.forest.finish[rows[0]] in answers
