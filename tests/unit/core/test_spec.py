"""A spec on its way from the message to the core."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.plan import UNBOUNDED, Generator, Verifier
from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.policies.best_of_n import BestOfN
from ramify.scheduler.policies.knobs import MEANING, POLICIES, Choice, KnobError, Knobs, Real, Whole, defaults_of
from ramify.scheduler.spec import DELIMITER_MAX, ENUMS, TEXTS, fill_search, knobs_of, plan_of
from ramify.v1 import job_pb2


def tokens(count: int) -> job_pb2.StepBoundary:
    return job_pb2.StepBoundary(tokens=count)


SHAPES: list[dict[str, int]] = [
    {},
    {"n": 12},
    {"n": 12, "keep": 2},
    {"n": 12, "branch": 2},
    {"keep": 3, "branch": 5},
    {"keep": 8},
]
BOUNDARIES = [None, job_pb2.StepBoundary(delimiter="\n\n"), tokens(9), job_pb2.StepBoundary(answer=True)]


@st.composite
def searches(draw: st.DrawFn) -> job_pb2.Search:
    """Any legal search, with any of its fields left out."""
    policy = draw(st.sampled_from(["", *POLICIES]))
    search = job_pb2.Search(policy=policy, step=draw(st.sampled_from(BOUNDARIES)))
    names = defaults_of(policy or "beam")
    shaped = {"n", "keep", "branch"} <= names.keys()
    given_numbers: dict[str, Any] = dict(draw(st.sampled_from(SHAPES))) if shaped else {}
    for name in names:
        kind = MEANING[name][0]
        if isinstance(kind, Whole) and not (shaped and name in ("n", "keep", "branch")):
            given_numbers[name] = draw(st.none() | st.integers(kind.least, kind.most))
        elif isinstance(kind, Real):
            given_numbers[name] = draw(st.none() | st.floats(kind.least + 2**-10 * kind.open, kind.most, width=32))
    if search.step.WhichOneof("boundary") == "tokens":
        del given_numbers["max_step_tokens"]
    for name, value in given_numbers.items():
        if value is not None:
            setattr(search, name, value)
    for name, (enum, _) in ENUMS.items():
        if name in names:
            setattr(search, name, draw(st.sampled_from(enum.values())))
    if search.barrier != job_pb2.BARRIER_RULE_NONE:
        search.ClearField("speculate")
        search.ClearField("stop_score")
    elif "finished" in names:
        search.finished = draw(st.sampled_from([job_pb2.FINISHED_RULE_UNSPECIFIED, job_pb2.FINISHED_RULE_RETIRE]))
    if search.extract == job_pb2.EXTRACT_RULE_PATTERN:
        search.pattern = draw(st.sampled_from(["a(b)", "[0-9]+"]))
    search.compare = draw(st.sampled_from(["", "exact", "number", "math"]))
    return search


def same(value: int | float | str) -> object:
    """A number as a message holds it."""
    return np.float32(value) if isinstance(value, float) else value


@settings(deadline=None)
@given(searches())
def test_a_filled_search_says_the_same_and_filling_it_again_changes_nothing(search: job_pb2.Search) -> None:
    filled = fill_search(search, "\n")
    again, before = knobs_of(filled), knobs_of(search)
    assert again.policy == before.policy
    assert {name: same(value) for name, value in again.values.items()} == {
        name: same(value) for name, value in before.values.items()
    }
    assert type(again.build()) is type(before.build())
    assert fill_search(filled, "another delimiter") == filled
    assert filled.step.WhichOneof("boundary"), "no default is left out"
    for name in defaults_of(filled.policy):
        if name in ENUMS or name == "compare":
            assert getattr(filled, name), name
        elif name not in TEXTS:
            assert filled.HasField(name), name  # type: ignore[arg-type]
    for field, value in search.ListFields():
        if field.name != "step" or value.WhichOneof("boundary"):
            assert getattr(filled, field.name) == value, "what is given holds"


def test_defaults() -> None:
    assert knobs_of(job_pb2.Search()) == Knobs.fill({})
    filled = fill_search(job_pb2.Search(), "\n")
    assert (filled.policy, filled.n, filled.keep, filled.branch, filled.step.delimiter) == ("beam", 16, 4, 4, "\n")
    assert filled.finished == job_pb2.FINISHED_RULE_COMPETE
    lean = fill_search(job_pb2.Search(policy="best_of_n"), "\n")
    assert not lean.HasField("keep")
    assert (filled.compare, filled.extract, filled.cut) == ("exact", job_pb2.EXTRACT_RULE_LAST_LINE, job_pb2.CUT_RULE_DISCARD)
    assert lean.finished == job_pb2.FINISHED_RULE_UNSPECIFIED, "a policy is given no knob that it does not have"


def test_a_boundary_in_tokens_is_the_bound_of_a_step() -> None:
    assert knobs_of(job_pb2.Search(step=tokens(9)))["max_step_tokens"] == 9
    assert knobs_of(job_pb2.Search(step=tokens(9), max_step_tokens=9))["max_step_tokens"] == 9


def test_every_knob_has_a_field_and_every_word_a_value() -> None:
    """A knob that no message can carry can't be given, and a field that is no knob would be ignored."""
    fields = {field.name for field in job_pb2.Search.DESCRIPTOR.fields}
    assert fields == {*MEANING, "policy", "step"}
    for name, (kind, _) in MEANING.items():
        assert (name in ENUMS) == isinstance(kind, Choice), name
        if isinstance(kind, Choice):
            enum, prefix = ENUMS[name]
            words = {word.removeprefix(prefix).lower() for word in enum.keys()} - {"unspecified"}  # noqa: SIM118  # no mapping
            assert words == {*kind.words}, name


