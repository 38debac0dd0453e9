"""A spec on its way from the message to the core."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.plan import UNBOUNDED
from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.policies.best_of_n import BestOfN
from ramify.scheduler.policies.knobs import POLICIES, KnobError, Knobs
from ramify.scheduler.spec import DELIMITER_MAX, ENUMS, NUMBERS, fill_search, knobs_of, plan_of
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
    beam = policy != "best_of_n"
    shape = draw(st.sampled_from(SHAPES if beam else SHAPES[:2]))
    given_numbers: dict[str, Any] = {
        **shape,
        "max_steps": draw(st.none() | st.integers(1, 4096)),
        "max_step_tokens": None if search.step.WhichOneof("boundary") == "tokens" else draw(st.none() | st.integers(1, 32_768)),
        "temperature": draw(st.none() | st.floats(0, 100, width=32)),
        "top_p": draw(st.none() | st.floats(2**-10, 1, width=32)),
        "seed": draw(st.none() | st.integers(0, 2**64 - 1)),
    }
    for name, value in given_numbers.items():
        if value is not None:
            setattr(search, name, value)
    for name, (enum, _) in ENUMS.items():
        if beam or name in ("aggregate", "answer"):
            setattr(search, name, draw(st.sampled_from(enum.values())))
    return search


@settings(deadline=None)
@given(searches())
def test_a_filled_search_says_the_same_and_filling_it_again_changes_nothing(search: job_pb2.Search) -> None:
    filled = fill_search(search, "\n")
    assert knobs_of(filled) == knobs_of(search) or search.step.WhichOneof("boundary") == "tokens"
    assert knobs_of(filled).build() == knobs_of(search).build()
    assert fill_search(filled, "another delimiter") == filled
    assert filled.step.WhichOneof("boundary"), "no default is left out"
    names = [name for name in NUMBERS if knobs_of(search).policy == "beam" or name not in ("keep", "branch", "threshold")]
    assert all(filled.HasField(name) for name in names)  # type: ignore[arg-type]
    for field, value in search.ListFields():
        if field.name != "step" or value.WhichOneof("boundary"):
            assert getattr(filled, field.name) == value, "what is given holds"


def test_defaults() -> None:
    assert knobs_of(job_pb2.Search()) == Knobs()
    filled = fill_search(job_pb2.Search(), "\n")
    assert (filled.policy, filled.n, filled.keep, filled.branch, filled.step.delimiter) == ("beam", 16, 4, 4, "\n")
    assert filled.finished == job_pb2.FINISHED_RULE_COMPETE
    lean = fill_search(job_pb2.Search(policy="best_of_n"), "\n")
    assert not lean.HasField("keep")
    assert lean.finished == job_pb2.FINISHED_RULE_UNSPECIFIED, "a policy is given no knob that it does not have"


def test_a_boundary_in_tokens_is_the_bound_of_a_step() -> None:
    assert knobs_of(job_pb2.Search(step=tokens(9))).max_step_tokens == 9
    assert knobs_of(job_pb2.Search(step=tokens(9), max_step_tokens=9)).max_step_tokens == 9


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
    assert (plan.generator, plan.verifier, plan.checker) == ("g", "v", "c")
    assert (plan.aggregate, plan.answer) == ("min", "vote")
    assert (plan.tokens_per_tree_max, plan.deadline_ms) == (UNBOUNDED, UNBOUNDED)
    assert plan_of("job", spec(job_pb2.Search(policy="best_of_n", n=3)), 10, 0).policy == BestOfN(3, 32)


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
    assert plan_of("job", spec(job_pb2.Search(), **budget), problems, 0).tokens_per_tree_max == each


def test_seconds_count_from_the_start() -> None:
    assert plan_of("job", spec(job_pb2.Search(), seconds_max=7), 1, 5000).deadline_ms == 12_000
