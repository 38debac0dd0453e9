"""The dispatcher: what is sent, in which order, and what becomes of what is not wanted any more."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ramify.scheduler.actors import dispatch
from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.commands import Generate, Withdraw
from ramify.scheduler.engines.base import Finish, ModelInfo, StepBatch, StepResults
from ramify.scheduler.errors import EngineError
from ramify.scheduler.events import Event, StepsLost, StepsSampled
from ramify.scheduler.journal import without
from ramify.scheduler.shard import Shard
from tests.simulation.world import Work, admitted, plan

SLOTS = 4
PATIENCE_S = 20
INFO = ModelInfo("generator", "1", "simulated", "", 1000, SLOTS)


@dataclass
class Call:
    """One batch that an engine has been sent."""

    batch: StepBatch
    answers: asyncio.Queue[list[int] | Exception] = field(default_factory=asyncio.Queue)

    def answer(self, *rows: int) -> None:
        """End some rows."""
        self.answers.put_nowait([*rows])

    def fail(self) -> None:
        self.answers.put_nowait(EngineError("it died"))


@dataclass
class Engine:
    """An engine that answers when it is told to."""

    name: str = "one"
    calls: list[Call] = field(default_factory=list)
    gone: bool = False

    async def describe(self) -> ModelInfo:
        if self.gone:
            raise EngineError("it is away")
        return INFO

    async def generate(self, batch: StepBatch) -> AsyncIterator[StepResults]:
        call = Call(batch)
        self.calls.append(call)
        left = len(batch)
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

    def __init__(self, engines: int = 1, speculative_max: int = 100) -> None:
        self.engines = [Engine(f"engine {index}") for index in range(engines)]
        self.posted: list[Event] = []
        self.dispatcher = Dispatcher([(engine, INFO) for engine in self.engines], self.posted.append, speculative_max)

    @property
    def calls(self) -> list[Call]:
        return [call for engine in self.engines for call in engine.calls]

    @property
    def sent(self) -> list[int]:
        return [node for engine in self.engines for node in engine.sent]

    async def send(self, *commands: Generate) -> None:
        """Take commands, and send what may be sent."""
        for command in commands:
            self.dispatcher.add(command)
        self.dispatcher.pump()
        await settled()

    async def returned(self) -> None:
        """Wait for the first engine."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.dispatcher._lanes[0].alive:  # noqa: ASYNC110  # nobody sets an event
                await asyncio.sleep(0.001)

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


def nodes(*commands: Generate) -> list[int]:
    return [node for command in commands for node in command.node_id.tolist()]


def earnest(command: Generate, at: Sequence[int]) -> Generate:
    """Some steps of a speculation, asked for in earnest."""
    return replace(without(command, ~np.isin(np.arange(len(command.hint)), at)), speculative=False)


def withdrawal(command: Generate) -> Withdraw:
    return Withdraw(command.tree_id, command.node_id)


async def test_steps_are_sent_as_far_as_credits_reach_and_in_their_order() -> None:
    desk, command = Desk(), steps(0, 11)
    await desk.send(command)
    assert desk.sent == nodes(command)[: 2 * SLOTS], "a batch that runs and one at the door"
    desk.calls[0].answer(3, 0)
    await settled()
    await desk.send()
    assert desk.sent == nodes(command)[: 2 * SLOTS + 2]
    (event,) = desk.posted
    assert isinstance(event, StepsSampled)
    assert event.node_id.tolist() == [nodes(command)[3], nodes(command)[0]]
    assert event.hint.tolist() == command.hint[[3, 0]].tolist()
    await desk.dispatcher.close()


async def test_a_speculation_is_sent_only_where_nothing_else_waits() -> None:
    desk, guess, command = Desk(), steps(0, 6, speculative=True), steps(1, 2 * SLOTS + 1)
    await desk.send(guess, command)
    assert desk.sent == nodes(command)[: 2 * SLOTS], "what came later in earnest goes first"
    desk.calls[0].answer(*range(SLOTS))
    await settled()
    await desk.send()
    assert desk.sent == nodes(command), "half a batch is free, and one step waited"
    desk.calls[0].answer(*range(SLOTS, 2 * SLOTS))
    await settled()
    await desk.send()
    assert desk.sent == nodes(command) + nodes(guess)[: SLOTS - 1], "free slots alone: nothing of it stands at the door"
    await desk.dispatcher.close()


async def test_a_speculation_never_stands_before_what_is_asked_in_earnest() -> None:
    desk, guess, command = Desk(), steps(0, 20, speculative=True), steps(1, SLOTS)
    await desk.send(guess)
    assert desk.sent == nodes(guess)[:SLOTS]
    await desk.send(command)
    assert desk.sent[SLOTS:] == nodes(command), "the door was free for it"
    await desk.dispatcher.close()


async def test_speculations_are_capped_over_all_engines() -> None:
    desk = Desk(engines=3, speculative_max=5)
    guesses = [steps(problem, 3, speculative=True) for problem in range(12)]
    await desk.send(*guesses)
    assert len({engine.name for engine in desk.engines if engine.calls}) > 1, "they are spread"
    assert len(desk.sent) == 5
    desk.calls[0].answer(0)
    await settled()
    await desk.send()
    assert len(desk.sent) == 6, "one has ended, one may follow"
    others = [steps(problem, 2) for problem in range(20, 24)]
    await desk.send(*others)
    assert sorted(nodes(*others)) == sorted(node for node in desk.sent if node in nodes(*others)), "the cap is no one else's"
    await desk.dispatcher.close()


