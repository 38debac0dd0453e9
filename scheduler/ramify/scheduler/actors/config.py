"""What a system consists of."""

from dataclasses import dataclass, field

from ramify.scheduler.actors.limits import ShellLimits

NAMESPACE = "ramify"  # of the named actors
DRAIN_S = 6.0  # a drain ends within this time: what is not committed by then is sampled again, by whoever has the slots next


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine."""

    name: str  # e.g. "local:0"; the actor is called ramify:engine:local:0
    spec: str  # see `engines.registry.load_engine`


@dataclass(frozen=True, slots=True)
class SystemConfig:
    """All that a supervisor starts and keeps alive."""

    store_url: str
    verifier_address: str
    engines: tuple[EngineConfig, ...]
    shards: int = 1
    limits: ShellLimits = field(default_factory=ShellLimits)  # of each shard
