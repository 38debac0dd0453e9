"""Engines as the shell sees them, and what is on its way to each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.actors.queues import Queue, SharedQueue, Turns, Weight
from ramify.scheduler.actors.step_prompts import StepPrompts
from ramify.scheduler.commands import Generate, Withdraw
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.events import StepsLost, StepsSampled
from ramify.scheduler.forest.forest import Hints
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.placement import Routing

QUEUE_FACTOR = 2  # credits for each of an engine's slots: a full batch runs, another waits at its door
REASON_CHARS_MAX = 200  # of what an engine failed with


class EngineHandle(Protocol):
    """An engine as the shell sees it, in this process or behind a Ray actor."""

    @property
    def name(self) -> str:
        """Unique in the system."""
        ...

    @property
    def region(self) -> str:
        """Where it is; empty: where everything is."""
        ...

    async def describe(self) -> ModelInfo:
        """What its model is; raises if the engine is not there, or can't go on."""
        ...

    def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """See `engines.base.Engine`; raises if the engine is lost.

        Args:
            batch: what to sample.
            alone: nothing else may run on the engine meanwhile, whoever asks for it. Without a single row comes a first result
                once that is so, and the batch begins.
        """
        ...


class Stuck(NamedTuple):
    """What of a job waits for an engine."""

    reason: str
    steps: int
    since_s: float  # on the monotonic clock


class Queued(NamedTuple):
    """What of a tenant waits to be sent."""

    steps: int
    age_s: float  # how long the oldest has waited, as far as it was there when this was asked before


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """How an engine stands, as one shard sees it."""

    engine: str
    alive: bool  # whether it answers
    reason: str  # why it is not alive
    slots: int  # sequences that it runs at once; 0: it has never answered
    leaves: bool  # ends what it is at, and is sent nothing more
    waiting: int  # steps that are to be sent there; here and below, speculative ones apart
    under_way: int  # steps that are there


class Rows(NamedTuple):
    """The steps of a call, R of them, by what their events are made of."""

    hint: Hints
    tree_id: NDArray[np.uint64]
    node_id: NDArray[np.uint64]
    attempt: NDArray[np.uint8]

    @classmethod
    def of(cls, commands: Sequence[Generate]) -> "Rows":
        """Those of some commands, one after the other."""
        columns = [(each.hint, each.tree_id, each.node_id, each.attempt) for each in commands]
        return cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    @property
    def names(self) -> NDArray[np.uint64]:
        """`[R]` one number for the names of each step."""
        return mix64(self.tree_id, self.node_id)

    def lost(self, rows: NDArray[np.int64], reason: str) -> StepsLost:
        """The event that some of them will not be answered."""
        return StepsLost(self.hint[rows], self.tree_id[rows], self.node_id[rows], self.attempt[rows], reason)

    def sampled(self, results: StepResults) -> StepsSampled:
        """An engine's results under the names of the nodes."""
        at = results.row
        return StepsSampled(
            hint=self.hint[at],
            tree_id=self.tree_id[at],
            node_id=self.node_id[at],
            tokens=results.tokens,
            token_count=results.token_count,
            text=results.text,
            text_count=results.text_count,
            logprob=results.logprob,
            finish=results.finish,
            score=np.full(len(at), np.nan, np.float32),
            message=results.message,
        )


