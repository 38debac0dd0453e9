"""Short ways to say what the tests of the shard need: a policy that does as it is told, and answers to its commands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from ramify.scheduler.commands import Chains, Command, Generate
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.events import StepsSampled, StepsScored, Tick
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.policies.base import Moves, Policy
from ramify.scheduler.shard import Shard
from tests.property.forests import i32
from tests.simulation.world import Work, admitted, plan

C = TypeVar("C")


@dataclass(frozen=True)
class Scripted(Policy):
    """A policy whose decisions are a function's: by the number of the decision, from 0. Works for one tree at a time."""

    script: Callable[[int, Forest], Moves]
    barrier: Literal["level", "none"] = "none"
    scores: Literal["step", "end"] = "end"
    whole: bool = True
    votes: bool = False
    max_steps: int = 4

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        (tree,) = trees.tolist()
        return self.script(int(forest.trees.turn[tree]), forest)


def scripted(
    script: Callable[[int, Forest], Moves], *, votes: bool = False, barrier: Any = "none", scores: Any = "end", **given: Any
) -> JobPlan:
    """A job whose policy does as it is told."""
    return replace(plan(**given), policy=Scripted(script, barrier, scores, votes=votes))


def begin(job: JobPlan, shard: Shard | None = None) -> tuple[Shard, Generate]:
    """A shard with one tree, and what it wants sampled first."""
    shard = shard or Shard()
    (command,) = shard.handle([admitted(Work(job, (0,)), (0,))])
    assert isinstance(command, Generate)
    return shard, command


def only(found: Sequence[Command], kind: type[C]) -> C:
    """The one command of its kind."""
    (wanted,) = [command for command in found if isinstance(command, kind)]
    return wanted


def none_of(found: Sequence[Command], *kinds: type[Command]) -> bool:
    return not any(isinstance(command, kinds) for command in found)


def sampled(
    command: Generate, texts: Sequence[str], finish: Finish = Finish.END, at: Sequence[int] | None = None, tokens: int = 1
) -> StepsSampled:
    """The engine's answer to the rows `at` of a command, or to its first."""
    which = np.array(at if at is not None else range(len(texts)), np.int64)
    data = [text.encode() for text in texts]
    return StepsSampled(
        hint=command.hint[which],
        tree_id=command.tree_id[which],
        node_id=command.node_id[which],
        tokens=i32(*range(tokens * len(texts))),
        token_count=i32(*[tokens] * len(texts)),
        text=np.frombuffer(b"".join(data), np.uint8),
        text_count=i32(*map(len, data)),
        logprob=np.zeros(len(texts), np.float32),
        finish=np.full(len(texts), finish, np.uint8),
        score=np.full(len(texts), np.nan, np.float32),
    )


def scored(chains: Chains, scores: Sequence[float]) -> StepsScored:
    """The verifier's answer: each chain's score, for all of its steps."""
    each = np.repeat(np.array(scores, np.float32), chains.length)
    return StepsScored(chains.hint, chains.tree_id, chains.node_id, each, chains.length)


def status(shard: Shard, tree: int = 0) -> int:
    return int(shard.forest.trees.status[tree])


def tick(shard: Shard, now_ms: int = 1_000_000) -> list[Command]:
    return shard.handle([Tick(now_ms)])
