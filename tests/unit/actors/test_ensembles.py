"""Several verifiers in one job: who is asked about what, when chains land, and what their scores come to."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.scheduler.actors import scoring
from ramify.scheduler.actors.ensembles import calibrate, combine, panels
from ramify.scheduler.actors.scoring import Wait
from ramify.scheduler.commands import Score
from ramify.scheduler.events import Event, StepsLost, StepsScored
from ramify.scheduler.plan import Verifier
from ramify.verifier.chains import ChainError
from ramify.verifier.columns import ChainFault
from ramify.verifier.errors import InvalidRequestError
from tests.simulation.world import plan
from tests.unit.actors.test_scoring import AWAY, Desk, columns

ALL, WAY, END = Verifier("all", 3.0), Verifier("way", when="way"), Verifier("end", when="end")
LIVE, DONE = ("p", "s"), ("q", "s", "t")  # two chains: one of them goes on
F32 = NDArray[np.float32]


def ask(verifiers: Sequence[Verifier], *, ended: Sequence[bool] = (False, True), policy: str = "beam", tree: int = 0) -> Score:
    """`LIVE` and `DONE` are to be scored, or others that have so many steps."""
    chains = columns(tree, [DONE if each else LIVE for each in ended])
    knobs = {"n": 4} | ({"keep": 2} if policy == "beam" else {})
    return Score(plan("a", policy=policy, verifiers=tuple(verifiers), **knobs), replace(chains, ended=np.array(ended)))


@pytest.fixture
async def desk() -> Desk:
    return Desk()


def asked(desk: Desk) -> list[tuple[str, list[str], bool]]:
    """Of each call the model, the chains' problems, and whether the last scores alone are wanted."""
    return sorted((call.model, [chain.problem for chain in call.chains], call.last_only) for call in desk.calls)


def call_of(desk: Desk, model: str, problem: str = "") -> int:
    """The last call of a model, and about a problem."""
    found = [
        at for at, call in enumerate(desk.calls) if call.model == model and problem in [*(c.problem for c in call.chains), ""]
    ]
    return found[-1]


def scored(event: Event) -> dict[int, list[float]]:
    """The scores of each tree's chain."""
    assert isinstance(event, StepsScored)
    ends = np.cumsum(event.length)
    return {
        tree: event.scores[end - size : end].tolist()
        for tree, end, size in zip(event.tree_id.tolist(), ends, event.length, strict=True)
    }


async def test_each_chain_goes_to_the_models_that_judge_it(desk: Desk) -> None:
    await desk.pump(ask([ALL, WAY, END]))
    assert asked(desk) == [("all", ["p", "q"], False), ("end", ["q"], True), ("way", ["p"], False)]
    await desk.answer([0.5, 0.5, 0.25], call=call_of(desk, "all"))
    assert desk.posted == []
    await desk.answer([1.0], call=call_of(desk, "way"))
    assert scored(desk.posted.pop()) == {0: [(3 * 0.5 + 1.0) / 4]}
    await desk.answer([1.0], call=call_of(desk, "end"))
    earlier, last = scored(desk.posted.pop())[1]
    assert math.isnan(earlier), "it has its score since the chain went on from it"
    assert last == (3 * 0.25 + 1.0) / 4


async def test_where_steps_are_scored_at_the_end_all_are_asked_then(desk: Desk) -> None:
    await desk.pump(ask([ALL, WAY, END], ended=[True], policy="best_of_n"))
    assert asked(desk) == [("all", ["q"], False), ("end", ["q"], True), ("way", ["q"], False)]
    await desk.answer([0.5], call=call_of(desk, "end"))
    await desk.answer([1.0, 0.0], call=call_of(desk, "way"))
    await desk.answer([0.0, 1.0], call=call_of(desk, "all"))
    assert scored(desk.posted.pop()) == {0: [0.25, (3 * 1.0 + 0.5) / 4]}


async def test_asks_for_last_scores_go_together(desk: Desk) -> None:
    await desk.pump(*(ask([END], ended=[True, True], policy="best_of_n", tree=tree) for tree in (0, 5)))
    assert asked(desk) == [("end", ["q"] * 4, True)]
    await desk.answer([0.125, 0.25, 0.5, 0.75])
    assert [[steps[-1] for steps in scored(event).values()] for event in desk.posted] == [[0.125, 0.25], [0.5, 0.75]]


@pytest.mark.parametrize(
    ("verifiers", "expected"),
    [
        ([WAY], []),
        ([ALL], []),
        ([Verifier("a", 7.0)], []),
        ([WAY, Verifier("b", when="way")], [(["b", "way"], 2)]),
        ([ALL, Verifier("b")], [(["all", "b"], 2)]),
        ([Verifier("a", temperature=2.0)], [(["a"], 2)]),
        ([END], [(["end"], 2)]),
        ([WAY, END], [(["way"], 1), (["end"], 1)]),
        ([WAY, ALL], [(["all", "way"], 1), (["all"], 1)]),
    ],
)
def test_who_judges(verifiers: list[Verifier], expected: list[tuple[list[str], int]]) -> None:
    found = panels(ask(verifiers))
    assert [(sorted(each.model for each in panel.verifiers), len(panel.chains.length)) for panel in found] == expected


