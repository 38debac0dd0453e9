"""The named actors of a system, as whoever looks for them finds them."""

import contextlib
from collections.abc import Iterable
from typing import Any

import ray

from ramify.scheduler.actors.config import NAMESPACE

SUPERVISOR = "ramify:supervisor"


def actor_names() -> list[str]:
    """Names of the actors that there are of ours."""
    actors: Any = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]


def end_actors(names: Iterable[str]) -> None:
    """End actors, the supervisor before those that it looks after."""
    for name in sorted(names, key=lambda name: name != SUPERVISOR):
        with contextlib.suppress(ValueError):  # it has ended meanwhile
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
