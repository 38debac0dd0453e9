"""The knobs of a search: one vocabulary for every policy, checked in one place.

| knob | meaning | default | policies |
| --- | --- | --- | --- |
| `n` | live chains per tree | 16 | all |
| `keep` | survivors per level | `n / branch`, else the largest divisor of `n` not above its root | beam |
| `branch` | children per survivor | `n / keep` | beam |
| `max_steps` | depth at which a chain is cut | 32 | all |
| `max_step_tokens` | tokens at which a step is cut | 256 | all |
| `temperature` | 0 is greedy | 1 | all |
| `top_p` | nucleus mass | 1 | all |
| `finished` | place of an ended chain: compete, retire, refill | compete | beam |
| `aggregate` | step scores to chain score: last, min, mean, prod | last | all |
| `answer` | ended chains to answer: best, vote, weighted_vote | best | all |
| `duplicates` | chains that say the same: drop, keep | drop | beam |
| `siblings` | children of one node: spread over what is likely, or independent | beam: spread, else independent | all |
| `threshold` | share of the best score below which a chain is given up | 0 (none is) | beam |
| `seed` | same seed, same trees | 0 | all |
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.policies.answers import AnswerRule
from ramify.scheduler.policies.base import Policy
from ramify.scheduler.policies.beam import Beam
from ramify.scheduler.policies.best_of_n import BestOfN

Finished = Literal["compete", "retire", "refill"]
Duplicates = Literal["drop", "keep"]
Siblings = Literal["spread", "independent"]

POLICIES = ("beam", "best_of_n")
BEAM_ONLY = ("keep", "branch", "finished", "duplicates", "threshold")
BOUNDS = {"n": 4096, "keep": 4096, "branch": 4096, "max_steps": 4096, "max_step_tokens": 32_768}


class KnobError(SchedulerError):
    """A knob that is unknown, out of its range or at odds with another: the user's fault; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """All knobs of a search, checked. See the module for what they mean."""

    policy: str = "beam"
    n: int = 16
    keep: int = 4
    branch: int = 4
    max_steps: int = 32
    max_step_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    finished: Finished = "compete"
    aggregate: Aggregate = "last"
    answer: AnswerRule = "best"
    duplicates: Duplicates = "drop"
    siblings: Siblings = "spread"
    threshold: float = 0.0
    seed: int = 0

    @classmethod
    def fill(cls, given: Mapping[str, int | float | str]) -> "Knobs":
        """Check the knobs that are given and put defaults in the place of the others.

        Raises:
            KnobError: names the knob, what is wrong with it and what would be right.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise KnobError(f"unknown knob {name!r}{nearest(name, known)}; the knobs are {', '.join(known)}")
        policy = given.get("policy", "beam")
        if policy not in POLICIES:
            raise KnobError(f"unknown policy {policy!r}{nearest(str(policy), POLICIES)}; the policies are {', '.join(POLICIES)}")
        for name in BEAM_ONLY:
            if policy != "beam" and name in given:
                raise KnobError(f"{policy} has no knob {name}: leave it out, or use policy=beam")
        for name, most in BOUNDS.items():
            if name in given and not 1 <= int(given[name]) <= most:
                raise KnobError(f"{name} is {given[name]}, but must be from 1 to {most}")
        check_numbers(given)
        for name, values in (
            ("finished", Finished),
            ("aggregate", Aggregate),
            ("answer", AnswerRule),
            ("duplicates", Duplicates),
            ("siblings", Siblings),
        ):
            if name in given and given[name] not in get_args(values):
                raise KnobError(f"{name} is {given[name]!r}, but must be one of {', '.join(get_args(values))}")
        # Best-of-n is by definition of independent samples; a beam only gains by siblings that differ.
        siblings = "spread" if policy == "beam" else "independent"
        return cls(**{"siblings": siblings, **given, **beam_shape(given)})  # type: ignore[arg-type]  # each was checked above

    def build(self) -> Policy:
        """The policy that the knobs describe."""
        if self.policy == "best_of_n":
            return BestOfN(self.n, self.max_steps)
        drop = self.duplicates == "drop"
        return Beam(self.n, self.keep, self.branch, self.max_steps, self.finished, self.aggregate, drop, self.threshold)


def check_numbers(given: Mapping[str, int | float | str]) -> None:
    """The knobs that are no whole numbers must be in their ranges. Raises `KnobError`."""
    temperature, top_p = float(given.get("temperature", 1.0)), float(given.get("top_p", 1.0))
    if not (math.isfinite(temperature) and 0 <= temperature <= 100):
        raise KnobError(f"temperature is {temperature}, but must be from 0 (greedy) to 100")
    if not 0 < top_p <= 1:
        raise KnobError(f"top_p is {top_p}, but must be above 0 and at most 1")
    if not 0 <= float(given.get("threshold", 0.0)) <= 1:
        raise KnobError(f"threshold is {given['threshold']}, but must be from 0 (no chain is given up by it) to 1")


def beam_shape(given: Mapping[str, int | float | str]) -> dict[str, int]:
    """`n`, `keep` and `branch` from those of them that are given; `keep * branch` is `n`."""
    n, keep, branch = (int(given[name]) if name in given else None for name in ("n", "keep", "branch"))
    if keep and branch:
        if n is not None and keep * branch != n:
            raise KnobError(
                f"keep*branch is {keep}*{branch} = {keep * branch}, but n is {n}: make them equal, or give two of the three"
            )
        if keep * branch > BOUNDS["n"]:
            raise KnobError(f"keep*branch is {keep}*{branch} = {keep * branch}, but n must be from 1 to {BOUNDS['n']}")
        return {"n": keep * branch, "keep": keep, "branch": branch}
    given_n = n is not None
    n = 16 if n is None else n
    keep = keep or (n // branch if branch else max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0))
    if keep == 0 or n % keep or (branch and keep * branch != n):
        name, value = ("branch", branch) if branch else ("keep", keep)
        hint = "" if given_n else " by default: give n as well"
        raise KnobError(f"{name} is {value}, but must divide n, which is {n}{hint}")
    return {"n": n, "keep": keep, "branch": n // keep}


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """A hint at the name that was probably meant."""
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
