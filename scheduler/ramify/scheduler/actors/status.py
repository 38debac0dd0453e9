"""How a shell stands, for who looks after it and for who tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from ramify.scheduler.actors.lanes import LaneStatus, Queued
from ramify.store.leases import Wait
from ramify.store.tenants import Standing


@dataclass(frozen=True, slots=True)
class ShellStatus:
    """How a shell stands."""

    owner: str
    state: str  # "working", or why nothing is sampled
    slots: int
    settling: int  # of them, those of which not all is here yet
    trees: int
    chains: int  # of growing trees, in flight or in the frontier
    uncommitted_steps: int
    committed_steps: int  # since it was started
    commits: int
    waits: tuple[Wait, ...]
    lanes: tuple[LaneStatus, ...]  # engines
    queued: Mapping[str, Queued]  # steps that wait to be sent, by tenant; of one that is left out: none
    tenant_trees: Mapping[str, int]  # live ones
    moved_tokens: int  # see `Dispatcher`
    unscored_chains: int  # that wait for the verifier, or are there
    models_away: int  # of the verifier, or overloaded
    commit_lag_s: float  # how long the commit that is being written has taken
    store_silent_s: float  # since the store was last heard of
    store_full: bool  # its disk: a commit waits for room
    tenants: Mapping[str, Standing]  # by name, as the store said last