WRONG: dict[str, tuple[job_pb2.Search, list[str]]] = {
    "tokens twice": (job_pb2.Search(step=tokens(9), max_step_tokens=8), ["max_step_tokens", "give one of them"]),
    "no tokens": (job_pb2.Search(step=tokens(0)), ["max_step_tokens is 0", "from 1 to 32768"]),
    "answer of false": (job_pb2.Search(step=job_pb2.StepBoundary(answer=False)), ["step.answer", "must be true"]),
    "empty delimiter": (job_pb2.Search(step=job_pb2.StepBoundary(delimiter="")), ["step.delimiter", "1 to 64 characters"]),
    "long delimiter": (
        job_pb2.Search(step=job_pb2.StepBoundary(delimiter="x" * (DELIMITER_MAX + 1))),
        ["step.delimiter", "1 to 64 characters"],
    ),
    "n": (job_pb2.Search(n=0), ["n is 0", "from 1 to 4096"]),
    "policy": (job_pb2.Search(policy="bem"), ["'bem'", "did you mean beam?"]),
    "knob of another policy": (job_pb2.Search(policy="best_of_n", keep=2), ["best_of_n", "keep", "use policy=beam"]),
    "rule of another policy": (
        job_pb2.Search(policy="best_of_n", duplicates=job_pb2.DUPLICATE_RULE_DROP),
        ["best_of_n", "duplicates", "use policy=beam"],
    ),
    "a rule of the future": (job_pb2.Search(answer=77), ["answer is 77", "this version doesn't know"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_knob_value_and_way_out(case: str) -> None:
    search, parts = WRONG[case]
    for call in (lambda: knobs_of(search), lambda: fill_search(search, "\n")):
        with pytest.raises(KnobError) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)


def spec(search: job_pb2.Search, **budget: int) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        generator="g", verifier="v", checker="c", search=fill_search(search, "\n"), budget=job_pb2.Budget(**budget)
    )


def test_a_plan_has_all_of_its_spec() -> None:
    search = job_pb2.Search(n=6, keep=2, max_steps=5, temperature=0.5, top_p=0.25, aggregate=job_pb2.AGGREGATE_MIN)
    search.answer = job_pb2.ANSWER_RULE_VOTE
    plan = plan_of("job", spec(search), 10, 5000)
    assert plan.job_id == "job"
    assert plan.policy == Beam(6, 2, 3, 5, aggregate="min")
    assert plan.params == StepParams(0.5, 0.25, 256, "\n")
    assert (plan.cut, plan.compare, plan.tolerance, plan.spread_siblings) == ("discard", "exact", 1e-6, True)
    assert (plan.generators, plan.verifiers, plan.checker) == ((Generator("g"),), (Verifier("v"),), "c")
    assert (plan.aggregate, plan.answer) == ("min", "vote")
    assert (plan.tokens_per_tree_max, plan.steps_per_tree_max, plan.deadline_ms) == (UNBOUNDED, UNBOUNDED, UNBOUNDED)
    assert not plan.bounded
    assert plan_of("job", spec(job_pb2.Search(policy="best_of_n", n=3)), 10, 0).policy == BestOfN(3, 32)


def test_a_plan_has_its_verifiers() -> None:
    asked = spec(job_pb2.Search())
    asked.verifier = ""
    for name, when in (("a", job_pb2.WHEN_RULE_ALWAYS), ("b", job_pb2.WHEN_RULE_WAY), ("c", job_pb2.WHEN_RULE_END)):
        asked.verifiers.add(model=name, weight=2.5, temperature=0.5, when=when)
    found = plan_of("job", asked, 1, 0).verifiers
    assert found == (Verifier("a", 2.5, 0.5), Verifier("b", 2.5, 0.5, "way"), Verifier("c", 2.5, 0.5, "end"))


def test_a_plan_has_the_rules_by_which_answers_are_compared() -> None:
    search = job_pb2.Search(policy="best_of_n", compare="math", tolerance=0.25, cut=job_pb2.CUT_RULE_ANSWER)
    search.extract, search.pattern = job_pb2.EXTRACT_RULE_PATTERN, "= ([0-9]+)"
    plan = plan_of("job", spec(search), 10, 5000)
    assert (plan.cut, plan.compare, plan.tolerance) == ("answer", "math", 0.25)
    assert plan.extract("so 2 + 2 = 4") == "4"
    assert not plan.spread_siblings


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [(None, ""), (job_pb2.Prompt(thoughts_end=""), ""), (job_pb2.Prompt(thoughts_end="[/THINK]"), "[/THINK]")],
)
def test_a_plan_knows_what_ends_thoughts(prompt: job_pb2.Prompt | None, wanted: str) -> None:
    asked = spec(job_pb2.Search())
    if prompt is not None:
        asked.prompt.CopyFrom(prompt)
    assert plan_of("job", asked, 1, 0).extract.thoughts_end == wanted