@dataclass(slots=True, eq=False)
class Call:
    """A batch that is under way."""

    commands: list[Generate]
    alone: bool
    rows: Rows
    guess: NDArray[np.bool_]  # [R] what is speculative
    tenants: Sequence[tuple[str, int]]  # whose steps they are, and how many, one tenant after the other
    priority: NDArray[np.int32]  # [R] see `StepBatch`
    open: NDArray[np.bool_]  # [R] what has not been answered
    begun: bool  # whether the engine may be at it
    fault: str = ""  # why it was given up, where it was
    prompts: StepPrompts | None = None  # what its steps begin with, where that is anything

    @classmethod
    def of(cls, commands: list[Generate], turns: Turns, waiting: Sequence[str], weight: Weight, *, alone: bool) -> "Call":
        """A call that is to sample the steps of some commands.

        Args:
            commands: at least one.
            turns: of the engine; are taken.
            waiting: tenants whose steps wait still.
            weight: of tenants.
            alone: see `EngineHandle`.
        """
        commands = sorted(commands, key=lambda each: each.plan.tenant)
        rows, steps = Rows.of(commands), [len(each.hint) for each in commands]
        tenants = Counter[str]()
        for each, count in zip(commands, steps, strict=True):
            tenants[each.plan.tenant] += count
        guess = np.repeat([each.speculative for each in commands], steps)
        priority = turns.send([*tenants.items()], waiting, weight)
        return cls(commands, alone, rows, guess, [*tenants.items()], priority, np.ones(len(guess), np.bool_), begun=not alone)

    def by_tenant(self, rows: NDArray[np.int64] | NDArray[np.int32]) -> list[tuple[str, int]]:
        """How many of some of its steps are whose."""
        if len(self.tenants) == 1:
            return [(self.tenants[0][0], len(rows))]
        names, steps = zip(*self.tenants, strict=True)
        whose = np.searchsorted(np.cumsum(steps), rows, side="right")
        return [*zip(names, np.bincount(whose, minlength=len(names)).tolist(), strict=True)]

    def batch(self, info: ModelInfo) -> StepBatch:
        """All of its steps, as an engine with a model is to sample them."""
        batch = self._batch()
        if not any(each.plan.step_prompt for each in self.commands):
            return batch
        begins = [each.plan.begin_step(number) for each in self.commands for number in each.numbers.tolist()]
        self.prompts = StepPrompts.of(batch, begins, info.tokenizer_json)
        return self.prompts.before(batch)

    def sampled(self, results: StepResults) -> StepsSampled:
        """The event that tells what the engine has sampled of it."""
        return self.rows.sampled(self.prompts.after(results) if self.prompts else results)

    def _batch(self) -> StepBatch:
        tokens, offsets, groups = [], [np.zeros(1, np.int64)], []
        params, of_group = list(dict.fromkeys(each.params for each in self.commands)), []
        end, count = 0, 0
        for each in self.commands:
            tokens.append(each.tokens)
            offsets.append(each.offsets[1:] + end)
            groups.append(each.group + np.int32(count))
            of_group.append(np.full(len(each.offsets) - 1, params.index(each.params), np.int32))
            end, count = end + len(each.tokens), count + len(each.offsets) - 1
        return StepBatch(
            tokens=_joined(tokens),
            offsets=_joined(offsets),
            params=tuple(params),
            group_params=_joined(of_group),
            group=_joined(groups),
            code=_joined([each.code for each in self.commands]),
            seed=_joined([each.node_id for each in self.commands]),
            priority=self.priority,
        )


@dataclass(slots=True, eq=False)
class Lane:
    """An engine and what is on its way to it."""

    engine: EngineHandle
    key: int
    info: ModelInfo | None = None  # None: it has never answered
    alive: bool = False
    leaves: bool = False  # ends what it is at, and is sent nothing more
    reason: str = "it has not answered yet"  # why it is not alive
    waiting: SharedQueue = field(default_factory=SharedQueue)
    speculative: SharedQueue = field(default_factory=SharedQueue)  # sent when nothing else waits
    suspects: Queue = field(default_factory=Queue)  # were lost before: they may be what the engine dies of
    under_way: int = 0  # steps
    turns: Turns = field(default_factory=Turns)  # of tenants at its door
    heard_s: float = 0.0  # when it last said something
    calls: dict[asyncio.Task[None], Call] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Sequences that it runs at once."""
        return self.info.slots if self.info else 0

    @property
    def credits(self) -> int:
        """Steps that may still be sent."""
        return QUEUE_FACTOR * self.slots - self.under_way

    @property
    def queued(self) -> int:
        """Credits beyond the engine's slots: what is sent on them waits at its door, where no speculation shall stand."""
        return (QUEUE_FACTOR - 1) * self.slots

    @property
    def queues(self) -> list[Queue]:
        """All that has not been sent."""
        return [*self.waiting.queues, *self.speculative.queues, self.suspects]

    @property
    def load(self) -> int:
        """Steps that it has, waiting and under way."""
        return self.under_way + sum(queue.steps for queue in self.queues)

    @property
    def status(self) -> LaneStatus:
        """How it stands."""
        guesses = sum(int((call.guess & call.open).sum()) for call in self.calls.values())
        return LaneStatus(
            self.engine.name,
            self.alive,
            reason="" if self.alive else self.reason,
            slots=self.slots,
            leaves=self.leaves,
            waiting=self.waiting.steps + self.suspects.steps,
            under_way=self.under_way - guesses,
        )

    def may_take(self, model: str, routing: Routing) -> bool:
        """Whether it may sample with a model for a job."""
        return self.alive and self.serves(model) and (not routing.regions or self.engine.region in routing.regions)

    def serves(self, model: str) -> bool:
        """Whether it has a model: its name, or name@revision."""
        name, _, revision = model.partition("@")
        return self.info is not None and self.info.name == name and revision in ("", self.info.revision)


def names(command: Generate | Withdraw) -> NDArray[np.uint64]:
    """`[R]` one number for the names of each step."""
    return mix64(command.tree_id, command.node_id)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def told(error: BaseException) -> str:
    """What an engine failed with, in a line."""
    cause = getattr(error, "cause", None)  # of what a Ray task has raised
    error = cause if isinstance(cause, BaseException) else error
    first = str(error).strip().partition("\n")[0][:REASON_CHARS_MAX]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
