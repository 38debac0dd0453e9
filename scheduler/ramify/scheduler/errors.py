"""Errors of the scheduler. The user's own faults are found at submission (`ramify.gateway`), so all of these are ours."""

from collections.abc import Sequence


class SchedulerError(Exception):
    """Base of every error that the scheduler raises."""


class IllegalEvent(SchedulerError):
    """An event that can't follow what the shard has seen; nothing was changed by it."""

    commands: Sequence[object] = ()
    """What the events before it, of the same call, want done."""


class EngineError(SchedulerError):
    """A batch that an engine can't take, or an engine that can't go on."""


class EngineAway(EngineError):
    """An engine that is not there: its server, elsewhere, does not answer or turns us away, or no node can have it.

    It may be back, without a new process of ours.
    """


class FleetError(SchedulerError):
    """A fleet that can't be: the message is for the operator who has written it down."""
