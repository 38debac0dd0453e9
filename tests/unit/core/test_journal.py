"""The journal answers what was committed, and leaves the rest to be done."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.scheduler import journal
from ramify.scheduler.commands import Chains, Commit, Generate, NodeRows, Score, ScoreRows, Snapshot, Withdraw
from ramify.scheduler.events import Event, StepsSampled, Tick
from ramify.scheduler.journal import Journal, Told, without
from ramify.scheduler.shard import Shard
from ramify.scheduler.slots import slot_of
from tests.simulation import fakes
from tests.simulation.store import Store
from tests.simulation.world import Work, admitted, plan

WORK = Work(plan(n=4), (0, 1))
EVENT = admitted(WORK, WORK.problems)


def all_grow(tree_id: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    return np.ones(len(tree_id), np.bool_), np.zeros(len(tree_id), np.int32)


def none_grows(tree_id: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    return np.zeros(len(tree_id), np.bool_), np.zeros(len(tree_id), np.int32)


def all_compare(tree_id: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    return np.ones(len(tree_id), np.bool_), np.ones(len(tree_id), np.int32)  # for decision 1


def told(command: Generate, turns: list[int]) -> Journal:
    """A journal of the first steps of a command, each known first to the decision of that number."""
    nodes = store_of(list(range(len(turns)))).journal()
    order = np.argsort([command.node_id.tolist().index(node) for node in nodes.node_id.tolist()])
    turn = np.empty(len(turns), np.int32)
    turn[order] = turns
    return Journal(replace(nodes, turn=turn))


def asked() -> Generate:
    (command,) = Shard().handle([EVENT])
    assert isinstance(command, Generate)
    return command


def journal_of(rows: list[int]) -> Journal:
    """A journal that holds some of the steps that `asked` asks for."""
    return Journal(store_of(rows).journal())


def store_of(rows: list[int]) -> Store:
    shard, store = Shard(), Store(dict(zip(EVENT.tree_id.tolist(), EVENT.root_id.tolist(), strict=True)))
    (command,) = shard.handle([EVENT])
    assert isinstance(command, Generate)
    shard.handle([fakes.sampled(command, np.array(rows, np.int64))])
    for commit in shard.handle([Tick(1000)]):
        assert isinstance(commit, Commit)
        store.apply(commit)
    return store


def test_an_empty_journal_leaves_everything() -> None:
    command = asked()
    rest, events = journal_of([]).answer([command], all_grow)
    assert rest[0] is command
    assert events == []


def test_a_command_is_split_into_what_is_known_and_what_is_not() -> None:
    command = asked()
    rest, events = journal_of([5, 1, 2]).answer([command], all_grow)
    (left,), (event,) = rest, events
    assert isinstance(left, Generate)
    assert isinstance(event, StepsSampled)
    assert left.hint.tolist() == command.hint[[0, 3, 4, 6, 7]].tolist()
    assert event.hint.tolist() == command.hint[[1, 2, 5]].tolist()
    wanted = fakes.sampled(command, np.array([1, 2, 5]))
    for name in ("tree_id", "node_id", "tokens", "token_count", "text", "text_count", "logprob", "finish"):
        np.testing.assert_array_equal(getattr(event, name), getattr(wanted, name), err_msg=name)
    assert event.committed


def test_a_command_that_is_known_entirely_is_gone() -> None:
    rest, events = journal_of(list(range(8))).answer([asked()], all_grow)
    assert rest == []
    assert len(events) == 1


def test_other_commands_pass_in_their_order() -> None:
    command, none = asked(), Withdraw(EVENT.tree_id[:1], EVENT.root_id[:1])
    rest, _ = journal_of([0]).answer([none, command, none], all_grow)
    assert rest[0] is rest[2] is none


def test_what_is_left_keeps_its_chains_and_loses_those_that_nobody_continues() -> None:
    command = asked()
    chains = [command.tokens[command.offsets[g] : command.offsets[g + 1]].tolist() for g in command.group.tolist()]
    for mask in range(2**8 - 1):
        known = np.array([mask >> bit & 1 for bit in range(8)], np.bool_)
        left = without(command, known)
        kept = [left.tokens[left.offsets[g] : left.offsets[g + 1]].tolist() for g in left.group.tolist()]
        assert kept == [chain for chain, gone in zip(chains, known.tolist(), strict=True) if not gone]
        assert np.array_equal(np.unique(left.group), np.arange(len(left.offsets) - 1))
        assert left.hint.tolist() == command.hint[~known].tolist()


def test_a_step_is_told_when_its_turn_has_come() -> None:
    command = asked()  # two trees of four steps each
    journal = told(command, [2, 0, 3, 2, 1, 3])
    rest, events = journal.answer([command], all_grow)
    assert [event.hint.tolist() for event in steps(events)] == [command.hint[[0, 1, 3, 4]].tolist()], "the earliest of each tree"
    assert rest == [], "what the journal lacks may not overtake what it has yet to tell"
    rest, events = journal.answer([], all_grow)
    assert [event.hint.tolist() for event in steps(events)] == [command.hint[[2, 5]].tolist()]
    (left,) = rest
    assert isinstance(left, Generate)
    assert left.hint.tolist() == command.hint[[6, 7]].tolist()
    assert journal.answer([], all_grow) == ([], [])


def test_a_step_that_no_decision_knew_is_told_without_its_score() -> None:
    command = asked()
    event, *_ = steps(told(command, [0, 1]).answer([command], all_grow)[1])
    assert np.isnan(event.score[0]), "else it would land before its time"
    assert event.turn is not None
    assert event.turn.tolist() == [0, 1]


def test_while_answers_are_compared_no_turn_comes() -> None:
    command = asked()
    journal = told(command, [2, 3, 4, 5, 2, 3, 4, 5])
    assert journal.answer([command], all_compare) == ([], [])
    assert len(steps(journal.answer([], all_grow)[1])) == 1


def test_what_the_decision_knew_that_waits_for_answers_is_told() -> None:
    command = asked()
    journal = told(command, [1, 2, 1, 3])
    _, events = journal.answer([command], all_compare)
    assert [event.turn.tolist() for event in steps(events) if event.turn is not None] == [[1, 1]]
    assert journal.answer([], all_compare)[1] == []


def test_what_a_tree_that_has_ended_did_not_ask_for_is_dropped() -> None:
    command = asked()
    journal = told(command, [1, 2])
    journal.answer([command], none_grows)
    assert journal.answer([], all_grow)[1] == []


def steps(events: list[Event]) -> list[StepsSampled]:
    return [event for event in events if isinstance(event, StepsSampled)]


# --- in rounds: which rows are sent on, and which are answered ------------------------------------------------------------------


def knows(turns: dict[int, int]) -> Journal:
    """A journal of some rows of `asked`, each known first to the decision of that number."""
    nodes = store_of([*turns]).journal()
    order = asked().node_id.tolist()
    return Journal(replace(nodes, turn=np.array([turns[order.index(node)] for node in nodes.node_id.tolist()], np.int32)))


def rows_of(found: Sequence[Any]) -> list[list[int]]:
    """Which rows of `asked` commands or events are about."""
    order = asked().node_id.tolist()
    return [sorted(order.index(node) for node in each.node_id.tolist()) for each in found]


def tell(held: Journal, found: Sequence[Any] = (), by: Any = all_grow) -> tuple[list[list[int]], list[list[int]]]:
    """What is sent on, and what is answered."""
    rest, events = held.answer(list(found), by)
    return rows_of(rest), rows_of(events)


def test_a_step_is_held_until_its_turn() -> None:
    """Rows 0 to 3 are of one tree, 4 to 7 of another: each is told in the order of its own decisions."""
    held = knows({0: 3, 1: 2, 2: 2, 3: 5, 4: 9, 5: 9, 6: 10, 7: 9})
    assert tell(held, [asked()]) == ([], [[1, 2, 4, 5, 7]])
    assert tell(held) == ([], [[0, 6]])
    assert tell(held) == ([], [[3]])
    assert tell(held) == ([], [])


def test_what_is_new_does_not_overtake_what_is_held() -> None:
    """A step that the first run did not have would land before those that it had."""
    held = knows({1: 2, 2: 3, 4: 2})
    assert tell(held, [asked()]) == ([[5, 6, 7]], [[1, 4]]), "the second tree is told: what is new there may be sampled"
    assert tell(held) == ([[0, 3]], [[2]])
    assert tell(held) == ([], [])


def test_steps_that_are_asked_for_later_take_their_place_among_the_held() -> None:
    command = asked()
    held, first, second = knows({0: 4, 1: 2, 2: 3}), np.array([0, 1]), np.array([2])
    mask = np.arange(8)
    assert tell(held, [without(command, ~np.isin(mask, first))]) == ([], [[1]])
    assert tell(held, [without(command, ~np.isin(mask, second))]) == ([], [[2]])
    assert tell(held) == ([], [[0]])


def test_nothing_is_told_while_answers_are_compared() -> None:
    """No decision is taken then, so what lands would be known to one that did not know it."""
    held = knows({0: 2, 1: 3, 2: 0})
    assert tell(held, [asked()])[1] == [[0, 2]]
    assert tell(held, by=all_compare) == ([], [])
    assert tell(held, by=all_compare) == ([], [])
    assert tell(held)[1] == [[1]]


def chains_of(rows: Sequence[int]) -> Chains:
    command, which = asked(), np.array(rows, np.int64)
    ones = np.ones(2 * len(rows), np.int32)
    text = np.full(2 * len(rows), ord("x"), np.uint8)
    names = command.hint[which], command.tree_id[which], command.node_id[which], command.attempt[which]
    return Chains(*names, text, ones, ones[: len(rows)], np.zeros(len(rows), np.bool_))


def test_a_step_that_no_decision_knew_is_told_and_paid_but_scored_behind_those_that_were_known() -> None:
    held = knows({0: 0, 1: 2, 2: 3})
    rest, (event, *_) = held.answer([asked()], all_grow)
    assert isinstance(event, StepsSampled)
    assert event.node_id.tolist() == asked().node_id[[0, 1]].tolist()
    assert event.turn is not None
    assert event.turn.tolist() == [0, 2]
    early, other = Score(WORK.plan, chains_of([0])), Score(WORK.plan, chains_of([3]))
    rest, events = held.answer([early, other], all_compare)
    assert (rest, events) == ([other], [])
    rest, events = held.answer([], all_grow)
    assert rows_of(events) == [[2]]
    assert [each for each in rest if isinstance(each, Score)] == [early]


def test_scores_pass_where_nothing_is_held() -> None:
    held, early = knows({0: 0, 1: 2}), Score(WORK.plan, chains_of([0]))
    held.answer([asked()], all_grow)
    assert held.answer([early], all_compare)[0] == [], "its tree could hear of it too early"
    assert held.answer([], none_grows)[0] == [early]


# --- as slots come and go -------------------------------------------------------------------------------------------------------


def part_of(rows: Sequence[int], turn: int = 1) -> NodeRows:
    """Some of the steps that `asked` asks for, as a store tells them."""
    nodes = store_of([*rows]).journal()
    return replace(nodes, turn=np.full(len(rows), turn, np.int32))


def test_slots_that_come_bring_their_steps() -> None:
    held = Journal(part_of([0, 1]))
    held.extend(part_of([5, 4]))
    held.extend(Told(part_of([])))
    assert len(held) == 4
    rest, events = held.answer([asked()], all_grow)
    assert sorted(map(tuple, rows_of(events))) == [(0, 1), (4, 5)]
    assert rows_of(rest) == [[2, 3, 6, 7]]
    assert len(held) == 0, "each is told once"


def test_steps_that_come_while_others_are_held_do_not_disturb_them() -> None:
    held = knows({0: 3, 1: 2})
    assert tell(held, [without(asked(), np.arange(8) > 3)]) == ([], [[1]])
    held.extend(part_of([4]))
    assert tell(held, [without(asked(), np.arange(8) < 4)]) == ([[2, 3], [5, 6, 7]], [[0], [4]])


def test_what_is_kept_behind_goes_in_the_order_in_which_it_came() -> None:
    """Else what is asked for in earnest would be asked for as a guess afterwards, and be sampled twice."""
    command = asked()
    gone = Withdraw(command.tree_id[2:4], command.node_id[2:4])
    held = knows({0: 4, 1: 2, 4: 3})
    mine = without(command, np.arange(8) > 3)
    assert tell(held, [replace(mine, speculative=True)]) == ([], [[1]])
    earnest = without(command, (np.arange(8) < 2) | (np.arange(8) > 3))
    held.extend(part_of([5]))  # something is held for as long as that tree is compared
    rest, _ = held.answer([earnest, gone], all_grow)
    kinds = [(type(each).__name__, getattr(each, "speculative", None), len(each.node_id)) for each in rest]  # type: ignore[union-attr]
    assert kinds == [("Generate", True, 2), ("Generate", False, 2), ("Withdraw", None, 2)]


def test_a_withdrawal_does_not_overtake_what_it_withdraws() -> None:
    command = asked()
    held = knows({0: 4, 1: 2})
    gone = Withdraw(command.tree_id[2:4], command.node_id[2:4])
    mine = without(command, np.arange(8) > 3)
    assert held.answer([mine, gone], all_grow)[0] == []
    rest, _ = held.answer([], all_grow)
    assert [type(each) for each in rest] == [Generate, Withdraw]


def test_what_was_told_is_not_told_again() -> None:
    held = knows({0: 1, 4: 1})
    assert tell(held, [asked()])[1] == [[0, 4]]
    assert tell(held, [asked()]) == ([list(range(8))], [])


def test_the_steps_of_slots_that_go_are_dropped_at_once_also_those_that_are_held() -> None:
    command = asked()
    first, second = slot_of(command.tree_id[[0, 7]]).tolist()
    assert first != second
    held = knows({0: 2, 1: 3, 4: 2, 5: 3})
    assert tell(held, [command]) == ([], [[0, 4]])
    held.release([first])
    assert tell(held) == ([[2, 3, 6, 7]], [[5]])
    assert len(held) == 0


def test_the_steps_of_trees_that_have_ended_are_dropped_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FORGET_TREES", 2)
    trees = np.unique(asked().tree_id)
    held = Journal(part_of([0, 4, 5]))
    held.forget(trees[:1])
    assert len(held) == 3
    held.forget(trees[1:])
    assert len(held) == 0
    assert tell(held, [asked()]) == ([list(range(8))], [])


def test_memory_is_given_back_and_what_is_held_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "COMPACT_MIN", 1)
    held = knows({0: 3, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 2})
    assert tell(held, [asked()]) == ([], [[1, 2, 3, 4, 5, 6]])
    (told,) = held._told
    assert len(told.nodes.node_id) == 2, "of eight"
    rest, (event, *_) = held.answer([], all_grow)
    wanted = fakes.sampled(asked(), np.array([0, 7]))
    assert isinstance(event, StepsSampled)
    for name in ("tree_id", "node_id", "tokens", "token_count", "text", "text_count", "logprob", "finish"):
        np.testing.assert_array_equal(getattr(event, name), getattr(wanted, name), err_msg=name)
    assert rest == []


def test_a_snapshot_takes_along_what_is_not_told_yet() -> None:
    command = asked()
    mine, other = slot_of(command.tree_id[[0, 7]]).tolist()
    held = knows({0: 2, 1: 3, 2: 3, 4: 2, 5: 3})
    assert tell(held, [command]) == ([], [[0, 4]])
    nothing = part_of([])
    commit = Commit(1, nothing, ScoreRows(*(nothing.tree_id, nothing.node_id, nothing.score, nothing.turn)), [])
    commit.snapshots.extend([Snapshot(mine, {}, part_of([3])), Snapshot(other, {}, nothing)])
    found, _ = held.answer([commit], all_grow)
    (written,) = (each for each in found if isinstance(each, Commit))
    assert rows_of([each.steps for each in written.snapshots]) == [[1, 2, 3], [5]]
    assert written.snapshots[0].steps.text.tobytes() == b"".join(
        fakes.text_of(node).encode() for node in command.node_id[[3, 1, 2]].tolist()
    )
