"""The journal answers what was committed, and leaves the rest to be done."""

import numpy as np

from ramify.scheduler.commands import Commit, Generate, Score
from ramify.scheduler.events import StepsSampled, Tick
from ramify.scheduler.journal import Journal, without
from ramify.scheduler.shard import Shard
from tests.simulation import fakes
from tests.simulation.store import Store
from tests.simulation.world import Work, admitted, plan

WORK = Work(plan(n=4), (0, 1))
EVENT = admitted(WORK, WORK.problems)


def asked() -> Generate:
    (command,) = Shard().handle([EVENT])
    assert isinstance(command, Generate)
    return command


def journal_of(rows: list[int]) -> Journal:
    """A journal that holds some of the steps that `asked` asks for."""
    shard, store = Shard(), Store(dict(zip(EVENT.tree_id.tolist(), EVENT.root_id.tolist(), strict=True)))
    (command,) = shard.handle([EVENT])
    assert isinstance(command, Generate)
    shard.handle([fakes.sampled(command, np.array(rows, np.int64))])
    for commit in shard.handle([Tick(1000)]):
        assert isinstance(commit, Commit)
        store.apply(commit)
    return Journal.of(store.journal())


def test_an_empty_journal_leaves_everything() -> None:
    command = asked()
    rest, events = journal_of([]).answer([command])
    assert rest[0] is command
    assert events == []


def test_a_command_is_split_into_what_is_known_and_what_is_not() -> None:
    command = asked()
    rest, events = journal_of([5, 1, 2]).answer([command])
    (left,), (event,) = rest, events
    assert isinstance(left, Generate)
    assert isinstance(event, StepsSampled)
    assert left.row.tolist() == command.row[[0, 3, 4, 6, 7]].tolist()
    assert event.row.tolist() == command.row[[1, 2, 5]].tolist()
    wanted = fakes.sampled(command, np.array([1, 2, 5]))
    for name in ("tree_id", "node_id", "tokens", "token_count", "text", "text_count", "logprob", "finish"):
        np.testing.assert_array_equal(getattr(event, name), getattr(wanted, name), err_msg=name)
    assert event.committed


def test_a_command_that_is_known_entirely_is_gone() -> None:
    rest, events = journal_of(list(range(8))).answer([asked()])
    assert rest == []
    assert len(events) == 1


def test_other_commands_pass_in_their_order() -> None:
    command, none = asked(), Score(WORK.plan, None)  # type: ignore[arg-type]
    rest, _ = journal_of([0]).answer([none, command, none])
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
        assert left.row.tolist() == command.row[~known].tolist()
