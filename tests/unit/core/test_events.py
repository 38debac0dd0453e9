"""Events that are handled as one."""

from dataclasses import fields, replace
from typing import Any

import numpy as np

from ramify.scheduler.events import Event, StepsSampled, StepsScored, Tick, joined

NODES = np.array([1, 2, 3], np.uint64)


def sampled(*nodes: int, **other: Any) -> StepsSampled:
    node_id, one = np.array(nodes, np.uint64), np.ones(len(nodes), np.int32)
    hint, text, none = np.zeros(len(nodes), np.int64), np.full(len(nodes), 120, np.uint8), np.zeros(len(nodes), np.float32)
    finish = np.ones(len(nodes), np.uint8)
    return StepsSampled(hint, node_id, node_id, one, one, text, one, none, finish, none, **other)


def scored(*nodes: int, message: str = "") -> StepsScored:
    node_id, one = np.array(nodes, np.uint64), np.ones(len(nodes), np.int32)
    return StepsScored(np.zeros(len(nodes), np.int64), node_id, node_id, one.astype(np.float32), one, message)


def nodes(event: Event) -> list[int]:
    return getattr(event, "node_id", NODES[:0]).tolist()  # type: ignore[no-any-return]


def test_what_follows_each_other_and_is_alike_is_one_event_and_nothing_changes_places() -> None:
    turn = np.zeros(1, np.int32)
    events: list[Event] = [sampled(1, 2), sampled(3), scored(1), scored(2, 3), Tick(1), Tick(2), sampled(4)]
    events += [sampled(5, message="it could not"), sampled(6, turn=turn, committed=True), sampled(7, turn=turn, committed=True)]
    found = joined(events)
    assert [(type(event), nodes(event)) for event in found] == [
        (StepsSampled, [1, 2, 3]),
        (StepsScored, [1, 2, 3]),
        (Tick, []),
        (Tick, []),
        (StepsSampled, [4]),
        (StepsSampled, [5]),
        (StepsSampled, [6, 7]),
    ]
    whole = replace(sampled(6, 7, turn=np.zeros(2, np.int32)), committed=True)
    for column in fields(whole):
        assert np.array_equal(getattr(found[-1], column.name), getattr(whole, column.name)), column.name
