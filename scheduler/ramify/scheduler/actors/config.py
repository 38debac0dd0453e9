"""What a system consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ramify.scheduler.actors.limits import ShellLimits
from ramify.store.database import Database
from ramify.store.work import Work

NAMESPACE = "ramify"  # of the named actors
DRAIN_S = 6.0  # a drain ends within this time: what is not committed by then is sampled again, by whoever has the slots next


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine."""

    name: str  # e.g. "local:0"; the actor is called ramify:engine:local:0
    spec: str  # see `engines.registry.load_engine`
    labels: Mapping[str, str] = field(default_factory=dict)  # of the nodes where it belongs, see `placed`
    gpus: float = 0  # that Ray keeps for it alone


@dataclass(frozen=True, slots=True)
class SystemConfig:
    """All that a supervisor starts and keeps alive."""

    store_url: str
    verifier_address: str
    engines: tuple[EngineConfig, ...]
    shards: int = 1
    limits: ShellLimits = field(default_factory=ShellLimits)  # of each shard
    work: Callable[[Database], Work] = Work  # what shards do with the store; measurements have others
    shard_labels: tuple[Mapping[str, str], ...] = ()  # of the nodes where the first shards belong, see `placed`; others: anywhere


def placed(labels: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that belongs on a node with some labels; while there is none with room, it runs on any other."""
    if not labels:
        return {}
    return {"label_selector": dict(labels), "fallback_strategy": [{"label_selector": {}}]}
