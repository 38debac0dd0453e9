"""What a system consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.placement import Terms
from ramify.store.database import Database
from ramify.store.work import Work
from ramify.tls import ClientTls
from ramify.verifier.client import VerifierClient

NAMESPACE = "ramify"  # of the named actors
DRAIN_S = (
    6.0  # a drain of all ends within this time: what is not committed by then is sampled again, by whoever has the slots next
)
REMOVE_S = 60.0  # one of a single shard: nobody waits for it, so it may take as long as a slow store does
REGION_LABEL = "ray.io/region"  # of a node
RAYS_REGION_LABEL = "ray.io/availability-region"  # which Ray itself takes from RAY_NODE_REGION


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine."""

    name: str  # e.g. "local:0"; the actor is called ramify:engine:local:0
    spec: str  # see `engines.registry.load_engine`
    region: str = ""  # of the nodes where it may run; empty: any
    labels: Mapping[str, str] = field(default_factory=dict)  # that these nodes have besides
    gpus: float = 0  # that Ray keeps for it alone
    strays: bool = False  # whether it runs on any other node while there is none with its labels


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """All engines, and what regions cost. May change while jobs run."""

    engines: tuple[EngineConfig, ...]
    terms: Terms = field(default_factory=Terms)
    region_label: str = REGION_LABEL  # by which nodes tell their region
    revision: int = 0  # the higher one is the later one


@dataclass(frozen=True, slots=True)
class SystemConfig:
    """All that a supervisor starts and keeps alive."""

    store_url: str
    verifier_address: str  # see `VerifierClient`
    fleet: FleetConfig
    shards: int = 1
    limits: ShellLimits = field(default_factory=ShellLimits)  # of each shard
    work: Callable[[Database], Work] = Work  # what shards do with the store; measurements have others
    labels: Mapping[str, str] = field(default_factory=dict)  # of the nodes where supervisor and shards belong, see `straying`
    shard_labels: tuple[Mapping[str, str], ...] = ()  # of those where the first shards do instead
    verifier_tls: ClientTls | None = None  # its files are where the shards are; None: no TLS

    def verifier(self) -> VerifierClient:
        """A client of the verifier, for the event loop that calls it."""
        return VerifierClient(self.verifier_address, tls=self.verifier_tls)


def shard_labels(config: SystemConfig, index: int) -> Mapping[str, str]:
    """Labels of the nodes where a shard belongs."""
    return config.shard_labels[index] if index < len(config.shard_labels) else config.labels


def selectors(engine: EngineConfig, region_label: str) -> list[dict[str, str]]:
    """Labels of the nodes where an engine may run: those of any of these."""
    keys = [region_label, *([RAYS_REGION_LABEL] if region_label == REGION_LABEL else [])]
    found = [{key: engine.region, **engine.labels} for key in keys] if engine.region else [dict(engine.labels)]
    return [*found, *([{}] if engine.strays and found != [{}] else [])]


def placed(choices: list[dict[str, str]]) -> dict[str, Any]:
    """Options of an actor that belongs on a node with some labels, or else with others.

    While there is none with any of these, Ray keeps it waiting and says nothing.
    """
    if choices == [{}]:
        return {}
    return {"label_selector": choices[0], "fallback_strategy": [{"label_selector": choice} for choice in choices[1:]]}


def straying(labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Of nodes with some labels, or else of any."""
    return [dict(labels), {}] if labels else [{}]