async def test_the_cap_is_given_back_when_an_engine_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PROBE_S", 0.001)
    desk, guess = Desk(speculative_max=3), steps(0, 7, speculative=True)
    await desk.send(guess)
    desk.calls[0].answer(1)
    await settled()
    desk.calls[0].fail()
    await settled()
    assert desk.losses() == [nodes(guess)[0], nodes(guess)[2]]
    await desk.returned()
    await desk.send()
    assert desk.sent == nodes(guess)[:6], "three more"
    await desk.dispatcher.close()


async def test_a_speculation_that_waits_and_is_earned_is_sampled_once_and_before_others() -> None:
    desk, first, second = Desk(speculative_max=2), steps(0, 6, speculative=True), steps(1, 2, speculative=True)
    await desk.send(first, second)
    assert desk.sent == nodes(first)[:2]
    await desk.send(earnest(first, [4, 5]), earnest(second, [1]))
    assert desk.sent == [*nodes(first)[:2], *nodes(first)[4:], nodes(second)[1]]
    for call in [*desk.calls]:
        call.answer(*range(len(call.batch)))
    await settled()
    await desk.send()
    assert sorted(desk.sent) == sorted([*nodes(first)[:4], *nodes(first)[4:], nodes(second)[1]])
    await desk.dispatcher.close()


async def test_a_speculation_that_is_under_way_and_is_earned_is_not_sent_again() -> None:
    desk, guess = Desk(), steps(0, 3, speculative=True)
    await desk.send(guess)
    desk.calls[0].answer(0)
    await settled()
    await desk.send(earnest(guess, [0, 1, 2]))  # an answer may be on its way to the shard
    assert desk.sent == nodes(guess)
    desk.calls[0].answer(1, 2)
    await settled()
    answered = [node for event in desk.posted if isinstance(event, StepsSampled) for node in event.node_id.tolist()]
    assert answered == nodes(guess)
    assert not desk.dispatcher.busy
    await desk.send(earnest(guess, [1]))  # nothing is under way any more
    assert desk.sent == [*nodes(guess), nodes(guess)[1]]
    await desk.dispatcher.close()


async def test_a_speculation_without_an_engine_is_kept_and_upgraded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PROBE_S", 0.001)
    desk, guess, last = Desk(), steps(0, 3, speculative=True), steps(1, 1)
    await desk.send(last)
    desk.engines[0].gone = True
    desk.calls[0].fail()
    await settled()
    await desk.send(guess)
    await desk.send(earnest(guess, [2]))
    desk.dispatcher.pump()
    assert desk.sent == nodes(last)
    desk.engines[0].gone = False
    await desk.returned()
    await desk.send()
    assert desk.sent == [*nodes(last), nodes(guess)[2], *nodes(guess)[:2]]
    await desk.dispatcher.close()


async def test_what_is_withdrawn_before_it_is_sent_is_lost_and_what_is_under_way_ends_by_itself() -> None:
    desk, guess, command = Desk(), steps(0, SLOTS + 2, speculative=True), steps(1, 2 * SLOTS)
    guess = replace(guess, attempt=np.arange(SLOTS + 2, dtype=np.uint8))
    await desk.send(guess)
    desk.dispatcher.withdraw(withdrawal(guess))
    (event,) = desk.posted
    assert isinstance(event, StepsLost)
    assert event.node_id.tolist() == nodes(guess)[SLOTS:]
    assert event.attempt.tolist() == [SLOTS, SLOTS + 1], "of the attempt that was asked for"
    assert event.hint.tolist() == guess.hint[SLOTS:].tolist()
    assert event.message == "withdrawn"
    desk.calls[0].answer(*range(SLOTS))
    await settled()
    assert isinstance(desk.posted[-1], StepsSampled)
    assert not desk.dispatcher.busy
    await desk.send(command)
    assert desk.sent == [*nodes(guess)[:SLOTS], *nodes(command)]
    desk.dispatcher.withdraw(withdrawal(guess))
    assert len(desk.losses()) == 2, "it is withdrawn once"
    await desk.dispatcher.close()


async def test_what_waits_in_earnest_can_be_withdrawn_as_well() -> None:
    """A tree has ended while steps of it wait."""
    desk, command, other = Desk(), steps(0, 2 * SLOTS + 3), steps(1, 2)
    await desk.send(command, other)
    desk.dispatcher.withdraw(withdrawal(command))
    assert desk.losses() == nodes(command)[2 * SLOTS :]
    desk.calls[0].answer(*range(2 * SLOTS))
    await settled()
    await desk.send()
    assert desk.sent == [*nodes(command)[: 2 * SLOTS], *nodes(other)]
    await desk.dispatcher.close()


async def test_a_command_is_sampled_by_its_own_parameters() -> None:
    desk, command = Desk(), steps(0, 2)
    await desk.send(replace(command, params=replace(command.params, temperature=0.0)))
    assert desk.calls[0].batch.params[0].temperature == 0.0
    await desk.dispatcher.close()
