"""A dispatcher at its desk: engines that answer when they are told to, a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.actors.engine_actor import BEGUN
from ramify.scheduler.commands import Generate, Withdraw
from ramify.scheduler.engines.base import Finish, ModelInfo, StepBatch, StepResults
from ramify.scheduler.errors import EngineError
from ramify.scheduler.events import Event, StepsLost
from ramify.scheduler.journal import without
from ramify.scheduler.shard import Shard
from tests.simulation.world import Work, admitted, plan

SLOTS = 4
INFO = ModelInfo("generator", "1", "simulated", "", 1000, SLOTS)


@dataclass
class Call:
    """One batch that an engine has been sent."""

    batch: StepBatch
    alone: bool = False
    enters: asyncio.Event = field(default_factory=asyncio.Event)  # set when it may begin, where it is alone
    answers: asyncio.Queue[list[int] | Exception] = field(default_factory=asyncio.Queue)

    answered: int = 0
    fails: bool = False

    def answer(self, *rows: int) -> None:
        """End some rows."""
        self.answered += len(rows)
        self.answers.put_nowait([*rows])

    def fail(self) -> None:
        self.answers.put_nowait(EngineError("it died"))

    def gate_fails(self) -> None:
        """The engine dies while the call waits to be alone."""
        self.fails = True
        self.enters.set()


@dataclass
class Engine:
    """An engine that answers when it is told to."""

    name: str = "one"
    calls: list[Call] = field(default_factory=list)
    gone: bool = False
    info: ModelInfo = INFO
    region: str = ""

    async def describe(self) -> ModelInfo:
        if self.gone:
            raise EngineError("it is away")
        return self.info

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        call = Call(batch, alone)
        self.calls.append(call)
        left = len(batch)
        if alone:
            await call.enters.wait()
            if call.fails:
                raise EngineError("it died")
            yield BEGUN
        while left:
            rows = await call.answers.get()
            if isinstance(rows, Exception):
                raise rows
            left -= len(rows)
            one, text = np.ones(len(rows), np.int32), np.full(len(rows), ord("x"), np.uint8)
            finish, logprob = np.full(len(rows), Finish.STEP, np.uint8), np.zeros(len(rows), np.float32)
            yield StepResults(np.array(rows, np.int32), finish, logprob, one, one, one, text, one)

    @property
    def sent(self) -> list[int]:
        """Nodes of each call, by their seeds."""
        return [seed for call in self.calls for seed in call.batch.seed.tolist()]


class Desk:
    """A dispatcher, its engines and what it has posted."""

    def __init__(self, engines: int = 1, speculative_max: int = 100, weights: Mapping[str, float] | None = None) -> None:
        self.engines = [Engine(f"engine {index}") for index in range(engines)]
        self.posted: list[Event] = []
        self.now_s = 0.0
        self.naps: list[asyncio.Future[None]] = []  # of those who wait for time to pass
        self.pauses: list[float] = []  # and how long they wanted to
        self.dispatcher = Dispatcher(
            self.engines,
            self.posted.append,
            speculative_max=speculative_max,
            now_s=lambda: self.now_s,
            sleep=self._sleep,
            weight=lambda tenant: (weights or {}).get(tenant, 1.0),
        )
        self._begun = False

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.naps.append(asyncio.get_running_loop().create_future())
        await self.naps[-1]

    async def drained(self, engine: "Engine") -> None:
        """Let an engine answer all that it is sent, until nothing is left."""
        for _ in range(100):
            for call in engine.calls:
                if call.answered < len(call.batch):
                    call.enters.set()
                    call.answer(*range(call.answered, len(call.batch)))
            await settled()
            await self.send()
        await self.dispatcher.close()

    async def pass_time(self, seconds: float = 10.0) -> None:
        """Let time pass, and all that waited for it go on."""
        self.now_s += seconds
        naps, self.naps = self.naps, []
        for nap in naps:
            nap.set_result(None)
        await settled()

    @property
    def calls(self) -> list[Call]:
        return [call for engine in self.engines for call in engine.calls]

    @property
    def sent(self) -> list[int]:
        return [node for engine in self.engines for node in engine.sent]

    async def send(self, *commands: Generate) -> None:
        """Take commands, and send what may be sent."""
        if not self._begun:
            self.dispatcher.begin()
            self._begun = True
            await settled()
        for command in commands:
            self.dispatcher.add(command)
        self.dispatcher.pump()
        await settled()

    def losses(self) -> list[int]:
        return [node for event in self.posted if isinstance(event, StepsLost) for node in event.node_id.tolist()]


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def steps(problem: int, count: int, *, speculative: bool = False) -> Generate:
    """The first steps of a problem."""
    (command,) = Shard().handle([admitted(Work(plan(policy="best_of_n", n=count), (problem,)), (problem,))])
    assert isinstance(command, Generate)
    return replace(command, speculative=speculative)


def of(command: Generate, tenant: str, priority: int = 0) -> Generate:
    """The same steps, of a tenant's job."""
    return replace(command, plan=replace(command.plan, tenant=tenant, priority=priority))


def nodes(*commands: Generate) -> list[int]:
    return [node for command in commands for node in command.node_id.tolist()]


def earnest(command: Generate, at: Sequence[int]) -> Generate:
    """Some steps of a speculation, asked for in earnest."""
    return replace(without(command, ~np.isin(np.arange(len(command.hint)), at)), speculative=False)


def withdrawal(command: Generate) -> Withdraw:
    return Withdraw(command.tree_id, command.node_id)


def again(command: Generate, attempt: int) -> Generate:
    """The command after so many losses."""
    return replace(command, attempt=np.full(len(command.hint), attempt, np.uint8))
