"""How many engines a group should have, by the steps that its engines have to sample."""

from dataclasses import dataclass, replace
from math import ceil

from ramify.scheduler.placement import FULL

IDLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between what a group may change, and how soon it shrinks."""

    count_min: int  # one at least
    count_max: int
    idle_s: float = IDLE_S  # for which one engine less would do before there is one less

    def hold(self, count: int) -> int:
        """The count that is nearest to another one."""
        return min(max(count, self.count_min), self.count_max)


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a group."""

    steps: int  # to be sampled at once: those that wait and those that are under way
    slots: float  # sequences that each of its engines runs at once; 0: none has said so yet


@dataclass(frozen=True, slots=True)
class Standing:
    """How a group stands."""

    count: int  # engines that there are to be, whether they are there yet or not
    spare_since_s: float | None = None  # since when one less would do, or since the last one left; None: it would not


def scaled(bounds: Bounds, standing: Standing, demand: Demand, now_s: float) -> Standing:
    """How a group should stand.

    It grows at once, and by all that it lacks: so that each engine has no more than `FULL` times its slots, which is where
    placement has work spill over to other engines. It shrinks by one engine when those that stay would have had no more than
    their slots for `idle_s`. What lies between the two keeps a group as it is, so a demand that stays the same changes it one way
    only; and as a demand counts what trees ask for, and not how fast it is served, more engines do not make it smaller or larger.

    Args:
        bounds: of the group.
        standing: as it was returned the last time.
        demand: now.
        now_s: on a clock that never goes back.
    """
    count = bounds.hold(standing.count)
    if not demand.slots:
        return Standing(count)
    needed = bounds.hold(ceil(demand.steps / (FULL * demand.slots)))
    if needed > count:
        return Standing(needed)
    if bounds.hold(ceil(demand.steps / demand.slots)) >= count:
        return Standing(count)
    if standing.spare_since_s is None:
        return Standing(count, now_s)
    if now_s - standing.spare_since_s < bounds.idle_s:
        return replace(standing, count=count)
    return Standing(count - 1, now_s)
