"""Counts what is asked of each group of engines, and says how many engines it is to have."""

import logging
from collections.abc import Iterable

from ramify.scheduler.actors.config import EngineGroup, FleetConfig, group_of
from ramify.scheduler.actors.lanes import LaneStatus
from ramify.scheduler.autoscaling import Demand, Standing, scaled

log = logging.getLogger(__name__)


class Autoscaler:
    """Remembers since when each group could do with less."""

    def __init__(self) -> None:
        self._spare_since_s: dict[str, float | None] = {}  # by the group's name

    def counts(self, fleet: FleetConfig, lanes: Iterable[LaneStatus], now_s: float) -> dict[str, int]:
        """How many engines each group is to have, by its name.

        Args:
            fleet: as it is.
            lanes: all engines, as each of the shards sees them.
            now_s: on a clock that never goes back.
        """
        known, found = [*lanes], {}
        for group in fleet.groups:
            before = fleet.counts[group.name]
            standing = Standing(before, self._spare_since_s.get(group.name))
            demand = demand_of(group, known)
            after = scaled(group.bounds, standing, demand, now_s)
            found[group.name], self._spare_since_s[group.name] = after.count, after.spare_since_s
            if after.count != before:
                log.warning("%s has %d engines from now on, not %d: %s", group.name, after.count, before, demand)
        self._spare_since_s = {name: self._spare_since_s[name] for name in found}
        return found


def demand_of(group: EngineGroup, lanes: Iterable[LaneStatus]) -> Demand:
    """What all shards ask of a group's engines."""
    mine = [lane for lane in lanes if group_of(lane.engine) == group.name]
    slots = {lane.engine: lane.slots for lane in mine if lane.slots}
    return Demand(sum(lane.waiting + lane.under_way for lane in mine), sum(slots.values()) / len(slots) if slots else 0)
