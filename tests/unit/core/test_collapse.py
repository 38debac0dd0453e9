"""The end of a tree: answers compared, in the core or by the shell, one of them chosen, and checked."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.commands import Check, Commit, Compare, Generate, Score
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.events import AnswersChecked, AnswersGrouped, Committed, JobCancelled
from ramify.scheduler.forest.columns import TreeStatus
from ramify.scheduler.plan import JobPlan, Outcome, Verdict
from ramify.scheduler.policies.base import Moves
from ramify.scheduler.remarks import MEND, NO_ANSWER
from ramify.scheduler.shard import Shard
from tests.property.forests import i32
from tests.simulation import fakes
from tests.simulation.shards import snapshot
from tests.simulation.world import plan
from tests.unit.core.scripts import begin, none_of, only, sampled, scored, scripted, status, tick

TEXTS = ("x=1\n", "x=2\n", "y=2\n", "")


def best_of_four(**given: Any) -> JobPlan:
    return plan(policy="best_of_n", n=4, checker="rule", **given)


def ended(job: JobPlan, texts: tuple[str, ...] = TEXTS) -> tuple[Shard, list[object]]:
    """A shard whose only tree has ended in four chains, the first of which scores best; and what it wants done now."""
    shard, command = begin(job)
    score = only(shard.handle([sampled(command, texts)]), Score)
    return shard, list(shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))]))


def result_of(shard: Shard) -> tuple[list[str], Outcome, Verdict]:
    commit = only(tick(shard, 2_000_000), Commit)
    ((found,),) = [delta.results for delta in commit.jobs]
    return found.steps, Outcome(found.outcome), Verdict(found.verdict)


def test_without_a_vote_nothing_is_compared() -> None:
    shard, found = ended(best_of_four(compare="math"))
    (check,) = found
    assert isinstance(check, Check)
    assert [steps for _, steps in check.chains.texts()] == [["x=1\n"]]
    assert status(shard) == TreeStatus.CHECKING


def test_a_vote_by_a_rule_of_the_core_needs_no_shell() -> None:
    shard, found = ended(best_of_four(answer="vote"), ("x=1\n", "x=2\n", "x=2 \n", ""))
    (check,) = found
    assert isinstance(check, Check)
    assert [steps for _, steps in check.chains.texts()] == [["x=2\n"]], "two against one, and the better of the two"
    shard.handle([AnswersChecked(check.chains.tree_id, np.array([Verdict.CORRECT], np.uint8))])
    assert result_of(shard) == (["x=2"], Outcome.ANSWERED, Verdict.CORRECT)


def test_numbers_are_compared_by_what_they_are_worth() -> None:
    texts = ("3\n", "0.5\n", "1/2\n", "two\n")
    for compare, wanted in (("exact", "3\n"), ("number", "0.5\n")):
        _, (check,) = ended(best_of_four(answer="vote", compare=compare), texts)
        assert isinstance(check, Check)
        assert [steps for _, steps in check.chains.texts()] == [[wanted]], compare


def test_a_rule_of_the_shell_is_asked_once_and_the_tree_goes_on_with_its_answer() -> None:
    shard, found = ended(best_of_four(answer="vote", compare="first_letter", extract="pattern", pattern="=(.)"))
    (compare,) = found
    assert isinstance(compare, Compare)
    assert status(shard) == TreeStatus.GROUPING
    order = np.argsort(compare.node_id)
    assert order.tolist() == [0, 1, 2, 3], "in an order that does not depend on arrival"
    assert sorted(compare.answers) == ["", "1", "2", "2"], "what is extracted, and nothing where nothing is found"
    assert none_of(tick(shard), Compare, Check), "a tree that waits has no result"
    assert status(shard) == TreeStatus.GROUPING
    check = only(shard.handle([fakes.grouped(compare)]), Check)
    assert [steps for _, steps in check.chains.texts()] == [["x=2\n"]]
    assert status(shard) == TreeStatus.CHECKING
    shard.handle([AnswersChecked(check.chains.tree_id, np.array([Verdict.WRONG], np.uint8))])
    assert status(shard) == TreeStatus.FINISHED
    shard.handle([Committed(1)])
    assert result_of(shard) == (["x=2"], Outcome.ANSWERED, Verdict.WRONG)


def test_without_a_checker_the_answer_ends_the_tree() -> None:
    shard, found = ended(plan(policy="best_of_n", n=4, answer="vote", compare="first_letter"))
    (compare,) = found
    assert isinstance(compare, Compare)
    assert shard.handle([fakes.grouped(compare)]) == []
    assert status(shard) == TreeStatus.FINISHED
    assert result_of(shard)[0] == ["x=1"], "x leads y"


def test_an_answer_that_comes_twice_or_too_late_changes_nothing() -> None:
    shard, found = ended(best_of_four(answer="vote", compare="first_letter"))
    (compare,) = found
    assert isinstance(compare, Compare)
    event = fakes.grouped(compare)
    other = AnswersGrouped(event.tree_id, event.node_id, event.group * 0)
    shard.handle([event])
    for late in (event, other):
        before = snapshot(shard)
        assert shard.handle([late]) == []
        assert snapshot(shard) == before, "while the checker is asked"
    shard.handle([JobCancelled("job")])
    before = snapshot(shard)
    assert shard.handle([event]) == []
    assert snapshot(shard) == before, "of a tree that is gone"
    shard.forest.dirty[: shard.forest.size] = 0
    shard.forest.compact()
    assert shard.forest.size == 0
    assert shard.handle([event]) == [], "and forgotten"


def test_answers_of_strangers_change_nothing() -> None:
    shard, found = ended(best_of_four(answer="vote", compare="first_letter"))
    (compare,) = found
    assert isinstance(compare, Compare)
    before = snapshot(shard)
    assert shard.handle([AnswersGrouped(compare.tree_id + np.uint64(1), compare.node_id, i32(0, 0, 0, 0))]) == []
    assert snapshot(shard) == before
    assert status(shard) == TreeStatus.GROUPING


def test_a_cancelled_job_does_not_wait_for_the_comparison() -> None:
    shard, found = ended(best_of_four(answer="vote", compare="first_letter"))
    (compare,) = found
    assert isinstance(compare, Compare)
    shard.handle([JobCancelled("job")])
    assert shard.live_trees == 0
    assert shard.handle([fakes.grouped(compare)]) == []


def test_rows_may_be_renumbered_while_answers_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    shard, found = ended(best_of_four(answer="vote", compare="first_letter", extract="pattern", pattern="=(.)"))
    (compare,) = found
    assert isinstance(compare, Compare)
    shard.forest.compact()
    check = only(shard.handle([fakes.grouped(compare)]), Check)
    assert [steps for _, steps in check.chains.texts()] == [["x=2\n"]]


def test_no_answer_says_what_could_be_done() -> None:
    shard, command = begin(best_of_four(answer="vote", max_steps=1))
    score = only(shard.handle([sampled(command, TEXTS, Finish.STEP)]), Score)
    assert shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))]) == []
    assert result_of(shard) == ([], Outcome.FAILED, Verdict.UNKNOWN)
    assert "max_steps" in NO_ANSWER


def told(shard: Shard) -> tuple[str, str]:
    """Why there is no answer, and what is odd about it."""
    ((found,),) = [delta.results for delta in only(tick(shard, 2_000_000), Commit).jobs]
    return found.message, found.note


@pytest.mark.parametrize(("size", "says"), [(0, "the model's context is shorter"), (7, "the model's context is 7")])
def test_a_prompt_that_is_too_long_is_told(size: int, says: str) -> None:
    shard, command = begin(replace(best_of_four(), context_tokens_max=size))
    score = only(shard.handle([sampled(command, [""] * 4, Finish.CONTEXT, tokens=0)]), Score)
    shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))])
    prompt = len(command.tokens)
    assert told(shard) == (f"the prompt has {prompt} tokens, {says}: give the model a longer context, or a shorter problem", "")


def test_chains_that_filled_the_context_are_told() -> None:
    shard, command = begin(replace(best_of_four(), context_tokens_max=7))
    score = only(shard.handle([sampled(command, TEXTS, Finish.CONTEXT, tokens=2)]), Score)
    shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))])
    message, _ = told(shard)
    assert message.startswith(
        f"chains were cut at up to {len(command.tokens) + 2} tokens, the model's context is 7: lower max_steps"
    )


def test_an_answer_that_filled_the_context_is_told() -> None:
    job = replace(plan(policy="best_of_n", n=4, cut="answer"), context_tokens_max=7)
    for tokens, says in (
        (2, "the answer was cut at {} tokens, the model's context is 7: lower max_steps"),
        (0, "the prompt has {}"),
    ):
        shard, command = begin(job)
        texts = TEXTS if tokens else [""] * 4
        score = only(shard.handle([sampled(command, texts, Finish.CONTEXT, tokens=tokens)]), Score)
        shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))])
        message, note = told(shard)
        assert not message
        assert note.startswith(says.format(len(command.tokens) + tokens))
        assert "cut=answer" not in note, "it says so"


def cut(finish: Finish, job: JobPlan) -> Shard:
    """A shard whose only tree has ended in four chains of a step that was cut and one that ended so."""
    shard, command = begin(job)
    command = only(shard.handle([sampled(command, TEXTS, Finish.STEP_CUT)]), Generate)
    score = only(shard.handle([sampled(command, TEXTS, finish)]), Score)
    for check in shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))]):
        assert isinstance(check, Check)
        shard.handle([AnswersChecked(check.chains.tree_id, np.array([Verdict.CORRECT], np.uint8))])
    return shard


def test_a_delimiter_that_never_came_is_told() -> None:
    message, note = told(cut(Finish.STEP_CUT, best_of_four(max_steps=2)))
    assert message == f"no step ended with '\\n', each was cut at max_step_tokens=6: {MEND}"
    assert not note
    message, note = told(cut(Finish.END, best_of_four(max_steps=2)))
    assert not message
    assert note.startswith("no step of the answer ended with '\\n', they were cut at max_step_tokens=6")


def test_a_delimiter_that_came_once_or_is_not_wanted_is_not_told() -> None:
    assert told(cut(Finish.STEP, best_of_four(max_steps=2))) == (NO_ANSWER, "")
    job = best_of_four(max_steps=2)
    assert told(cut(Finish.END, replace(job, params=replace(job.params, delimiter=None)))) == ("", "")


def test_what_was_cut_answers_only_where_the_job_says_so() -> None:
    shard, command = begin(best_of_four(max_steps=1, cut="answer"))
    score = only(shard.handle([sampled(command, TEXTS, Finish.STEP)]), Score)
    check = only(shard.handle([scored(score.chains, (0.9, 0.5, 0.25, 0.125))]), Check)
    assert [steps for _, steps in check.chains.texts()] == [["x=1\n"]]


# --- policies that vote while they grow -------------------------------------------------------------------------------------


def first_then_wait(turn: int, forest: object) -> Moves:
    """Three chains, and then nothing more."""
    return Moves(expand=i32(0), count=i32(3)) if turn == 0 else Moves()


def voting(**given: Any) -> JobPlan:
    return scripted(first_then_wait, votes=True, answer="vote", compare="first_letter", **given)


def test_a_policy_that_votes_is_asked_when_the_answers_are_compared() -> None:
    shard, command = begin(voting())
    score = only(shard.handle([sampled(command, ["a\n"], at=[0])]), Score)
    compare = only(shard.handle([scored(score.chains, [0.5])]), Compare)
    assert compare.answers == ["a"]
    assert int(shard.forest.trees.turn[0]) == 1, "no decision yet"
    assert status(shard) == TreeStatus.GROWING
    late = only(shard.handle([sampled(command, ["b\n"], at=[1])]), Score)
    assert shard.handle([scored(late.chains, [0.75])]) == [], "one comparison of a tree at a time"
    again = only(shard.handle([fakes.grouped(compare)]), Compare)
    assert sorted(again.answers) == ["a", "b"], "those that came meanwhile are compared before it is asked"
    assert int(shard.forest.trees.turn[0]) == 1
    assert shard.handle([fakes.grouped(again)]) == []
    assert int(shard.forest.trees.turn[0]) == 2
    assert shard.forest.grouped[shard.forest.candidates(i32(0))].all()


def test_a_tree_that_ends_while_answers_are_compared_waits_for_all_of_them() -> None:
    """Two chains are compared when a better informed third lands; then the time is over. It has its vote all the same."""
    shard, command = begin(voting(deadline_ms=500))
    score = only(shard.handle([sampled(command, ["a\n"], at=[0])]), Score)
    first = only(shard.handle([scored(score.chains, [0.9])]), Compare)
    score = only(shard.handle([sampled(command, ["b 1\n", "b 2\n"], at=[1, 2])]), Score)
    assert shard.handle([scored(score.chains, [0.25, 0.5])]) == []
    assert none_of(tick(shard, 500), Compare), "one comparison of a tree at a time"
    assert status(shard) == TreeStatus.GROUPING
    rest = only(shard.handle([fakes.grouped(first)]), Compare)
    assert status(shard) == TreeStatus.GROUPING, "an answer about a part of them"
    assert sorted(rest.answers) == ["a", "b 1", "b 2"]
    assert shard.handle([fakes.grouped(rest)]) == []
    assert status(shard) == TreeStatus.FINISHED
    shard.handle([Committed(1)])
    steps, outcome, _ = result_of(shard)
    assert (steps, outcome) == (["b 2"], Outcome.BUDGET)


def test_only_what_has_been_said_is_withdrawn_at_the_end() -> None:
    shard, command = begin(voting(deadline_ms=500))
    found = tick(shard, 500)
    assert {type(each).__name__ for each in found} == {"Withdraw", "Commit"}
    assert none_of(found, Generate)
    assert shard.handle([sampled(command, ["a\n"])]) == [], "what comes all the same is not wanted"
