"""The knobs of a search: one vocabulary for every policy, checked in one place.

A policy's own knobs are the fields of its dataclass, which also hold their defaults; the others belong to every policy. What each
of them means is told once, in `MEANING`, from which the documentation's table is made.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast, get_args

from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.policies.ab_mcts import AbMcts
from ramify.scheduler.policies.answers import AnswerRule, CutRule
from ramify.scheduler.policies.base import Policy
from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.policies.best_first import BestFirst
from ramify.scheduler.policies.best_of_n import BestOfN
from ramify.scheduler.policies.dvts import Dvts
from ramify.scheduler.policies.extract import Extract, ExtractRule
from ramify.scheduler.policies.lookahead import Lookahead
from ramify.scheduler.policies.mcts import Mcts
from ramify.scheduler.policies.particle import Particle
from ramify.scheduler.policies.rebase import Rebase
from ramify.scheduler.policies.revise import Revise
from ramify.scheduler.policies.self_consistency import SelfConsistency

Value = int | float | str

POLICIES: dict[str, type[Policy]] = {
    "beam": Beam,
    "best_of_n": BestOfN,
    "dvts": Dvts,
    "lookahead": Lookahead,
    "rebase": Rebase,
    "particle": Particle,
    "self_consistency": SelfConsistency,
    "revise": Revise,
    "mcts": Mcts,
    "ab_mcts": AbMcts,
    "best_first": BestFirst,
}
INDEPENDENT = ("best_of_n", "self_consistency", "particle")
"""Policies that are by definition of independent samples; the others only gain by siblings that differ."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A knob that is a whole number."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Real:
    """A knob that is a number; the ends belong to the range unless `open`."""

    least: float
    most: float
    open: bool = False  # whether `least` itself is out of range


@dataclass(frozen=True, slots=True)
class Choice:
    """A knob that is one of some words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A knob that is any text."""


Kind = Whole | Real | Choice | Text

MEANING: dict[str, tuple[Kind, str]] = {
    "n": (Whole(1, 4096), "live chains per tree"),
    "keep": (Whole(1, 4096), "survivors per level"),
    "branch": (Whole(1, 4096), "children per survivor, or per node that is expanded"),
    "iterations": (Whole(1, 65_536), "nodes that are expanded in one tree, or drafts that are written"),
    "parallel": (Whole(1, 4096), "how many of them at a time"),
    "max_steps": (Whole(1, 4096), "depth at which a chain is cut"),
    "max_step_tokens": (Whole(1, 32_768), "tokens at which a step is cut; the chain goes on"),
    "temperature": (Real(0, 100), "of the sampling; 0 is greedy"),
    "top_p": (Real(0, 1, open=True), "nucleus mass"),
    "barrier": (Choice(("level", "none")), "whether a tree waits for all of a level, or goes on as soon as scores allow"),
    "speculate": (Whole(0, 4096), "chains per level that are continued before they have earned it"),
    "stop_score": (Real(0, 1), "with barrier=none: score of an ended chain from which a tree may end before all has landed"),
    "finished": (Choice(("compete", "retire", "refill")), "what becomes of the place of a chain that has ended"),
    "cut": (Choice(get_args(CutRule)), "whether a chain that was cut by depth or context is an answer"),
    "aggregate": (Choice(get_args(Aggregate)), "step scores to chain score"),
    "answer": (Choice(get_args(AnswerRule)), "ended chains to answer"),
    "extract": (Choice(get_args(ExtractRule)), "where in its text a chain's answer stands"),
    "pattern": (Text(), "regular expression of extract=pattern; its first group is the answer"),
    "compare": (Text(), "how answers are compared: exact, number, math, or a rule of one's own"),
    "tolerance": (Real(0, 1), "of compare=number and math: relative, and absolute near 0"),
    "duplicates": (Choice(("drop", "keep")), "chains of one tree that say the same"),
    "siblings": (Choice(("spread", "independent")), "children of one node: spread over what is likely, or independent"),
    "threshold": (Real(0, 1), "score below which a chain is given up: a share of the best, or itself (revise)"),
    "stop": (Choice(("never", "beta", "margin")), "when sampling stops before n"),
    "confidence": (Real(0.5, 1, open=True), "of stop=beta: how sure the leading answer must be"),
    "margin": (Real(0, 1, open=True), "of stop=margin: by what share of the chains so far the leading answer must lead"),
    "lookahead": (Whole(1, 64), "steps that are rolled out greedily before a chain is judged"),
    "balance": (Real(0, 100, open=True), "temperature of the softmax that turns scores into shares"),
    "exploration": (Real(0, 1000), "weight of what is little visited against what scores well"),
    "resample": (Choice(("systematic", "multinomial")), "how survivors are drawn"),
    "ess": (Real(0, 1), "effective sample size, as a share of n, below which survivors are drawn anew"),
    "belief": (Choice(("gaussian", "beta")), "family of the distribution that scores are thought to come from"),
    "seed": (Whole(0, 2**64 - 1), "same seed, same trees"),
}
COMMON: dict[str, Value] = {
    "max_step_tokens": 256,
    "temperature": 1.0,
    "top_p": 1.0,
    "cut": "discard",
    "aggregate": "last",
    "answer": "best",
    "extract": "last_line",
    "pattern": "",
    "compare": "exact",
    "tolerance": 1e-6,
    "siblings": "spread",
    "seed": 0,
}
"""Knobs of every policy, and their defaults."""


