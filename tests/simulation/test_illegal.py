"""An event that cannot be is refused, and changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.commands import Generate, Score
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.events import (
    AnswersChecked,
    AnswersGrouped,
    Committed,
    Event,
    JobCancelled,
    StepsLost,
    StepsSampled,
    StepsScored,
    Tick,
    TreesAdmitted,
)
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.shard import Shard, ShardLimits
from tests.simulation import fakes
from tests.simulation.shards import snapshot, trace
from tests.simulation.world import FLUSH_MS, Work, admitted, plan

WORK = Work(plan(n=6, keep=3, checker="rule"), (0, 1, 2))


class Stage:
    """A shard in the middle of things: some nodes are sampled, some scored, some neither, and a commit is open."""

    def __init__(self) -> None:
        self.shard = Shard(ShardLimits(flush_ms=FLUSH_MS))
        self.admitted = admitted(WORK, (0, 1))
        (asked,) = self.shard.handle([self.admitted])
        self.root_hint = self.shard.forest.hints(fakes.i32([0]))
        assert isinstance(asked, Generate)
        self.asked = asked
        found = self.shard.handle([fakes.sampled(asked, np.arange(6)), Tick(100)])
        (score,) = (command for command in found if isinstance(command, Score))
        self.chains = score.chains
        self.scored = fakes.scored(self.chains, np.arange(2))
        self.shard.handle([self.scored])
        self.rest = replace(fakes.sampled(self.asked, np.arange(6, 12)), turn=fakes.i32([0] * 6))
        self.unscored = fakes.scored(self.chains, np.arange(2, len(self.chains.length)))
        statuses = {*self.shard.forest.status[: self.shard.forest.size].tolist()}
        assert {Status.SAMPLING, Status.SCORING, Status.OPEN, Status.EXPANDED} <= statuses


def longer(event: Any, name: str) -> Any:
    """The event with one column too long by an entry."""
    column = getattr(event, name)
    return replace(event, **{name: np.append(column, column[:1])})


def too_long(make: Callable[[Stage], Event], name: str) -> Callable[[Stage], Event]:
    """How to make an event with one column too long."""

    def event(stage: Stage) -> Event:
        found: Event = longer(make(stage), name)
        return found

    return event


def with_first(event: Any, name: str, value: float) -> Any:
    """The event with another first entry in a column."""
    column = getattr(event, name).copy()
    column[0] = value
    return replace(event, **{name: column})


def unsampled_score(stage: Stage) -> StepsScored:
    """A score for a node that an engine is still at work on."""
    return StepsScored(
        stage.asked.hint[-1:], stage.asked.tree_id[-1:], stage.asked.node_id[-1:], np.zeros(1, np.float32), fakes.i32([1])
    )


def root_score(stage: Stage) -> StepsScored:
    return StepsScored(
        stage.root_hint, stage.admitted.tree_id[:1], stage.admitted.root_id[:1], np.zeros(1, np.float32), fakes.i32([1])
    )


def two_scores_for_one_step(stage: Stage) -> StepsScored:
    event = stage.unscored
    return replace(event, scores=np.repeat(event.scores, 2), length=event.length * 2)


def no_scores(stage: Stage) -> StepsScored:
    return replace(stage.unscored, scores=np.empty(0, np.float32), length=stage.unscored.length * 0)


def grouping(stage: Stage) -> AnswersGrouped:
    """Chains that have ended, compared."""
    return AnswersGrouped(stage.scored.tree_id, stage.scored.node_id, fakes.i32([0, 0]))


ADMITTED = ("tree_id", "problem", "root_id", "token_count", "text_count", "tokens", "text")
SAMPLED = ("hint", "tree_id", "node_id", "token_count", "text_count", "logprob", "finish", "score", "tokens", "text", "turn")
SCORED = ("hint", "tree_id", "node_id", "length", "scores")
LOST = ("hint", "tree_id", "node_id", "attempt")
GROUPED = ("tree_id", "node_id", "group")

ILLEGAL: dict[str, Callable[[Stage], Event]] = {
    **{f"TreesAdmitted.{name} too long": too_long(lambda stage: admitted(WORK, (2,)), name) for name in ADMITTED},
    **{f"StepsSampled.{name} too long": too_long(lambda stage: stage.rest, name) for name in SAMPLED},
    **{f"StepsScored.{name} too long": too_long(lambda stage: stage.unscored, name) for name in SCORED},
    **{f"AnswersGrouped.{name} too long": too_long(grouping, name) for name in GROUPED},
    **{f"StepsLost.{name} too long": too_long(lambda stage: fakes.lost(stage.asked, np.arange(6, 8)), name) for name in LOST},
    "AnswersChecked.verdict too long": lambda stage: AnswersChecked(stage.admitted.tree_id, np.zeros(1, np.uint8)),
    "an unknown verdict": lambda stage: AnswersChecked(stage.admitted.tree_id[:1], np.array([9], np.uint8)),
    "a tree twice": lambda stage: admitted(WORK, (2, 2)),
    "an empty prompt": lambda stage: replace(admitted(WORK, (2,)), tokens=fakes.i32([]), token_count=fakes.i32([0])),
    "a finish of 0": lambda stage: with_first(stage.rest, "finish", 0),
    "an unknown finish": lambda stage: with_first(stage.rest, "finish", 6),
    "a negative count": lambda stage: with_first(stage.rest, "token_count", -1),
    "a negative text count": lambda stage: with_first(stage.rest, "text_count", -1),
    "a score before its step": unsampled_score,
    "a score of a root": root_score,
    "two scores for one step": two_scores_for_one_step,
    "a chain without scores": no_scores,
    "Committed from the future": lambda stage: Committed(2),
}


def test_the_stage_is_legal() -> None:
    """What the illegal events are made of goes through as it is."""
    stage = Stage()
    before = snapshot(stage.shard)
    stage.shard.handle([stage.rest, stage.unscored, admitted(WORK, (2,)), Committed(1)])
    assert snapshot(stage.shard) != before
    stage.shard.forest.validate()


@pytest.mark.parametrize("kind", ILLEGAL)
def test_an_illegal_event_changes_nothing(kind: str) -> None:
    stage = Stage()
    event, before = ILLEGAL[kind](stage), snapshot(stage.shard)
    with pytest.raises(IllegalEvent):
        stage.shard.handle([event])
    after = snapshot(stage.shard)
    assert [name for name in before if before[name] != after[name]] == []
    stage.shard.forest.validate()


@pytest.mark.parametrize("kind", ILLEGAL)
def test_events_before_an_illegal_one_count_and_those_after_it_do_not(kind: str) -> None:
    stage, alone = Stage(), Stage()
    wanted = alone.shard.handle([alone.unscored, admitted(WORK, (2,))])
    assert any(isinstance(command, Generate) for command in wanted)
    with pytest.raises(IllegalEvent) as caught:
        stage.shard.handle([stage.unscored, admitted(WORK, (2,)), ILLEGAL[kind](stage), stage.rest, Committed(1)])
    assert trace(caught.value.commands) == trace(wanted), "what the events before it want done is not lost"
    assert snapshot(stage.shard) == snapshot(alone.shard)
    stage.shard.forest.validate()


@pytest.mark.parametrize("kind", [TreesAdmitted, StepsSampled, StepsScored, StepsLost, AnswersGrouped])
def test_every_column_of_an_event_is_checked(kind: type[Any]) -> None:
    """A new column of an event must be put on the lists above."""
    lists = {TreesAdmitted: ADMITTED, StepsSampled: SAMPLED, StepsScored: SCORED, StepsLost: LOST}
    lists[AnswersGrouped] = GROUPED
    others = {"plan", "committed", "message"}
    assert {*lists[kind]} == {*kind.__dataclass_fields__} - others


def test_an_event_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Tick(1).now_ms = 2  # type: ignore[misc]


def test_empty_events_are_legal_and_change_nothing() -> None:
    stage = Stage()
    before, nothing = snapshot(stage.shard), np.empty(0, np.int64)
    empty: list[Event] = [
        fakes.sampled(stage.asked, nothing),
        fakes.scored(stage.chains, nothing),
        fakes.lost(stage.asked, nothing),
        AnswersChecked(stage.admitted.tree_id[:0], np.zeros(0, np.uint8)),
        AnswersGrouped(stage.admitted.tree_id[:0], stage.admitted.root_id[:0], fakes.i32([])),
        admitted(WORK, ()),
    ]
    assert stage.shard.handle(empty) == []
    assert snapshot(stage.shard) == before


@pytest.mark.parametrize("kind", ["sampled", "scored", "lost"])
def test_a_node_that_is_twice_in_one_event_counts_once(kind: str) -> None:
    once, twice = Stage(), Stage()
    rows = np.arange(6, 12)
    unscored = np.arange(2, len(once.chains.length))
    make: dict[str, Callable[[Stage, int], Event]] = {
        "sampled": lambda stage, times: fakes.sampled(stage.asked, np.tile(rows, times)),
        "scored": lambda stage, times: fakes.scored(stage.chains, np.tile(unscored, times)),
        "lost": lambda stage, times: fakes.lost(stage.asked, np.tile(rows, times)),
    }
    found = [trace(stage.shard.handle([make[kind](stage, times)])) for stage, times in ((once, 1), (twice, 2))]
    assert found[0] == found[1]
    assert snapshot(once.shard) == snapshot(twice.shard)
    twice.shard.forest.validate()


def test_a_chain_of_two_steps_needs_two_scores() -> None:
    stage = Stage()
    found = stage.shard.handle([stage.rest, stage.unscored])
    while not any(isinstance(command, Generate) for command in found):
        asked = next(command.chains for command in found if isinstance(command, Score))
        found = stage.shard.handle([fakes.scored(asked, np.arange(len(asked.length)))])
    deeper = next(command for command in found if isinstance(command, Generate))
    found = stage.shard.handle([fakes.sampled(deeper, np.arange(len(deeper.hint)))])
    chains = next(command.chains for command in found if isinstance(command, Score))
    assert {len(steps) for _, steps in chains.texts()} == {2}
    complete, before = fakes.scored(chains, np.arange(1)), snapshot(stage.shard)
    with pytest.raises(IllegalEvent, match="one score for each step"):
        stage.shard.handle([replace(complete, scores=complete.scores[:1], length=complete.length - 1)])
    assert snapshot(stage.shard) == before


def test_what_went_wrong_is_forgotten_with_a_cancelled_job() -> None:
    stage = Stage()
    errors = with_first(stage.rest, "finish", Finish.ERROR)
    stage.shard.handle([errors])
    assert stage.shard.messages
    stage.shard.handle([JobCancelled(WORK.plan.job_id)])
    assert stage.shard.messages == {}
