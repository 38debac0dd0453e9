"""Prints a hash of all that befalls the shards of some stormy worlds: the same under any PYTHONHASHSEED.

Events are what commands lead to, and the worlds draw chance for each command in turn: with other commands come other events.
"""

import hashlib

from ramify.scheduler.events import Event
from ramify.scheduler.shard import Shard
from tests.simulation.jobs import WORKS
from tests.simulation.races import RACES
from tests.simulation.shards import trace
from tests.simulation.world import ROUGH, World


def replayed(events: list[list[Event]], world: World) -> list[str]:
    """What a fresh shard wants done when it is fed the same."""
    shard = Shard(world.limits)
    return [trace(shard.handle(each)) for each in events]


def main() -> None:
    digest = hashlib.sha256()
    races = {f"{name} without a barrier": work for name, work in RACES.items()}
    for name, work in [*(WORKS | races).items()][::2]:
        world = World(work, ROUGH, seed=5).run()
        for life in world.lives:
            digest.update("\n".join([name, *(trace(events) for events in life)]).encode())
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
