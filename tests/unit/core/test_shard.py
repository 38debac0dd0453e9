"""What the shard does with steps that are too long, lost, given up, or asked for before they are earned."""

from dataclasses import replace
from typing import Any

import numpy as np

from ramify.scheduler.commands import Commit, Generate, Score, Withdraw
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.events import Committed
from ramify.scheduler.forest.columns import Flag, Status, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.plan import Outcome
from ramify.scheduler.policies.base import Moves
from ramify.scheduler.shard import Shard, ShardLimits
from tests.property.forests import i32
from tests.simulation import fakes
from tests.simulation.shards import snapshot
from tests.simulation.world import Work, admitted, plan
from tests.unit.core.scripts import begin, none_of, only, sampled, scored, scripted, status, tick

GIVEN_UP = np.array([Flag.SPECULATIVE], np.uint8)


def row_of(shard: Shard, node_id: Any) -> int:
    forest = shard.forest
    return int(np.flatnonzero(forest.node_id[: forest.size] == np.uint64(node_id))[0])


# --- a step that is too long ------------------------------------------------------------------------------------------------


def test_a_step_that_is_too_long_is_refused_and_its_chain_alone_given_up() -> None:
    shard, command = begin(plan(policy="best_of_n", n=3, max_step_tokens=6))
    assert shard.handle([sampled(command, ["long\n"], at=[1], tokens=7)]) == []
    row = row_of(shard, command.node_id[1])
    assert shard.forest.status[row] == Status.PRUNED
    assert shard.forest.finish[row] == Finish.ERROR
    assert [*shard.messages.values()] == ["a step has 7 tokens, above max_step_tokens=6"]
    found = shard.handle([sampled(command, ["as long as it may be\n", "b\n"], at=[0, 2], tokens=6)])
    assert only(found, Score).chains.length.tolist() == [1, 1]
    assert status(shard) == TreeStatus.GROWING
    shard.forest.validate()
    nodes = only(tick(shard), Commit).nodes
    assert dict(zip(nodes.node_id.tolist(), nodes.finish.tolist(), strict=True))[int(command.node_id[1])] == Finish.ERROR
    assert nodes.token_count.tolist() == [6, 7, 6], "what was sampled is paid for"


def test_the_limit_is_that_of_each_job() -> None:
    shard, first = begin(plan("small", policy="best_of_n", n=1, max_step_tokens=2))
    (second,) = shard.handle([admitted(Work(plan("large", policy="best_of_n", n=1, max_step_tokens=9), (1,)), (1,))])
    assert isinstance(second, Generate)
    found = shard.handle([sampled(first, ["a\n"], tokens=3), sampled(second, ["b\n"], tokens=3)])
    assert only(found, Score).plan.job_id == "large"
    ((result,),) = [delta.results for delta in only(tick(shard), Commit).jobs if delta.results]
    assert (result.outcome, result.message) == (Outcome.FAILED, "a step has 3 tokens, above max_step_tokens=2")


# --- losses -----------------------------------------------------------------------------------------------------------------


def attempts(found: list[Any], kind: type[Any]) -> list[int]:
    asked = only(found, kind)
    counted: list[int] = (asked if kind is Generate else asked.chains).attempt.tolist()
    return counted


def test_the_loss_of_an_attempt_counts_once_however_often_and_late_it_comes() -> None:
    shard, command = begin(plan(policy="best_of_n", n=2), Shard(ShardLimits(tries_max=3)))
    assert command.attempt.tolist() == [0, 0]
    first = fakes.lost(command, np.arange(2))
    again = only(shard.handle([first, first]), Generate)
    assert again.attempt.tolist() == [1, 1]
    before = snapshot(shard)
    assert shard.handle([first]) == []
    assert snapshot(shard) == before
    second = fakes.lost(again, np.arange(2))
    third = only(shard.handle([first, second, first, second]), Generate)
    assert third.attempt.tolist() == [2, 2]
    assert none_of(shard.handle([first, second]), Generate)
    assert status(shard) == TreeStatus.GROWING
    assert shard.handle([fakes.lost(third, np.arange(2))]) == []
    assert status(shard) == TreeStatus.FINISHED
    assert [*shard.messages.values()] == ["lost 3 times: the wire was cut"]


