"""What a system consists of."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.autoscaling import Bounds
from ramify.scheduler.placement import Terms

if TYPE_CHECKING:  # an engine's process has use for none of them, and they are slow to import
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
CLUSTER_CHARS_MAX = 40  # of a Ray cluster's name in its shards' names: the store has room for 64 characters
HASH_CHARS = 8


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One engine."""

    name: str  # e.g. "local:0"; the actor is called ramify:engine:local:0
    spec: str  # see `engines.registry.load_engine`
    region: str = ""  # of the nodes where it may run; empty: any
    labels: Mapping[str, str] = field(default_factory=dict)  # that these nodes have besides
    gpus: float = 0  # that Ray keeps for it alone
    cpus: float = 0  # likewise
    strays: bool = False  # whether it runs on any other node while there is none with its labels


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """Engines that are alike, called NAME:0, NAME:1, ..., of which there may be more or fewer."""

    engine: EngineConfig  # each of them, under the name that they share
    count: int  # to start with
    bounds: Bounds

    @property
    def name(self) -> str:
        """What comes before the colon of their names."""
        return self.engine.name

    def engines(self, count: int) -> list[EngineConfig]:
        """The first of them."""
        return [replace(self.engine, name=f"{self.name}:{index}") for index in range(count)]


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """All engines, and what regions cost. May change while jobs run."""

    engines: tuple[EngineConfig, ...]
    terms: Terms = field(default_factory=Terms)
    region_label: str = REGION_LABEL  # by which nodes tell their region
    revision: int = 0  # the higher one is the later one
    groups: tuple[EngineGroup, ...] = ()  # whose engines come and go by themselves, as there is work for them

    @property
    def counts(self) -> Counter[str]:
        """How many engines there are to be, by what comes before the colon of their names."""
        return Counter(group_of(engine.name) for engine in self.engines)

    def scaled(self, counts: Mapping[str, int]) -> "FleetConfig":
        """With so many engines of each group, within its bounds; where `counts` has none, as many as to start with."""
        names = {group.name for group in self.groups}
        others = [engine for engine in self.engines if group_of(engine.name) not in names]
        grouped = [
            engine for group in self.groups for engine in group.engines(group.bounds.hold(counts.get(group.name) or group.count))
        ]
        return replace(self, engines=(*others, *grouped))


@dataclass(frozen=True, slots=True)
class SystemConfig:
    """All that a supervisor starts and keeps alive."""

    store_url: str
    verifier_address: str  # see `VerifierClient`
    fleet: FleetConfig
    shards: int = 1
    limits: ShellLimits = field(default_factory=ShellLimits)  # of each shard
    work: "Callable[[Database], Work] | None" = None  # what shards do with the store, for measurements; None: `Work`
    labels: Mapping[str, str] = field(default_factory=dict)  # of the nodes where supervisor and shards belong
    shard_labels: tuple[Mapping[str, str], ...] = ()  # of those where the first shards do instead
    verifier_tls: "ClientTls | None" = None  # its files are where the shards are; None: no TLS
    strays: bool = True  # whether supervisor and shards run on any other node while there is none with their labels
    shard_cpus: float = 0  # that Ray keeps for each shard: as many as a node has, and no other shard is there
    cluster: str = ""  # of Ray; tells its shards from those of others that share the store

    def verifier(self) -> "VerifierClient":
        """A client of the verifier, for the event loop that calls it."""
        from ramify.verifier.client import VerifierClient

        return VerifierClient(self.verifier_address, tls=self.verifier_tls)


def shard_labels(config: SystemConfig, index: int) -> Mapping[str, str]:
    """Labels of the nodes where a shard belongs."""
    return config.shard_labels[index] if index < len(config.shard_labels) else config.labels


def shard_choices(config: SystemConfig, index: int) -> list[dict[str, str]]:
    """Labels of the nodes where a shard may run: those of any of these."""
    return _choices(shard_labels(config, index), strays=config.strays)


def supervisor_choices(config: SystemConfig) -> list[dict[str, str]]:
    """Likewise, for the supervisor."""
    return _choices(config.labels, strays=config.strays)


def shard_owner(config: SystemConfig, index: int, incarnation: str) -> str:
    """As whom a shard holds slots in the store, e.g. shard:0@9f2c04d1, or blue/shard:0@9f2c04d1 of the Ray cluster blue."""
    cluster = config.cluster
    if len(cluster) > CLUSTER_CHARS_MAX:
        digest = hashlib.sha256(cluster.encode()).hexdigest()[:HASH_CHARS]
        cluster = f"{cluster[: CLUSTER_CHARS_MAX - HASH_CHARS - 1]}-{digest}"
    return f"{cluster}/shard:{index}@{incarnation}" if cluster else f"shard:{index}@{incarnation}"


def group_of(engine: str) -> str:
    """What comes before the colon of an engine's name."""
    return engine.rpartition(":")[0]


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


def unplaceable(choices: Sequence[Mapping[str, str]], gpus: float, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why none of Ray's nodes can have an actor; empty: one can."""
    alive = [node for node in nodes if node["Alive"]]
    fit = [node for node in alive if any(choice.items() <= node["Labels"].items() for choice in choices)]
    wanted = " or ".join(", ".join(f"{key}={value}" for key, value in choice.items()) for choice in choices)
    if not fit:
        keys = {key for choice in choices for key in choice}
        there = Counter(", ".join(f"{key}={node['Labels'][key]}" for key in sorted(keys & {*node["Labels"]})) for node in alive)
        have = "; ".join(f"{count} with {labels or 'none of these labels'}" for labels, count in sorted(there.items()))
        return f"no node has the label {wanted}; there are {have}: start one with `ray start --labels`, or mend the labels"
    most = max(node["Resources"].get("GPU", 0) for node in fit)
    if most < gpus:
        return f"it needs {gpus:g} GPUs on one node{f' with {wanted}' if wanted else ''}, and the largest has {most:g}"
    return ""


def _choices(labels: Mapping[str, str], *, strays: bool) -> list[dict[str, str]]:
    return [dict(labels), *([{}] if strays else [])] if labels else [{}]
