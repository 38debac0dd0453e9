"""The dispatcher: what is sent, in which order, and what becomes of what is not wanted any more."""

from dataclasses import replace
from itertools import pairwise

from ramify.scheduler.events import StepsLost, StepsSampled
from tests.unit.actors.desk import SLOTS, Desk, earnest, nodes, settled, steps, withdrawal


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
