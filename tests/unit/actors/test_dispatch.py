"""The dispatcher: what is sent, in which order, and what becomes of what is not wanted any more."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from ramify.scheduler.actors.dispatch import ANSWER_S, LOOK_S, PROBE_S, PROBE_S_MAX, Dispatcher
from ramify.scheduler.actors.engine_actor import BEGUN
from ramify.scheduler.actors.lanes import Stuck
from ramify.scheduler.actors.quarantine import Quarantine
from ramify.scheduler.commands import Generate, Withdraw
from ramify.scheduler.engines.base import Finish, ModelInfo, StepBatch, StepResults
from ramify.scheduler.errors import EngineError
from ramify.scheduler.events import Event, StepsLost, StepsSampled
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

    def __init__(self, engines: int = 1, speculative_max: int = 100) -> None:
        self.engines = [Engine(f"engine {index}") for index in range(engines)]
        self.posted: list[Event] = []
        self.now_s = 0.0
        self.naps: list[asyncio.Future[None]] = []  # of those who wait for time to pass
        self.pauses: list[float] = []  # and how long they wanted to
        self.dispatcher = Dispatcher(
            self.engines, self.posted.append, speculative_max=speculative_max, now_s=lambda: self.now_s, sleep=self._sleep
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


async def test_the_cap_is_given_back_when_an_engine_is_lost() -> None:
    desk, guess = Desk(speculative_max=3), steps(0, 7, speculative=True)
    await desk.send(guess)
    desk.calls[0].answer(1)
    await settled()
    desk.calls[0].fail()
    await settled()
    assert desk.losses() == [nodes(guess)[0], nodes(guess)[2]]
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


async def test_a_speculation_without_an_engine_is_kept_and_upgraded_too() -> None:
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
    await desk.pass_time()
    await desk.send()
    assert desk.sent == [*nodes(last), nodes(guess)[2], *nodes(guess)[:2]]
    await desk.dispatcher.close()


async def test_what_is_withdrawn_before_it_is_sent_is_lost_and_what_is_under_way_ends_by_itself() -> None:
    desk, guess, command = Desk(), steps(0, SLOTS + 2, speculative=True), steps(1, 2 * SLOTS)
    await desk.send(guess)
    desk.dispatcher.withdraw(withdrawal(guess))
    (event,) = desk.posted
    assert isinstance(event, StepsLost)
    assert event.node_id.tolist() == nodes(guess)[SLOTS:]
    assert event.attempt.tolist() == [0, 0], "of the attempt that was asked for"
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


async def test_commands_are_sampled_in_one_call_each_by_its_own_parameters() -> None:
    desk, command, other = Desk(), steps(0, 2), steps(1, 3)
    await desk.send(replace(command, params=replace(command.params, temperature=0.0)), other)
    (call,) = desk.calls
    assert [call.batch.params[params].temperature for params in call.batch.group_params] == [0.0, other.params.temperature]
    assert call.batch.group.tolist() == [0, 0, 1, 1, 1]
    chains = [call.batch.tokens[start:end].tolist() for start, end in pairwise(call.batch.offsets.tolist())]
    assert chains == [command.tokens.tolist(), other.tokens.tolist()]
    call.answer(3, 1)
    await settled()
    (event,) = desk.posted
    assert isinstance(event, StepsSampled)
    assert event.node_id.tolist() == [nodes(other)[1], nodes(command)[1]]
    await desk.dispatcher.close()


# --- engines that are lost ----------------------------------------------------------------------------------------------


async def test_what_a_lost_engine_was_at_and_what_waited_for_it_goes_elsewhere_at_once() -> None:
    desk, commands = Desk(engines=2), [steps(problem, 5) for problem in range(8)]
    await desk.send(*commands)
    lost, other = desk.engines
    assert len(lost.sent) == len(other.sent) == 2 * SLOTS
    lost.gone = True
    lost.calls[0].answer(1)
    await settled()
    lost.calls[0].fail()
    await settled()
    assert sorted([*desk.losses(), lost.sent[1]]) == sorted(lost.sent)
    (message,) = {event.message for event in desk.posted if isinstance(event, StepsLost)}
    assert message == "engine engine 0 failed: EngineError: it died"
    await desk.drained(other)
    first = [node for node in nodes(*commands) if node not in lost.sent]
    assert sorted(other.sent) == sorted(first), "what had not been sent is sampled by the other one"
    assert not desk.dispatcher.busy


async def test_late_answers_of_a_lost_engine_are_not_heard() -> None:
    desk = Desk()
    await desk.send(steps(0, 3))
    desk.calls[0].fail()
    await settled()
    posted = len(desk.posted)
    desk.calls[0].answer(0, 1, 2)
    await settled()
    assert len(desk.posted) == posted
    await desk.dispatcher.close()


async def test_an_engine_that_is_away_is_looked_for_less_and_less_often() -> None:
    desk, command = Desk(), steps(0, 2)
    await desk.send(command)
    desk.engines[0].gone = True
    desk.calls[0].fail()
    await settled()
    for _ in range(10):
        await desk.pass_time()
    pauses = [pause_s for pause_s in desk.pauses if pause_s != LOOK_S]
    assert len(pauses) == 11
    assert all(pause_s <= min(PROBE_S * 2**count, PROBE_S_MAX) for count, pause_s in enumerate(pauses))
    assert all(pause_s >= min(PROBE_S * 2**count, PROBE_S_MAX) / 2 for count, pause_s in enumerate(pauses))
    await desk.send(steps(1, 3), steps(2, 1))
    assert desk.dispatcher.waits == {
        "job": Stuck("no engine with generator is alive (engine 0: EngineError: it is away)", 4, 100.0)
    }
    desk.engines[0].gone = False
    await desk.pass_time()
    await desk.send()
    assert desk.dispatcher.waits == {}
    assert len(desk.sent) == 2 + 4
    await desk.dispatcher.close()


async def test_the_engine_that_had_the_model_is_the_one_that_is_away() -> None:
    desk, command = Desk(engines=2), steps(0, 2)
    desk.engines[0].gone = True  # what it has nobody knows
    await desk.send(command)
    desk.engines[1].gone = True
    desk.calls[0].fail()
    await settled()
    await desk.send(steps(1, 3))
    assert desk.dispatcher.waits["job"].reason == "no engine with generator is alive (engine 1: EngineError: it is away)"
    await desk.dispatcher.close()


async def test_an_engine_that_is_silent_is_asked_and_given_up_when_it_does_not_answer() -> None:
    desk = Desk()
    await desk.send(steps(0, 2))
    await desk.pass_time(ANSWER_S + 1)
    assert desk.losses() == [], "it answers"
    desk.engines[0].gone = True
    await desk.pass_time(ANSWER_S / 2)
    assert desk.losses() == [], "it has said something not long ago"
    await desk.pass_time(ANSWER_S)
    assert desk.losses() == desk.sent
    await desk.dispatcher.close()


async def test_a_pinned_job_waits_for_an_engine_of_its_revision() -> None:
    desk, command = Desk(engines=2), steps(0, 3)
    desk.engines[1].info = replace(INFO, revision="2")
    other, mine = (replace(command, generator=f"generator@{each}") for each in ("3", "2"))
    await desk.send(other)
    assert desk.sent == []
    reason = "the job keeps to revision 3 of generator, the engines have 1, 2"
    assert desk.dispatcher.waits == {"job": Stuck(reason, 3, 0.0)}
    await desk.send(mine)
    assert desk.engines[1].sent == nodes(command)
    await desk.dispatcher.close()


# --- suspects -----------------------------------------------------------------------------------------------------------


def again(command: Generate, attempt: int) -> Generate:
    """The command after so many losses."""
    return replace(command, attempt=np.full(len(command.hint), attempt, np.uint8))


async def test_what_was_lost_is_tried_alone_on_an_engine() -> None:
    desk, first, suspect, other = Desk(), steps(0, 2), again(steps(1, 2), 1), steps(2, 2)
    await desk.send(first)
    await desk.send(suspect, other)
    assert desk.sent == nodes(first), "it waits until the engine has nothing else to do"
    desk.calls[0].answer(0, 1)
    await settled()
    await desk.send()
    assert desk.sent == nodes(first, suspect)
    assert [call.alone for call in desk.calls] == [False, True]
    desk.calls[1].enters.set()
    await desk.send(steps(3, 1))
    assert desk.sent == nodes(first, suspect), "nothing beside it"
    desk.calls[1].answer(0, 1)
    await settled()
    await desk.send()
    assert desk.sent == nodes(first, suspect, other, steps(3, 1))
    await desk.dispatcher.close()


async def test_a_group_that_stood_at_the_door_when_the_engine_died_has_not_been_tried() -> None:
    desk, suspect = Desk(engines=2), again(steps(1, 3), 4)
    await desk.send(suspect)
    (call,) = desk.calls
    at = next(engine for engine in desk.engines if engine.calls)
    at.gone = True
    call.gate_fails()
    await settled()
    await desk.send()
    assert desk.losses() == []
    assert desk.sent == nodes(suspect, suspect), "it is tried elsewhere"
    await desk.dispatcher.close()


async def test_a_chain_that_has_killed_an_engine_every_time_is_not_sent_any_more() -> None:
    desk, suspect, other = Desk(), again(steps(1, 3), 4), again(steps(2, 3), 4)
    await desk.send(suspect)
    desk.calls[0].enters.set()
    desk.calls[0].fail()
    await settled()
    assert sorted(desk.losses()) == sorted(nodes(suspect))
    posted = len(desk.posted)
    for attempt in range(5):
        await desk.send(again(suspect, attempt))
    assert desk.sent == nodes(suspect), "other steps of that chain, which its policy may ask for, would do the same"
    assert [event.attempt.tolist() for event in desk.posted[posted:] if isinstance(event, StepsLost)] == [
        [n] * 3 for n in range(5)
    ]
    assert {event.message for event in desk.posted if isinstance(event, StepsLost)} == {
        "engine engine 0 failed: EngineError: it died"
    }
    await desk.send(other)
    assert desk.sent == nodes(suspect, other)
    await desk.dispatcher.close()


def test_groups_become_smaller_down_to_one_chain() -> None:
    quarantine = Quarantine(tries_max=5)
    assert [quarantine.size(attempt, 256) for attempt in range(1, 6)] == [512, 64, 8, 1, 1]
    assert [quarantine.size(attempt, 32) for attempt in range(1, 5)] == [512, 64, 8, 1]
    assert [quarantine.size(attempt, 13_500) for attempt in range(1, 5)] == [27_000, 900, 30, 1], (
        "at first all that was in flight"
    )
    assert [Quarantine(tries).size(1, 256) for tries in (1, 2, 3)] == [1, 1, 512]


def test_a_group_takes_whole_trees_then_whole_chains_with_the_fewest_attempts_first() -> None:
    quarantine, suspects = Quarantine(tries_max=5), deque([again(steps(problem, 5), 3) for problem in range(3)])
    suspects.append(again(steps(7, 4), 2))
    first = quarantine.take(suspects, SLOTS)
    assert nodes(*first) == nodes(steps(7, 4)), "with fewer attempts"
    groups = [nodes(*quarantine.take(suspects, SLOTS)) for _ in range(3)]
    assert sorted(map(sorted, groups)) == sorted(sorted(nodes(steps(problem, 5))) for problem in range(3)), (
        "two trees are more than 8"
    )
    assert not suspects
    suspects.append(again(steps(0, 5), 4))
    assert nodes(*quarantine.take(suspects, SLOTS)) == nodes(steps(0, 5)), "a chain is not divided"
