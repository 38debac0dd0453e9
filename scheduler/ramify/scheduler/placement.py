"""Which engine a tree's steps go to, and what regions cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.ids import mix64

SLACK = 0.03  # by which an engine's load may exceed its fair part before keys go elsewhere
FULL = 1.5  # times its slots that an engine may have at any rate: a batch runs, half of another waits at its door
NOWHERE = -1
FIRST = np.uint64(2**64 - 1)  # above any hash


@dataclass(frozen=True, slots=True)
class Region:
    """What it means to sample there."""

    price_per_hour: float = 0.0  # of an engine, in the operator's currency
    round_trip_ms: float = 0.0  # from the shards
    carbon_g_per_kwh: float = 0.0  # of its electricity


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a job's steps may be sampled, and what matters to it; what is None is up to the operator."""

    regions: tuple[str, ...] = ()  # empty: any
    price_weight: float | None = None
    delay_weight: float | None = None
    carbon_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What regions cost, and what matters to the operator."""

    regions: Mapping[str, Region] = field(default_factory=dict)  # those that are not here cost nothing
    price_weight: float = 1.0
    delay_weight: float = 0.01  # an hour's worth of one ms of round trip, in the unit of prices
    carbon_weight: float = 0.0  # an hour's worth of one g/kWh

    def cost(self, region: str, routing: Routing) -> float:
        """What an hour of an engine there costs a job, all told."""
        there = self.regions.get(region, Region())
        weights = (
            (routing.price_weight, self.price_weight, there.price_per_hour),
            (routing.delay_weight, self.delay_weight, there.round_trip_ms),
            (routing.carbon_weight, self.carbon_weight, there.carbon_g_per_kwh),
        )
        return sum((operators if jobs is None else jobs) * amount for jobs, operators, amount in weights)


@dataclass(frozen=True, slots=True)
class Fleet:
    """E engines to choose from, at least one."""

    key: NDArray[np.uint64]  # [E] their ids
    slots: NDArray[np.int64]  # [E] sequences that each runs at once, one at least
    load: NDArray[np.int64]  # [E] steps that each has, waiting and under way
    cost: NDArray[np.float64]  # [E] what each costs; only which costs less than which matters


def place(
    keys: NDArray[np.uint64], count: NDArray[np.int64], home: NDArray[np.int64], fleet: Fleet, slack: float = SLACK
) -> NDArray[np.int64]:
    """Place keys on engines: where they were, else where it costs least, by rendezvous hashing, with bounded loads.

    A key stays on the engine that has its cache. One that has been nowhere, or whose engine is gone, goes to one of the engines
    that cost least, the one that has the highest hash of both, so that a lost engine moves its own keys alone (Thaler and
    Ravishankar 1998). An engine whose load has come to `1 + slack` times its fair part, and is full, takes no more: a key then
    goes to the engine of the next highest hash, or of the next higher cost, and is at home there (the bound of Mirrokni, Thorup
    and Zadimoghaddam 2018, arXiv:1608.01350, section 2). A tight bound moves fewer keys than a loose one: what is even early need
    not be evened out late, by keys with longer prefixes. No bound is less than `FULL` times an engine's slots: few steps are
    not scattered for the sake of evenness, and what costs more is not used before what costs less has more than it can run.

    Keys whose home costs more than engines with idle slots leave it for those, as many as there are slots. What makes keys spill
    over (`FULL` batches on each cheaper engine) is more than what makes them return (less than one), so none goes to and fro.

    Args:
        keys: `[K]` what is placed, each once, e.g. tree ids. A key is not divided: the last that an engine takes may exceed its
            bound.
        count: `[K]` steps that each key stands for.
        home: `[K]` index of the engine where each key was; `NOWHERE`: on none of these.
        fleet: engines.
        slack: at least 0.

    Returns:
        `[K]` index of each key's engine.
    """
    tier = np.unique(fleet.cost, return_inverse=True)[1]
    home = _returned(count, home, fleet, tier)
    score, rank = mix64(keys[:, None], fleet.key[None, :]), np.tile(tier, (len(keys), 1))
    known = np.flatnonzero(home != NOWHERE)
    score[known, home[known]], rank[known, home[known]] = FIRST, -1
    best = np.lexsort((~score, rank), axis=1)
    total = int(fleet.load.sum() + count.sum())
    room = np.maximum((1 + slack) * total * fleet.slots / fleet.slots.sum(), FULL * fleet.slots) - fleet.load
    at, left = best[:, 0].copy(), np.arange(len(keys))
    for choice in range(len(fleet.key)):  # the rooms add up to more than is to be placed: each key finds one
        wanted, over = best[left, choice], []
        for engine in np.flatnonzero(np.bincount(wanted)).tolist():
            mine = left[wanted == engine]
            mine = mine[np.argsort(~score[mine, engine], kind="stable")]  # those that were here before those that come
            before = np.cumsum(count[mine]) - count[mine]
            fits = before < room[engine]
            at[mine[fits]] = engine
            room[engine] -= count[mine[fits]].sum()
            over.append(mine[~fits])
        left = np.concatenate([np.empty(0, np.int64), *over])
    return at


def _returned(count: NDArray[np.int64], home: NDArray[np.int64], fleet: Fleet, tier: NDArray[np.int64]) -> NDArray[np.int64]:
    """`[K]` the homes, less those left for engines that cost less: those that cost most first, as far as slots are idle."""
    if not tier.any():
        return home
    home, here, was = home.copy(), home != NOWHERE, tier[home]
    load = fleet.load + np.bincount(home[here], count[here], len(fleet.key)).astype(np.int64)
    idle = np.maximum(fleet.slots - load, 0)
    taken = int(count[~here].sum())
    for costly in range(int(tier.max()), 0, -1):
        mine = np.flatnonzero(here & (was == costly))
        leaves = mine[taken + np.cumsum(count[mine]) <= idle[tier < costly].sum()]
        taken += int(count[leaves].sum())
        home[leaves] = NOWHERE
    return home