def test_an_answer_to_any_attempt_will_do() -> None:
    shard, command = begin(plan(policy="best_of_n", n=1))
    shard.handle([fakes.lost(command, np.arange(1))])
    score = only(shard.handle([sampled(command, ["a\n"])]), Score)
    assert score.chains.attempt.tolist() == [1], "losses of sampling and of scoring are counted together"
    assert attempts(shard.handle([fakes.lost(score.chains, np.arange(1))]), Score) == [2]
    assert shard.handle([scored(score.chains, [0.5])]) == []
    assert status(shard) == TreeStatus.FINISHED


def test_a_loss_of_the_future_counts_for_nothing() -> None:
    shard, command = begin(plan(policy="best_of_n", n=1))
    loss = fakes.lost(command, np.arange(1))
    before = snapshot(shard)
    assert shard.handle([replace(loss, attempt=loss.attempt + np.uint8(1))]) == []
    assert snapshot(shard) == before


# --- speculation ------------------------------------------------------------------------------------------------------------


def speculating(then: Moves, *, scores: str = "end") -> Any:
    """A root with two children; the first's child is sampled as a speculation; then what is said."""

    def script(turn: int, forest: Forest) -> Moves:
        if turn == 0:
            return Moves(expand=i32(0), count=i32(2))
        return Moves(expand=i32(1), count=i32(2), flags=GIVEN_UP) if turn == 1 else then if turn == 2 else Moves()

    return scripted(script, scores=scores)


def speculated(then: Moves) -> tuple[Shard, Generate, Generate]:
    shard, command = begin(speculating(then))
    guess = only(shard.handle([sampled(command, ["a\n"], Finish.STEP, at=[0])]), Generate)
    assert (command.speculative, guess.speculative) == (False, True)
    return shard, command, guess


def test_a_speculation_that_is_earned_is_asked_for_in_earnest_where_it_is_not_there_yet() -> None:
    shard, _, guess = speculated(Moves(confirm=i32(1)))
    found = shard.handle([sampled(guess, ["b\n"], Finish.STEP, at=[1])])
    earnest = only(found, Generate)
    assert not earnest.speculative
    assert earnest.node_id.tolist() == guess.node_id[:1].tolist(), "the other one is there"
    assert earnest.attempt.tolist() == [0]
    assert not (shard.forest.flags[: shard.forest.size] & Flag.SPECULATIVE).any()


def test_a_speculation_whose_chain_is_given_up_is_withdrawn_and_lands_as_nothing() -> None:
    shard, command, guess = speculated(Moves(prune=i32(1)))
    withdrawn = only(shard.handle([sampled(command, ["b\n"], Finish.STEP, at=[1])]), Withdraw)
    assert withdrawn.node_id.tolist() == guess.node_id.tolist()
    assert withdrawn.tree_id.tolist() == guess.tree_id.tolist()
    flying = int(shard.forest.trees.outstanding[0])
    assert flying == 2, "under way until something is heard of them"
    assert shard.handle([fakes.lost(guess, np.array([0]))]) == [], "withdrawn in time: nobody samples it again"
    late = sampled(guess, ["too late\n"], Finish.STEP, at=[1], tokens=5)
    assert shard.handle([late]) == [], "under way already: it is paid for, and that is all"
    assert shard.forest.trees.outstanding[0] == 0
    rows = [row_of(shard, node) for node in guess.node_id.tolist()]
    assert shard.forest.status[rows].tolist() == [Status.PRUNED] * 2
    shard.forest.validate()
    nodes = only(tick(shard), Commit).nodes
    assert int(guess.node_id[1]) in nodes.node_id.tolist()
    assert int(guess.node_id[0]) not in nodes.node_id.tolist(), "what was never sampled is not written"


