"""The dispatcher: engines that are lost, and what has been lost with them."""

from collections import deque
from dataclasses import replace

from ramify.scheduler.actors.dispatch import ANSWER_S, LOOK_S, PROBE_S, PROBE_S_MAX
from ramify.scheduler.actors.lanes import Stuck
from ramify.scheduler.actors.quarantine import Quarantine
from ramify.scheduler.events import StepsLost
from tests.unit.actors.desk import INFO, SLOTS, Desk, again, nodes, settled, steps


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
