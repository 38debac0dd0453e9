"""What is around a shell in the simulated cluster: engines, a verifier and a comparer, whose answers depend on their question."""

import asyncio
import math
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np

from ramify.scheduler.commands import Compare
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.errors import EngineError
from ramify.scheduler.events import Event
from ramify.scheduler.placement import Region, Terms
from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.chains import ChainError
from ramify.verifier.client import ColumnsScored
from ramify.verifier.columns import ChainColumns, ChainFault
from ramify.verifier.errors import OverloadedError, UnavailableError, VerifierError
from tests.simulation import fakes
from tests.simulation.costs import Costs

NEAR, FAR = "near", "far"  # where engines are; the near ones cost less
TERMS = Terms({NEAR: Region(1.0), FAR: Region(2.0)})
CHECKER = "rule"
FAILURES_MAX = 3  # of one step: fewer than it takes to set it aside


@dataclass
class Pace:
    """How fast and how reliable engines and the verifier are."""

    chance: random.Random
    delay_ms_max: int = 20  # an answer takes 1 to so many
    batch_max: int = 4  # steps that are answered at once
    slots: int = 32  # of an engine
    fails: float = 0.0  # chance that a call of an engine fails
    away: float = 0.0  # chance that a call of the verifier fails
    calm: bool = False  # nothing fails any more
    failures: Counter[int] = field(default_factory=Counter)  # of all engines, by node
    cut: set[str] = field(default_factory=set)  # regions that are cut off now
    backs: int = 0  # times that a region came back
    returned: int = 0  # steps that were sampled in a region after it had come back

    async def delay(self) -> None:
        """An answer takes a while."""
        await asyncio.sleep(self.chance.uniform(1, self.delay_ms_max) / 1000)

    def happens(self, share: float) -> bool:
        """Whether something goes wrong."""
        return not self.calm and self.chance.random() < share


@dataclass
class SimEngine:
    """One engine, as all of one process's calls see it."""

    name: str
    owner: str  # who calls it
    pace: Pace
    costs: Costs
    region: str = ""
    model: str = "generator"

    async def describe(self) -> ModelInfo:
        """What it has."""
        await self.pace.delay()
        if self.region in self.pace.cut:
            raise EngineError(f"{self.region} is cut off")
        return ModelInfo(self.model, "g1", "simulated", "", 1 << 20, self.pace.slots)

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """Sample in any order, in batches; it may fail on the way."""
        rows, nodes = [*range(len(batch))], batch.seed.tolist()
        for row in rows:
            group = int(batch.group[row])
            start, end = batch.offsets[group : group + 2].tolist()
            cost = len(fakes.tokens_of(nodes[row], batch.params[int(batch.group_params[group])].max_step_tokens))
            self.costs.begin(self.owner, nodes[row], batch.tokens[start:end].tolist(), cost)
        if alone:
            yield self._results(batch, [])
        self.pace.chance.shuffle(rows)
        while rows:
            await self.pace.delay()
            lost = self.region in self.pace.cut or self.pace.happens(self.pace.fails)
            if lost and all(self.pace.failures[nodes[row]] < FAILURES_MAX for row in rows):
                for row in rows:
                    self.pace.failures[nodes[row]] += 1
                    self.costs.fail(nodes[row])
                raise EngineError(f"{self.name} has died")
            size = self.pace.chance.randint(1, self.pace.batch_max)
            some, rows = rows[:size], rows[size:]
            self.pace.returned += len(some) if self.region == NEAR and self.pace.backs else 0
            yield self._results(batch, some)

    def _results(self, batch: StepBatch, rows: list[int]) -> StepResults:
        nodes = batch.seed[rows].tolist() if rows else []
        most = [batch.params[int(batch.group_params[int(batch.group[row])])].max_step_tokens for row in rows]
        tokens = [fakes.tokens_of(node, each) for node, each in zip(nodes, most, strict=True)]
        texts = [fakes.text_of(node).encode() for node in nodes]
        return StepResults(
            row=fakes.i32(rows),
            finish=np.array([fakes.finish_of(node) for node in nodes], np.uint8),
            logprob=np.array([fakes.logprob_of(node) for node in nodes], np.float32),
            tokens=fakes.i32([token for step in tokens for token in step]),
            token_count=fakes.i32([len(step) for step in tokens]),
            token_cost=fakes.i32([len(step) for step in tokens]),
            text=np.frombuffer(b"".join(texts), np.uint8),
            text_count=fakes.i32([len(text) for text in texts]),
            message="the engine could not",
        )


@dataclass
class SimVerifier:
    """The verifier, and the checker too."""

    pace: Pace

    async def get_model(self, name: str, *, deadline_ms: int) -> pb.Model:
        """What it has of that name."""
        await self.pace.delay()
        if self.pace.happens(self.pace.away):
            raise UnavailableError("it is away")
        return pb.Model(name=name, revision=f"{name}1")

    async def score_columns(
        self, model: str, chains: ChainColumns, *, revision: str, last_only: bool, wait_for_ready: bool
    ) -> ColumnsScored:
        """Score, some time later."""
        assert revision == f"{model}1", "the job is pinned"
        await self.pace.delay()
        if self.pace.happens(self.pace.away):
            errors: list[VerifierError] = [UnavailableError("it is away"), OverloadedError("it is full", 50)]
            raise self.pace.chance.choice(errors)
        found = chains.chains()
        if model == CHECKER:
            verdicts = [fakes.verdict_of(chain.problem, chain.steps) for chain in found]
            each = [[{0: math.nan, 1: 1.0, 2: 0.0}[verdict]] for verdict in verdicts]
        else:
            each = [fakes.scores_of(chain.problem, chain.steps, model)[-1 if last_only else 0 :] for chain in found]
        failed = [at for at, scores in enumerate(each) if math.isnan(scores[-1])]
        faults = [ChainFault(at, ChainError.MODEL, "the verifier could not") for at in failed]
        return ColumnsScored(np.array([score for scores in each for score in scores], np.float32), faults, revision)


@dataclass
class SimComparing:
    """Compares answers, some time later."""

    post: Callable[[Event], None]
    pace: Pace
    waiting: list[Compare] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def busy(self) -> bool:
        """Whether any answer waits or is under way."""
        return bool(self.waiting or self.tasks)

    def add(self, command: Compare) -> None:
        """Take a command."""
        self.waiting.append(command)

    def pump(self) -> None:
        """Begin what waits."""
        for command in self.waiting:
            task = asyncio.create_task(self._carry_out(command))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.waiting = []

    async def close(self) -> None:
        """Give up all that is under way."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _carry_out(self, command: Compare) -> None:
        await self.pace.delay()
        self.post(fakes.grouped(command))


def seed_of(*parts: object) -> int:
    """A seed from whatever tells two chances apart."""
    return zlib.crc32(repr(parts).encode())