def test_tokens_of_speculations_that_came_to_nothing_are_wasted() -> None:
    def script(turn: int, forest: Forest) -> Moves:
        if turn == 0:
            return Moves(expand=i32(0), count=i32(2))
        if turn == 1:
            return Moves(expand=i32(1, 2), count=i32(1, 1), flags=np.array([Flag.SPECULATIVE] * 2, np.uint8))
        return Moves(confirm=i32(1), prune=i32(2), finish=i32(0)) if turn == 2 else Moves()

    shard, command = begin(scripted(script, barrier="level"))
    guess = only(shard.handle([sampled(command, ["a\n", "b\n"], Finish.STEP)]), Generate)
    shard.handle([sampled(guess, ["c\n", "d\n"], Finish.STEP, tokens=3)])
    ((result,),) = [delta.results for delta in only(tick(shard), Commit).jobs]
    assert (result.tokens, result.wasted_tokens) == (1 + 1 + 3 + 3, 3)


# --- which decision knew it first -------------------------------------------------------------------------------------------


def turns_of(commit: Commit) -> dict[int, int]:
    return dict(zip(commit.nodes.node_id.tolist(), commit.nodes.turn.tolist(), strict=True))


def test_a_commit_says_which_decision_was_the_first_to_know_a_step() -> None:
    shard, command = begin(scripted(lambda turn, forest: Moves(expand=i32(0), count=i32(3)) if turn == 0 else Moves()))
    first, second, third = command.node_id.tolist()
    shard.handle([sampled(command, ["a\n"], Finish.STEP, at=[2])])
    shard.handle([sampled(command, ["b\n"], Finish.STEP, at=[0])])
    found = shard.handle([sampled(command, ["c\n"], at=[1])])  # has ended: it is known when it is scored
    commit = only(tick(shard), Commit)
    assert turns_of(commit) == {third: 2, first: 3, second: 0}
    shard.handle([scored(only(found, Score).chains, [0.5]), Committed(1)])
    late = only(tick(shard, 2_000_000), Commit).scores
    assert (late.node_id.tolist(), late.turn.tolist(), late.score.tolist()) == ([second], [4], [0.5])


def test_a_committed_step_that_is_lost_when_its_chain_is_given_up_is_known_from_then_on() -> None:
    """It was written before it had a score. What it came to must be written too: else a replay would know it too early."""
    shard, command = begin(speculating(Moves(prune=i32(1)), scores="step"))
    chains = only(shard.handle([sampled(command, ["a\n", "b\n"], Finish.STEP)]), Score).chains
    assert chains.node_id.tolist() == command.node_id.tolist()
    first = replace_rows(chains, 0)
    guess = only(shard.handle([scored(first, [0.5])]), Generate)
    waiting = only(shard.handle([sampled(guess, ["c\n", "d\n"], Finish.STEP)]), Score).chains
    commit = only(tick(shard), Commit)
    assert [turns_of(commit)[node] for node in guess.node_id.tolist()] == [0, 0]
    shard.handle([Committed(1), scored(replace_rows(chains, 1), [0.25])])  # and the chain is given up
    assert shard.forest.status[1] == Status.PRUNED
    assert shard.handle([fakes.lost(waiting, np.arange(1)), scored(replace_rows(waiting, 1), [0.75])]) == []
    late = only(tick(shard, 2_000_000), Commit).scores
    known = dict(zip(late.node_id.tolist(), late.turn.tolist(), strict=True))
    assert [known.get(node) for node in guess.node_id.tolist()] == [4, 4]


def replace_rows(chains: Any, at: int) -> Any:
    """One of some chains of one length."""
    names = ("hint", "tree_id", "node_id", "attempt", "length")
    return replace(chains, **{name: getattr(chains, name)[at : at + 1] for name in names})


def test_losses_of_strangers_change_nothing() -> None:
    shard, command = begin(plan(policy="best_of_n", n=2))
    event, before = fakes.lost(command, np.arange(2)), snapshot(shard)
    assert shard.handle([replace(event, node_id=event.node_id + np.uint64(1))]) == []
    assert shard.handle([replace(event, tree_id=event.tree_id + np.uint64(1))]) == []
    assert snapshot(shard) == before
