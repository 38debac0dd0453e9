"""How many trees each tenant may have begun in a shard."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ramify.scheduler.actors.standings import Standings
from ramify.scheduler.allocation import level, whole
from ramify.scheduler.plan import JobPlan

OVERLAP = 2  # times as many trees as there are places, while those who had all of them give some up


@dataclass(slots=True)
class Room:
    """What a tenant may have begun now."""

    trees: int
    chains: int | None = None  # None: any number
    idle: bool = False  # it has no tree: so it may have one, however many chains that has

    def fits(self, chains: int) -> int:
        """How many trees of so many chains each."""
        if self.chains is None:
            return self.trees
        return min(self.trees, max(self.chains // chains, int(self.idle)))

    def take(self, trees: int, chains: int) -> None:
        """So many were begun."""
        self.trees -= trees
        self.idle &= not trees
        if self.chains is not None:
            self.chains -= trees * chains


def rooms(
    wanting: Collection[str], live: Sequence[tuple[JobPlan, int]], trees_max: int, slots: int, standings: Standings
) -> dict[str, Room]:
    """What some tenants, who want more, may have begun; first who has fewest trees for its weight.

    Args:
        wanting: tenants.
        live: open trees of each job here.
        trees_max: places for trees.
        slots: of the shard.
        standings: what tenants may have.
    """
    trees, chains = Counter[str](), Counter[str]()
    for plan, count in live:
        trees[plan.tenant] += count
        chains[plan.tenant] += count * plan.chains
    places = _places(wanting, trees, trees_max, standings.weight)
    found = dict[str, Room]()
    for tenant in sorted(wanting, key=lambda tenant: (trees[tenant] / standings.weight(tenant), tenant)):
        most = standings.chains_max(tenant, slots)
        found[tenant] = Room(places[tenant], None if most is None else most - chains[tenant], not trees[tenant])
    return found


def _places(wanting: Collection[str], trees: Mapping[str, int], trees_max: int, weight: Callable[[str], float]) -> dict[str, int]:
    """Trees that tenants may begin: up to their share of the places, which a newcomer need not wait for.

    Nothing is taken from who had all before the newcomer came. For a while there are more trees than places, and who has more
    than its share begins none until enough of its trees have ended.
    """
    tenants = sorted({*wanting, *trees})
    weights = np.array([weight(tenant) for tenant in tenants])
    has = np.array([trees.get(tenant, 0) for tenant in tenants])
    wants = np.where([tenant in wanting for tenant in tenants], trees_max, np.minimum(has, trees_max))
    share = whole(level(wants.astype(np.float64), weights, trees_max), wants, trees_max)
    room = np.maximum(np.maximum(share, np.isin(tenants, [*wanting]) & (has == 0)) - has, 0)  # one tree at least, if it has none
    free = max(0, OVERLAP * trees_max - int(has.sum()))
    given = whole(level(room.astype(np.float64), weights, free), room, free)
    return dict(zip(tenants, given, strict=True))
