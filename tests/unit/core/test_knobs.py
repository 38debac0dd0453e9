"""The knobs: what they accept, what they fill in, and what they say to who got one wrong."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.policies.best_of_n import BestOfN
from ramify.scheduler.policies.knobs import (
    COMMON,
    MEANING,
    POLICIES,
    Choice,
    KnobError,
    Knobs,
    Real,
    Whole,
    defaults_of,
    own_knobs,
)

SIZE = st.integers(1, 70)

# What is given; what the message must name: the knob, its value and the way out.
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown knob": ({"nn": 3}, ["'nn'", "; beam has max_step_tokens", "n, keep, branch"]),
    "unknown knob of another policy": ({"policy": "best_of_n", "xyz": 3}, ["'xyz'", "; best_of_n has "]),
    "misspelt name of the policy": ({"polcy": "beam"}, ["'polcy'", "did you mean policy?"]),
    "misspelt knob": ({"temprature": 1.0}, ["'temprature'", "did you mean temperature?"]),
    "unknown policy": ({"policy": "astar"}, ["'astar'", "the policies are", "beam", "best_of_n"]),
    "misspelt policy": ({"policy": "bean"}, ["'bean'", "did you mean beam?"]),
    "keep without a beam": (
        {"policy": "best_of_n", "keep": 2},
        ["best_of_n has no knob keep", "leave it out, or use policy=beam"],
    ),
    "branch without a beam": ({"policy": "best_of_n", "branch": 2}, ["best_of_n", "branch", "use policy=beam"]),
    "finished without a beam": ({"policy": "best_of_n", "finished": "retire"}, ["finished", "use policy=beam"]),
    "duplicates without a beam": ({"policy": "best_of_n", "duplicates": "keep"}, ["duplicates", "use policy=beam"]),
    "n of 0": ({"n": 0}, ["n is 0", "from 1 to 4096"]),
    "n too large": ({"n": 4097}, ["n is 4097", "from 1 to 4096"]),
    "keep of 0": ({"keep": 0}, ["keep is 0", "from 1 to 4096"]),
    "branch too large": ({"branch": 5000}, ["branch is 5000", "from 1 to 4096"]),
    "no steps": ({"max_steps": 0}, ["max_steps is 0", "from 1 to 4096"]),
    "too many tokens": ({"max_step_tokens": 32_769}, ["max_step_tokens is 32769", "from 1 to 32768"]),
    "cold": ({"temperature": -0.5}, ["temperature is -0.5, but must be from 0 to 100"]),
    "hot": ({"temperature": 101}, ["temperature is 101", "from 0 to 100"]),
    "no temperature": ({"temperature": math.nan}, ["temperature is nan", "from 0 to 100"]),
    "infinitely hot": ({"temperature": math.inf}, ["temperature is inf", "from 0 to 100"]),
    "top_p of 0": ({"top_p": 0.0}, ["top_p is 0,", "above 0 and at most 1"]),
    "top_p above 1": ({"top_p": 1.5}, ["top_p is 1.5", "above 0 and at most 1"]),
    "top_p of nan": ({"top_p": math.nan}, ["top_p is nan", "above 0 and at most 1"]),
    "finished": ({"finished": "stop"}, ["finished is 'stop'", "compete, retire, refill"]),
    "aggregate": ({"aggregate": "sum"}, ["aggregate is 'sum'", "last, min, mean, prod"]),
    "answer": ({"answer": "majority"}, ["answer is 'majority'", "best, vote, weighted_vote"]),
    "duplicates": ({"duplicates": "merge"}, ["duplicates is 'merge'", "drop, keep"]),
    "siblings": ({"siblings": "twins"}, ["siblings is 'twins'", "spread, independent"]),
    "threshold": ({"threshold": 1.5}, ["threshold is 1.5", "to 1"]),
    "half a chain": ({"n": 1.5}, ["n is 1.5", "from 1 to 4096"]),
    "no n": ({"n": math.nan}, ["n is nan", "from 1 to 4096"]),
    "endless n": ({"n": math.inf}, ["n is inf", "from 1 to 4096"]),
    "words for a number": ({"n": "many"}, ["n is 'many'", "must be a number"]),
    "a truth for a number": ({"temperature": True}, ["temperature is True", "must be a number"]),
    "a seed below 0": ({"seed": -1}, ["seed is -1", "from 0 to"]),
    "speculation without need": ({"speculate": 2}, ["speculate", "barrier=level", "set barrier=none as well"]),
    "a beam without levels that carries ended chains along": (
        {"barrier": "none", "finished": "compete"},
        ["finished is compete", "barrier=none", "leave it out"],
    ),
    "no pattern": ({"extract": "pattern"}, ["a pattern must be given"]),
    "a pattern for nothing": ({"pattern": "a+"}, ["a pattern must be given where extract is pattern"]),
    "a pattern that is none": ({"extract": "pattern", "pattern": "(a"}, ["'(a'", "no regular expression"]),
    "all three at odds": ({"n": 12, "keep": 4, "branch": 4}, ["4*4 = 16", "n is 12", "give two of the three"]),
    "keep that does not divide": ({"n": 16, "keep": 5}, ["keep is 5", "must divide n", "16"]),
    "keep above n": ({"n": 4, "keep": 8}, ["keep is 8", "must divide n", "4"]),
    "branch that does not divide": ({"n": 16, "branch": 3}, ["branch is 3", "must divide n", "16"]),
    "branch above the n that holds by default": ({"branch": 32}, ["branch is 32", "16 by default", "give n as well"]),
    "keep at odds with the n that holds by default": ({"keep": 3}, ["keep is 3", "16 by default", "give n as well"]),
    "a product above the bound": ({"keep": 4096, "branch": 2}, ["4096*2 = 8192", "from 1 to 4096"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_knob_value_and_way_out(case: str) -> None:
    given_knobs, parts = WRONG[case]
    with pytest.raises(KnobError) as caught:
        Knobs.fill(given_knobs)
    for part in parts:
        assert part in str(caught.value)


def test_defaults() -> None:
    knobs = Knobs.fill({})
    assert (knobs.policy, knobs.values) == ("beam", defaults_of("beam"))
    assert knobs.build() == Beam(n=16, keep=4, branch=4, max_steps=32)
    assert Knobs.fill({"policy": "best_of_n", "n": 7}).build() == BestOfN(n=7, max_steps=32)
    assert (knobs["siblings"], Knobs.fill({"policy": "best_of_n"})["siblings"]) == ("spread", "independent")


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_its_own_knobs_and_the_common_ones_and_builds(policy: str) -> None:
    knobs = Knobs.fill({"policy": policy})
    assert {*knobs.values} == {*COMMON, *own_knobs(policy)} <= {*MEANING}
    assert type(knobs.build()) is POLICIES[policy]
    assert Knobs.fill({"policy": policy, **knobs.values}) == knobs, "filling twice changes nothing"


def test_every_knob_reaches_the_policy() -> None:
    given_knobs: dict[str, int | str] = {
        "n": 6,
        "keep": 2,
        "max_steps": 9,
        "finished": "refill",
        "aggregate": "min",
        "duplicates": "keep",
    }
    wanted = Beam(6, 2, 3, 9, finished="refill", aggregate="min", duplicates="keep")
    assert Knobs.fill(given_knobs).build() == wanted


@pytest.mark.parametrize(("n", "keep"), [(1, 1), (2, 1), (7, 1), (12, 3), (16, 4), (36, 6), (4096, 64)])
def test_keep_is_by_default_the_largest_divisor_of_n_up_to_its_root(n: int, keep: int) -> None:
    knobs = Knobs.fill({"n": n})
    assert (knobs["keep"], knobs["branch"]) == (keep, n // keep)


@given(keep=st.none() | SIZE, branch=st.none() | SIZE, n=st.none() | st.integers(1, 4096))
def test_keep_times_branch_is_n_or_an_error(n: int | None, keep: int | None, branch: int | None) -> None:
    shape = {name: value for name, value in (("n", n), ("keep", keep), ("branch", branch)) if value is not None}
    total = n or 16
    both_fit = n in (None, (keep or 0) * (branch or 0)) and (keep or 0) * (branch or 0) <= 4096
    if not (both_fit if keep and branch else total % (keep or branch or 1) == 0):
        with pytest.raises(KnobError, match=r"must|make them equal"):
            Knobs.fill(shape)
        return
    knobs = Knobs.fill(shape)
    assert knobs["keep"] * knobs["branch"] == knobs["n"]
    assert all(knobs[name] == value for name, value in shape.items()), "what is given holds"
    filled = {name: knobs[name] for name in ("n", "keep", "branch")}
    assert Knobs.fill(filled) == knobs, "filling twice changes nothing"


@pytest.mark.parametrize("policy", POLICIES)
def test_bounds_are_inclusive(policy: str) -> None:
    for name in defaults_of(policy):
        kind = MEANING[name][0]
        if name in ("keep", "branch"):  # bound to n
            continue
        if isinstance(kind, Choice) and name != "extract":  # of which one wants a pattern
            values: list[Any] = [*kind.words]
        elif isinstance(kind, Whole):
            values = [kind.least, kind.most]
        elif isinstance(kind, Real):
            values = [kind.least + 2**-10 * kind.open, kind.most]
        else:
            continue
        others = {"barrier": "none"} if name in ("speculate", "stop_score") else {}
        for value in values:
            assert Knobs.fill({"policy": policy, **others, name: value})[name] == value


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_out_of_bounds_is_refused(policy: str) -> None:
    for name in defaults_of(policy):
        kind = MEANING[name][0]
        if isinstance(kind, (Whole, Real)):
            least = kind.least if isinstance(kind, Real) and kind.open else kind.least - 1
            for value in (least, kind.most + 1):
                with pytest.raises(KnobError, match=f"^{name} is "):
                    Knobs.fill({"policy": policy, name: value})