class KnobError(SchedulerError):
    """A knob that is unknown, out of its range or at odds with another: the user's fault; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """All knobs of a search, checked, with every default filled in."""

    policy: str
    values: Mapping[str, Value]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @classmethod
    def fill(cls, given: Mapping[str, Value]) -> "Knobs":
        """Check the knobs that are given and put defaults in the place of the others.

        Raises:
            KnobError: names the knob, what is wrong with it and what would be right.
        """
        given = dict(given)
        policy = str(given.pop("policy", "beam"))
        if policy not in POLICIES:
            raise KnobError(f"unknown policy {policy!r}{nearest(policy, [*POLICIES])}; the policies are {', '.join(POLICIES)}")
        defaults = defaults_of(policy)
        for name in given:
            if name not in MEANING:
                raise KnobError(f"unknown knob {name!r}{nearest(name, ['policy', *MEANING])}; {policy} has {', '.join(defaults)}")
            if name not in defaults:
                others = [f"policy={other}" for other in POLICIES if name in defaults_of(other)]
                raise KnobError(f"{policy} has no knob {name}: leave it out, or use {' or '.join(others)}")
        checked = {name: check(name, value) for name, value in given.items()}
        if {"n", "keep", "branch"} <= defaults.keys():
            checked |= beam_shape(checked)
        values = {**defaults, **checked}
        if policy == "beam":
            values |= check_barrier(values, checked)
        found = cls(policy, values)
        try:
            found.extract()
        except ValueError as error:
            raise KnobError(str(error)) from error
        return found

    def build(self) -> Policy:
        """The policy that the knobs describe."""
        made = POLICIES[self.policy]
        return made(**{name: self.values[name] for name in own_knobs(self.policy)})

    def extract(self) -> Extract:
        """How a chain's answer is found in its text."""
        return Extract(self["extract"], self["pattern"])


def own_knobs(policy: str) -> dict[str, Value]:
    """The knobs that are fields of a policy, with their defaults."""
    return {field.name: cast(Value, field.default) for field in fields(cast(Any, POLICIES[policy])) if field.init}


def defaults_of(policy: str) -> dict[str, Value]:
    """Every knob that a policy has, and its default there."""
    common = {**COMMON, "siblings": "independent" if policy in INDEPENDENT else "spread"}
    if policy == "self_consistency":
        common["answer"] = "vote"
    return {**common, **own_knobs(policy)}


def check(name: str, value: Value) -> Value:
    """The value of a knob, in its type. Raises `KnobError` if it is out of range."""
    kind = MEANING[name][0]
    if isinstance(kind, Choice):
        if value not in kind.words:
            raise KnobError(f"{name} is {value!r}, but must be one of {', '.join(kind.words)}")
        return value
    if isinstance(kind, Text):
        return str(value)
    if isinstance(value, (str, bool)):
        raise KnobError(f"{name} is {value!r}, but must be a number")
    if isinstance(kind, Whole):
        if not (kind.least <= value <= kind.most and value == int(value)):
            raise KnobError(f"{name} is {value}, but must be from {kind.least} to {kind.most}")
        return int(value)
    above = kind.least < value if kind.open else kind.least <= value
    if not (math.isfinite(value) and above and value <= kind.most):
        least = f"above {kind.least:g} and at most" if kind.open else f"from {kind.least:g} to"
        raise KnobError(f"{name} is {value:g}, but must be {least} {kind.most:g}")
    return float(value)


def check_barrier(values: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """What a beam's barrier asks of its other knobs. Raises `KnobError`."""
    if values["barrier"] == "level":
        if values["speculate"]:
            raise KnobError(
                "speculate is given, but with barrier=level there is nothing to speculate on: set barrier=none as well"
            )
        if values["stop_score"] != defaults_of("beam")["stop_score"]:
            raise KnobError("stop_score is given, but with barrier=level a tree never ends early: set barrier=none as well")
        return {}
    if given.get("finished", "retire") != "retire":
        raise KnobError(f"finished is {given['finished']}, but with barrier=none an ended chain can only retire: leave it out")
    return {"finished": "retire"}


def beam_shape(given: Mapping[str, Value]) -> dict[str, int]:
    """`n`, `keep` and `branch` from those of them that are given; `keep * branch` is `n`."""
    n, keep, branch = (int(given[name]) if name in given else None for name in ("n", "keep", "branch"))
    most = cast(Whole, MEANING["n"][0]).most
    if keep and branch:
        if n is not None and keep * branch != n:
            raise KnobError(
                f"keep*branch is {keep}*{branch} = {keep * branch}, but n is {n}: make them equal, or give two of the three"
            )
        if keep * branch > most:
            raise KnobError(f"keep*branch is {keep}*{branch} = {keep * branch}, but n must be from 1 to {most}")
        return {"n": keep * branch, "keep": keep, "branch": branch}
    given_n = n is not None
    n = 16 if n is None else n
    keep = keep or (n // branch if branch else max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0))
    if keep == 0 or n % keep or (branch and keep * branch != n):
        name, value = ("branch", branch) if branch else ("keep", keep)
        hint = "" if given_n else " by default: give n as well"
        raise KnobError(f"{name} is {value}, but must divide n, which is {n}{hint}")
    return {"n": n, "keep": keep, "branch": n // keep}


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint at the name that was probably meant."""
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
