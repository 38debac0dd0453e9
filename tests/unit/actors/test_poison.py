"""A step that kills every engine it is given to: it is found and set aside, and nobody else is."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.actors.engine_actor import BEGUN
from ramify.scheduler.actors.gate import Gate
from ramify.scheduler.commands import Commit, Generate, Score, TreeResult, Withdraw
from ramify.scheduler.engines.base import Finish, ModelInfo, StepBatch, StepResults
from ramify.scheduler.errors import EngineError
from ramify.scheduler.events import Committed, Event, Tick
from ramify.scheduler.plan import Outcome
from ramify.scheduler.shard import Shard
from tests.simulation import fakes
from tests.simulation.world import Work, admitted, plan, prompt

INFO = ModelInfo("generator", "1", "simulated", "", 1000, 256)
TURNS_MAX = 20_000


@dataclass
class Mortal:
    """An engine that dies of some problems, and comes back after a while."""

    poisons: Sequence[int]
    name: str = "one"
    region: str = ""
    deaths: list[int] = field(default_factory=list)  # steps that each took along
    away: int = 0  # looks at it until it is back
    gate: Gate = field(default_factory=Gate)
    open: dict[asyncio.Future[None], int] = field(default_factory=dict)

    async def describe(self) -> ModelInfo:
        self.away -= 1
        if self.away >= 0:
            raise EngineError("it starts")
        return INFO

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open[lost] = len(batch)
        try:
            async with self.gate.passed(alone=alone):
                self._check(lost)
                if alone:
                    yield BEGUN
                if np.isin(batch.tokens, [prompt(problem)[0] for problem in self.poisons]).any():
                    self._die()
                for _ in range(3):
                    await asyncio.sleep(0)
                    self._check(lost)
                yield answers(batch)
        finally:
            self.open.pop(lost, None)

    def _die(self) -> None:
        self.deaths.append(sum(self.open.values()))
        for lost in self.open:
            lost.set_result(None)
        self.gate, self.away = Gate(), 3

    def _check(self, lost: "asyncio.Future[None]") -> None:
        if lost.done():
            raise EngineError("its process died")


def answers(batch: StepBatch) -> StepResults:
    ones, row = np.ones(len(batch), np.int32), np.arange(len(batch), dtype=np.int32)
    finish = np.where(batch.seed % 3 == 0, Finish.END, Finish.STEP).astype(np.uint8)
    return StepResults(row, finish, -ones.astype(np.float32), ones, ones, ones, np.full(len(batch), ord("x"), np.uint8), ones)


@dataclass
class Town:
    """A shard and engines, driven to the end of all trees."""

    engines: Sequence[Mortal]
    works: Sequence[Work]
    results: dict[int, TreeResult] = field(default_factory=dict)

    async def run(self) -> None:
        inbox: list[Event] = [admitted(work, work.problems) for work in self.works]
        shard = Shard()
        dispatcher = Dispatcher(self.engines, inbox.append, sleep=lambda _: asyncio.sleep(0))
        dispatcher.begin()
        for turn in range(TURNS_MAX):
            events, inbox[:] = [*inbox, Tick(1000 * turn)], []
            for command in shard.handle(events):
                match command:
                    case Generate():
                        dispatcher.add(command)
                    case Withdraw():
                        dispatcher.withdraw(command)
                    case Score():
                        inbox.append(fakes.scored(command.chains, np.arange(len(command.chains.length))))
                    case Commit():
                        self.results |= {result.tree_id: result for delta in command.jobs for result in delta.results}
                        inbox.append(Committed(command.sequence))
            dispatcher.pump()
            await asyncio.sleep(0)
            if len(self.results) == sum(len(work.problems) for work in self.works):
                return await dispatcher.close()
        raise AssertionError(f"{len(self.results)} trees have ended, {shard.live_trees} live")


@pytest.mark.parametrize("count", [1, 3])
async def test_a_poisoned_problem_is_set_aside_and_nobody_else_is(count: int) -> None:
    work = Work(plan(policy="best_of_n", n=1, max_steps=3, cut="answer"), tuple(range(201)))
    town = Town([Mortal([77], f"engine {index}") for index in range(count)], [work])
    await town.run()
    set_aside = {result.problem: result for result in town.results.values() if "failed" in result.message}
    (result,) = set_aside.values()
    assert (result.problem, result.outcome, result.steps) == (77, Outcome.FAILED, [])
    assert result.message.startswith("lost 5 times: engine engine ")
    assert result.message.endswith("failed: EngineError: its process died")
    deaths = [death for engine in town.engines for death in engine.deaths]
    assert len(deaths) == 5
    assert sorted(deaths)[0] == 1, "in the end it was alone"
    assert max(deaths) > 200 / count / 2, "at first with all others"


async def test_poison_in_several_trees_of_several_jobs_among_their_chains() -> None:
    poisons = [3, 4, 50]
    works = [
        Work(plan("one", policy="best_of_n", n=8, max_steps=2, cut="answer"), tuple(range(40))),
        Work(plan("two", policy="mcts", iterations=12, branch=3, parallel=2), tuple(range(40, 60))),
    ]
    town = Town([Mortal(poisons, f"engine {index}") for index in range(2)], works)
    await town.run()
    assert sorted(result.problem for result in town.results.values() if "failed" in result.message) == poisons
    deaths = [death for engine in town.engines for death in engine.deaths]
    assert len(deaths) <= 5 * len(poisons), "of further steps of those chains nothing is tried: MCTS would ask for many"


async def test_an_engine_that_dies_once_by_itself_costs_nobody_a_chain() -> None:
    work = Work(plan(policy="best_of_n", n=4, max_steps=3, cut="answer"), tuple(range(100)))
    engine = Mortal([], away=2)
    town = Town([engine], [work])
    running = asyncio.create_task(town.run())
    while not engine.open:  # noqa: ASYNC110  # nobody sets an event
        await asyncio.sleep(0)
    engine._die()
    await running
    assert engine.deaths == [400]
    assert not [result for result in town.results.values() if "failed" in result.message]