def test_chains_that_all_go_on_or_have_all_ended_are_not_divided() -> None:
    for ended, judges in ((False, {"way", "all"}), (True, {"all", "end"})):
        command = ask([ALL, WAY, END], ended=[ended, ended])
        (panel,) = panels(command)
        assert panel.chains is command.chains
        assert {each.model for each in panel.verifiers} == judges


async def test_the_order_of_the_answers_changes_nothing() -> None:
    found = []
    for order in itertools.permutations(["all", "way", "end"]):
        desk = Desk()
        await desk.pump(ask([ALL, WAY._replace(temperature=1.7), END], ended=[True, True], policy="best_of_n"))
        answers = {"all": [0.1, 0.7, 0.3, 0.9], "way": [0.9, 0.2, 0.6, 0.4], "end": [0.35, 0.85]}
        for model in order:
            assert desk.posted == []
            await desk.answer(answers[model], call=call_of(desk, model))
        found.append(scored(desk.posted.pop()))
    assert all(each == found[0] for each in found)


async def test_a_model_that_is_away_holds_its_chains_alone_and_the_others_are_not_asked_again(desk: Desk) -> None:
    await desk.pump(ask([ALL, WAY, END]))
    await desk.fail(AWAY, call=call_of(desk, "end"))
    await desk.answer([0.5, 0.5, 0.25], call=call_of(desk, "all"))
    await desk.answer([0.5], call=call_of(desk, "way"))
    assert scored(desk.posted.pop()) == {0: [0.5]}
    assert desk.scoring.waits == {"a": Wait("end: it is away", 1, 100.0)}
    assert desk.scoring.busy
    desk.now_s += 1.0
    await desk.pump()
    assert [call.model for call in desk.calls].count("all") == 1
    await desk.answer([0.75])
    assert scored(desk.posted.pop())[1][-1] == (3 * 0.25 + 0.75) / 4
    assert not desk.scoring.busy
    assert desk.scoring.waits == {}


async def test_of_chains_that_wait_for_two_models_both_are_told_and_each_chain_once(desk: Desk) -> None:
    await desk.pump(ask([ALL, WAY], ended=[False, False]), ask([ALL, WAY], ended=[False], tree=5))
    for model in ("all", "way"):
        await desk.fail(AWAY, call=call_of(desk, model))
    wait = desk.scoring.waits["a"]
    assert wait.chains == 3
    assert sorted(wait.reason.split("; ")) == ["all: it is away", "way: it is away"]


async def test_a_fault_of_one_model_is_the_chains_fault_and_names_the_model(desk: Desk) -> None:
    await desk.pump(ask([ALL, WAY, END], ended=[True, True], policy="best_of_n"))
    fault = ChainFault(1, ChainError.TOO_LONG, "too long")
    await desk.answer([0.5, 0.5, np.nan, np.nan], fault, call=call_of(desk, "way"))
    await desk.answer([0.5] * 4, call=call_of(desk, "all"))
    await desk.answer([0.5] * 2, call=call_of(desk, "end"))
    (event,) = desk.posted
    assert isinstance(event, StepsScored)
    assert event.message == "not scored by way: too long"
    assert np.isnan(event.scores).tolist() == [False, False, True, True], "though nobody asks it about the last step"


async def test_what_one_model_refuses_is_lost_once_and_no_other_is_asked_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BATCH_MAX", 1)
    monkeypatch.setattr(scoring, "CALLS_MAX", 1)
    verifiers = [ALL, Verifier("other"), Verifier("third")]
    await desk.pump(*(ask(verifiers, ended=[False], tree=tree) for tree in (0, 1)))
    for model in ("all", "other"):
        await desk.fail(InvalidRequestError("what is that"), call=call_of(desk, model))
    (lost,) = desk.posted
    assert isinstance(lost, StepsLost)
    assert (lost.tree_id.tolist(), lost.message) == ([0], "not scored by all: what is that")
    await desk.answer([0.5], call=call_of(desk, "third"))
    await desk.pump()
    for model in ("all", "other", "third"):
        await desk.answer([0.25], call=call_of(desk, model))
    assert scored(desk.posted.pop()) == {1: [0.25]}
    assert len(desk.posted) == 1
    assert not desk.scoring.busy
    assert len(desk.calls) == 6


