"""What can happen to a shard. Time, samples and scores all arrive as one of these; nothing else changes a shard."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.forest.forest import Hints
from ramify.scheduler.forest.parts import Part
from ramify.scheduler.plan import JobPlan


@dataclass(frozen=True, slots=True)
class TreesAdmitted:
    """T problems of one job are to be searched."""

    plan: JobPlan
    tree_id: NDArray[np.uint64]  # [T]
    problem: NDArray[np.int64]  # [T] index in the job
    root_id: NDArray[np.uint64]  # [T]
    tokens: NDArray[np.int32]  # the prompts, one after the other
    token_count: NDArray[np.int32]  # [T] at least 1
    text: NDArray[np.uint8]  # the problems as the verifier sees them, UTF-8
    text_count: NDArray[np.int32]  # [T]


@dataclass(frozen=True, slots=True)
class TreesRestored:
    """Trees of one job go on from a snapshot; what was in flight is asked for again."""

    plan: JobPlan
    part: Part


@dataclass(frozen=True, slots=True)
class SlotsReleased:
    """The next commit is to be the last word about the trees of some slots; then they are given up, for another shard to have."""

    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepsSampled:
    """R steps that an engine has sampled, or that the journal holds."""

    hint: Hints  # [R] as the command gave them; the ids are the truth
    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R]
    tokens: NDArray[np.int32]
    token_count: NDArray[np.int32]  # [R]
    text: NDArray[np.uint8]
    text_count: NDArray[np.int32]  # [R]
    logprob: NDArray[np.float32]  # [R]
    finish: NDArray[np.uint8]  # [R] a Finish
    score: NDArray[np.float32]  # [R] NaN where it is not known yet
    turn: NDArray[np.int32] | None = None  # [R] from the journal: the decision that was the first to know each; 0: none was
    committed: bool = False  # from the journal: no commit has to write them again
    message: str = ""  # why, where a finish is ERROR


@dataclass(frozen=True, slots=True)
class StepsScored:
    """Scores of R chains: one for each of their steps."""

    hint: Hints  # [R] last node of each chain
    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R]
    scores: NDArray[np.float32]  # [sum of lengths] first step first, one chain after the other; NaN: could not be scored
    length: NDArray[np.int32]  # [R] steps of each chain
    message: str = ""  # why, where a score is NaN


@dataclass(frozen=True, slots=True)
class StepsLost:
    """R nodes that an engine or the verifier took and will not answer."""

    hint: Hints
    tree_id: NDArray[np.uint64]
    node_id: NDArray[np.uint64]
    attempt: NDArray[np.uint8]  # [R] as the command gave them: the loss of an attempt counts once
    message: str


@dataclass(frozen=True, slots=True)
class AnswersGrouped:
    """R chains that have ended, compared by their answers."""

    tree_id: NDArray[np.uint64]  # [R] a tree's chains follow each other
    node_id: NDArray[np.uint64]  # [R] last node of each chain
    group: NDArray[np.int32]  # [R] from 0 in each tree, equal for equal answers; -1: no answer


@dataclass(frozen=True, slots=True)
class AnswersChecked:
    """Verdicts of a job's checker on R trees."""

    tree_id: NDArray[np.uint64]  # [R]
    verdict: NDArray[np.uint8]  # [R] a Verdict; UNKNOWN where the checker could not say


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit is durable."""

    sequence: int


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """A job's trees are to be given up without a result."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""

    now_ms: int  # since the epoch, on the store's clock


Event = (
    TreesAdmitted
    | TreesRestored
    | SlotsReleased
    | StepsSampled
    | StepsScored
    | StepsLost
    | AnswersGrouped
    | AnswersChecked
    | Committed
    | JobCancelled
    | Tick
)


def joined(events: Sequence[Event]) -> list[Event]:
    """The same events, but samples that follow each other as one, and so scores: each takes its time, however few rows it has."""
    found = list[Event]()
    for (kind, *_), run in groupby(events, key=_alike):
        some = [*run]
        if len(some) > 1 and kind in (StepsSampled, StepsScored):
            names = [each.name for each in fields(some[0]) if isinstance(getattr(some[0], each.name), np.ndarray)]
            columns: dict[str, Any] = {name: np.concatenate([getattr(each, name) for each in some]) for name in names}
            some = [replace(some[0], **columns)]
        found += some
    return found


def _alike(event: Event) -> tuple[Any, ...]:
    """What two events must have in common to be one."""
    match event:
        case StepsSampled():
            return StepsSampled, event.committed, event.turn is None, event.message
        case StepsScored():
            return StepsScored, event.message
        case _:
            return (type(event),)


def same_length(*columns: NDArray[Any]) -> None:
    """Columns of one event must be of one length."""
    if len({len(column) for column in columns}) > 1:
        raise IllegalEvent("an event's columns differ in length")


def holds(values: NDArray[Any], counts: NDArray[np.int32]) -> None:
    """An event's runs must fill their arena."""
    if (counts < 0).any() or int(counts.sum(dtype=np.int64)) != len(values):
        raise IllegalEvent("an event's counts do not add up to its values")
