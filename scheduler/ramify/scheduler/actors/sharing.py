"""How many trees each tenant may have begun in a shard."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ramify.scheduler.actors.standings import Standings
from ramify.scheduler.allocation import level, whole
from ramify.scheduler.plan import JobPlan

OVERLAP = 2  # times its share that a tenant may have, while trees of jobs of less priority than others' end


@dataclass(slots=True)
class Room:
    """What a tenant may have begun now."""

    trees: int  # in all
    share: int  # of the places
    held: Counter[int]  # its trees by the priorities of their jobs
    chains: int | None = None  # None: any number

    def fits(self, priority: int, chains: int) -> int:
        """How many trees of a job, of so many chains each: those of jobs of less priority are hardly in its way."""
        in_its_way = sum(count for known, count in self.held.items() if known >= priority)
        trees = max(0, min(self.trees, self.share - in_its_way, OVERLAP * self.share - self.held.total()))
        if self.chains is None:
            return trees
        return min(trees, max(self.chains // chains, int(not self.held)))  # one at least, if it has none

    def take(self, trees: int, priority: int, chains: int) -> None:
        """So many were begun."""
        self.trees -= trees
        if trees:
            self.held[priority] += trees
        if self.chains is not None:
            self.chains -= trees * chains


def rooms(
    wanting: Mapping[str, int], live: Sequence[tuple[JobPlan, int]], trees_max: int, slots: int, standings: Standings
) -> dict[str, Room]:
    """What some tenants, who want more, may have begun; first who has fewest trees for its weight.

    Each may have its share of the places, and a newcomer need not wait for it, be it a tenant or a job of higher priority.
    Nothing is taken from who had all places before: for a while there are more trees than places, up to three times as many, and
    who has more than its share begins none until enough of its trees have ended.

    Args:
        wanting: the highest priority of the jobs that want more, by tenant.
        live: open trees of each job here.
        trees_max: places for trees.
        slots: of the shard.
        standings: what tenants may have.
    """
    held, chains = dict[str, Counter[int]](), Counter[str]()
    for plan, count in live:
        held.setdefault(plan.tenant, Counter())[plan.priority] += count
        chains[plan.tenant] += count * plan.chains
    tenants = sorted({*wanting, *held})
    weights = np.array([standings.weight(tenant) for tenant in tenants])
    has = np.array([held[tenant].total() if tenant in held else 0 for tenant in tenants])
    wants = np.array([trees_max if tenant in wanting else 0 for tenant in tenants])
    places = np.maximum(wants, np.minimum(has, trees_max))
    share = np.maximum(whole(level(places.astype(np.float64), weights, trees_max), places, trees_max), 1)  # one at least
    shares = dict(zip(tenants, share.tolist(), strict=True))
    found = dict[str, Room]()
    for tenant in wanting:
        most = standings.chains_max(tenant, slots)
        left = None if most is None else most - chains[tenant]
        found[tenant] = Room(trees_max, shares[tenant], held.get(tenant, Counter()), left)
    room = np.array([found[tenant].fits(wanting[tenant], 1) if tenant in wanting else 0 for tenant in tenants])
    short = np.where(wants > 0, np.maximum(share - has, 0), 0)  # of their shares, which nobody's priorities put off
    free = max(OVERLAP * trees_max - int(has.sum()), min(int(short.sum()), trees_max))
    given = level(room.astype(np.float64), weights, free, has.astype(np.float64))
    for tenant, trees in zip(tenants, whole(given, room, free), strict=True):
        if tenant in wanting:
            found[tenant].trees = trees
    order = dict(zip(tenants, (has / weights).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda each: order[each[0]]))