async def test_who_waits_for_one_model_for_too_long_is_lost_to_all(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CALLS_MAX", 1)
    await desk.pump(ask([ALL], ended=[False], tree=9))
    await desk.pump(ask([WAY, Verifier("all", 2.0)], ended=[False]))
    await desk.fail(AWAY, call=call_of(desk, "way"))
    desk.now_s += scoring.ABSENCE_S_MAX + 1.0
    await desk.pump()
    await desk.fail(AWAY, call=call_of(desk, "way"))
    (lost,) = desk.posted
    assert isinstance(lost, StepsLost)
    assert lost.message == "not scored by way: it is away"
    await desk.answer([0.5], call=call_of(desk, "all"))
    await desk.pump()
    assert [call.model for call in desk.calls] == ["all", "way", "way"]
    assert not desk.scoring.busy


async def test_a_slow_model_does_not_hold_up_the_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_MAX", 1)
    for tree in range(4):
        await desk.pump(ask([ALL, Verifier("slow")], ended=[False], tree=tree))
        await desk.answer([0.5], call=call_of(desk, "all"))
    assert [call.model for call in desk.calls].count("slow") == scoring.CALLS_MAX


async def test_a_single_model_is_calibrated(desk: Desk) -> None:
    await desk.pump(ask([Verifier("one", temperature=2.0)]))
    await desk.answer([0.9, 0.5, 0.2])
    expected = [1 / (1 + math.exp(-math.log(p / (1 - p)) / 2)) for p in (0.9, 0.5, 0.2)]
    found = [score for scores in scored(desk.posted.pop()).values() for score in scores]
    assert found == pytest.approx(expected, abs=1e-7)


# --- what scores come to -----------------------------------------------------------------------------------------------

probabilities = st.floats(0, 1, width=32)
weights = st.floats(1e-3, 1e6)
temperatures = st.floats(0.01, 100)


@st.composite
def judged(draw: st.DrawFn, temperature: st.SearchStrategy[float] = temperatures) -> tuple[list[F32], list[Verifier]]:
    """Scores of some steps by each of some models."""
    steps = draw(st.integers(1, 6))
    verifiers = [Verifier(f"model {at}", draw(weights), draw(temperature)) for at in range(draw(st.integers(1, 8)))]
    return [np.array(draw(st.lists(probabilities, min_size=steps, max_size=steps)), np.float32) for _ in verifiers], verifiers


@given(judged(), st.randoms())
def test_the_order_of_the_models_does_not_matter(case: tuple[list[F32], list[Verifier]], chance: Random) -> None:
    scores, verifiers = case
    pairs = list(zip(scores, verifiers, strict=True))
    chance.shuffle(pairs)
    shuffled = combine([mine for mine, _ in pairs], [verifier for _, verifier in pairs])
    assert shuffled.tobytes() == combine(scores, verifiers).tobytes()


def test_not_even_the_last_bit_depends_on_the_order() -> None:
    """Added up from the smallest on, these are more than half way between two float32; from the largest on, they are not."""
    scores = [np.array([score], np.float32) for score in (1.0, 2.0**-24, 2.0**-53, 2.0**-53)]
    verifiers = [Verifier(name) for name in "abcd"]
    assert combine(scores, verifiers) == combine(scores[::-1], verifiers[::-1])
    assert combine(scores, verifiers) != combine(scores, verifiers[::-1])


@given(judged(st.just(1.0)))
def test_a_mean_is_between_what_it_is_the_mean_of(case: tuple[list[F32], list[Verifier]]) -> None:
    scores, verifiers = case
    found = combine(scores, verifiers)
    assert found.dtype == np.float32
    assert (np.min(scores, axis=0) <= found).all()
    assert (found <= np.max(scores, axis=0)).all()


@given(judged())
def test_a_score_stays_a_probability(case: tuple[list[F32], list[Verifier]]) -> None:
    found = combine(*case)
    assert ((found >= 0) & (found <= 1)).all()


@given(st.lists(probabilities, min_size=1), weights)
def test_the_scores_of_one_model_stay_what_they_are(scores: list[float], weight: float) -> None:
    given_scores = np.array([*scores, np.nan], np.float32)
    assert combine([given_scores], [Verifier("one", weight)]).tobytes() == given_scores.tobytes()


@given(st.lists(probabilities, min_size=1), temperatures)
def test_a_temperature_keeps_order_and_side(scores: list[float], temperature: float) -> None:
    plain = np.sort(np.array(scores, np.float32))
    found = calibrate(plain, temperature)
    assert (np.diff(found) >= -1e-15).all()
    assert np.array_equal(found > 0.5, plain > 0.5)
    assert np.array_equal(calibrate(np.array([0.0, 0.5, 1.0], np.float32), temperature), [0.0, 0.5, 1.0])


@given(st.floats(2**-20, 1 - 2**-20, width=32), st.floats(0.1, 100))
def test_a_temperature_divides_the_log_odds(score: float, temperature: float) -> None:
    log_odds = (math.log(score) - math.log1p(-score)) / temperature
    expected = 1 / (1 + math.exp(-log_odds))
    assert calibrate(np.array([score], np.float32), temperature)[0] == pytest.approx(expected, rel=1e-9)