def test_without_a_delimiter_steps_end_at_their_tokens() -> None:
    assert plan_of("job", spec(job_pb2.Search(step=tokens(9))), 1, 0).params == StepParams(1.0, 1.0, 9, None)
    whole = job_pb2.Search(step=job_pb2.StepBoundary(answer=True))
    assert plan_of("job", spec(whole), 1, 0).params.delimiter is None


@pytest.mark.parametrize(
    ("budget", "problems", "each"),
    [
        ({"tokens_max": 1000}, 3, 333),
        ({"tokens_max": 1000}, 0, 1000),
        ({"tokens_max": 2}, 3, 0),
        ({"tokens_per_problem_max": 50}, 3, 50),
        ({"tokens_max": 1000, "tokens_per_problem_max": 50}, 3, 50),
        ({"tokens_max": 90, "tokens_per_problem_max": 50}, 3, 30),
    ],
)
def test_a_budget_is_shared_out_evenly_and_the_tighter_one_holds(budget: dict[str, int], problems: int, each: int) -> None:
    plan = plan_of("job", spec(job_pb2.Search(), **budget), problems, 0)
    assert (plan.tokens_per_tree_max, plan.steps_per_tree_max, plan.bounded) == (each, UNBOUNDED, True)
    in_steps = {name.replace("tokens", "steps"): value for name, value in budget.items()}
    plan = plan_of("job", spec(job_pb2.Search(), **in_steps), problems, 0)
    assert (plan.tokens_per_tree_max, plan.steps_per_tree_max, plan.bounded) == (UNBOUNDED, each, True)


def test_seconds_count_from_the_start() -> None:
    assert plan_of("job", spec(job_pb2.Search(), seconds_max=7), 1, 5000).deadline_ms == 12_000
