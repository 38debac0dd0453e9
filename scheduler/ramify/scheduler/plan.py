"""What a shard has to know of a job."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.forest.forest import Aggregate
from ramify.scheduler.forest.ids import writers
from ramify.scheduler.placement import Routing
from ramify.scheduler.policies.answers import AnswerRule, CutRule
from ramify.scheduler.policies.base import Policy
from ramify.scheduler.policies.extract import Extract

UNBOUNDED = 2**62


class Outcome(IntEnum):
    """How a problem ended. The numbers are stored and equal those of `ramify.v1.Outcome`."""

    ANSWERED = 1
    BUDGET = 2
    FAILED = 3


class Verdict(IntEnum):
    """What the checker says. The numbers are stored and equal those of `ramify.v1.Verdict`."""

    UNKNOWN = 0
    CORRECT = 1
    WRONG = 2


class Generator(NamedTuple):
    """An engine model that samples, and its share as against others."""

    model: str
    weight: float = 1.0


class Verifier(NamedTuple):
    """A verifier model that scores, what its scores count as against others, and when it is asked; see `actors.ensembles`."""

    model: str
    weight: float = 1.0
    temperature: float = 1.0
    when: Literal["always", "way", "end"] = "always"


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job's spec as the core needs it: checked, defaults filled in."""

    job_id: str
    policy: Policy
    params: StepParams
    generators: tuple[Generator, ...]  # at least one
    verifiers: tuple[Verifier, ...]  # at least one
    checker: str  # verifier model that checks the answer; empty: none
    aggregate: Aggregate = "last"
    answer: AnswerRule = "best"
    cut: CutRule = "discard"
    extract: Extract = field(default_factory=lambda: Extract("last_line"))
    compare: str = "exact"  # how answers are compared: "exact", "number", or a rule that the shell knows
    tolerance: float = 1e-6  # of "number": relative, and absolute near 0
    spread_siblings: bool = True  # whether the children of a node are spread over what is likely, or drawn independently
    tokens_per_tree_max: int = UNBOUNDED
    steps_per_tree_max: int = UNBOUNDED
    deadline_ms: int = UNBOUNDED  # on the store's clock
    step_prompt: str = ""  # what every step begins with; "{step}" is its number
    context_tokens_max: int = 0  # the shortest of its generators', for what people are told; 0: not known
    routing: Routing = field(default_factory=Routing)
    tenant: str = ""  # whose job it is: of what is scarce, tenants get shares
    priority: int = 0  # among the tenant's jobs: the higher one goes first
    chains: int = 1  # that a tree has at a time, at most

    @property
    def bounded(self) -> bool:
        """Whether a tree has a budget, which is divided in the order of its moves."""
        return min(self.tokens_per_tree_max, self.steps_per_tree_max) < UNBOUNDED

    def writers(self, node_id: NDArray[np.uint64]) -> NDArray[np.int64]:
        """`[R]` which of the generators writes the step of each of the nodes `[R]`."""
        return writers(node_id, [each.weight for each in self.generators])

    def begin_step(self, number: int) -> str:
        """What the step of a number, from 1, begins with in every chain; empty: nothing."""
        return self.step_prompt.replace("{step}", str(number))
