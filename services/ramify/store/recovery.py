"""Recovery: what the store holds of the open trees of some slots, for their new owner to go on from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.forest.parts import Part


@dataclass(frozen=True, slots=True)
class Restarted:
    """A tree that has lost steps to damage and goes on from before them."""

    job_id: str
    index: int  # of the problem
    segment_id: int  # its steps from this one on are lost
    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """Open trees of some slots: trees without a result, of jobs that run. Of what has ended there is nothing in here."""

    snapshots: Mapping[str, Sequence[Part]]  # by job id; no tree is in two of them
    steps: NodeRows  # the journal: committed steps that are not in the snapshots, in the order of their commits
    first_segment: Mapping[int, int]  # of every tree that has steps, by tree id: that of its first step, or one before it
    restarted: Sequence[Restarted]  # found damaged by this recovery
    bytes_read: int  # of bodies and indexes
    segments_read: int  # of which steps were taken
