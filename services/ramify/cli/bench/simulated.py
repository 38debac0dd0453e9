"""The load of the benches that run a whole system: simulated models, many problems, and a look at what works on them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ramify.client.spec import SpecFields
from ramify.scheduler.actors.config import NAMESPACE

if TYPE_CHECKING:  # else every command would import Ray, and before its settings are set
    from ramify.scheduler.actors.shard_actor import ShardStatus
    from ramify.scheduler.engines.base import EngineStats

BRANCHES = 16  # chains of a tree
VERIFIER = "sim-prm=simulated"
STEPS = "step_lengths=uniform&step_tokens_min=16&step_tokens_max=48&end_probability=0.02"


def engine(slots: int) -> str:
    """An engine that takes no time."""
    return f"simulated?time_scale=0&slots={slots}&{STEPS}"


def search(max_steps: int) -> SpecFields:
    """A beam of `BRANCHES` chains."""
    return {
        "policy": "beam",
        "n": BRANCHES,
        "keep": 4,
        "max_steps": max_steps,
        "max_step_tokens": 64,
        "generator": "simulated",
        "verifier": VERIFIER.partition("=")[0],
    }


def problems(chains: int) -> Iterator[str]:
    """As many as have so many chains."""
    return (f"problem {index}" for index in range(-(-chains // BRANCHES)))


def shard_actor(index: int) -> Any:
    """A shard's handle."""
    import ray

    return ray.get_actor(f"ramify:shard:{index}", namespace=NAMESPACE)


def shard_status(actor: Any) -> "ShardStatus":
    """How a shard stands."""
    import ray

    status: Any = ray.get(actor.status.remote())
    found: ShardStatus = status
    return found


def engine_stats(index: int) -> "EngineStats":
    """What an engine has done."""
    import ray

    stats: Any = ray.get(ray.get_actor(f"ramify:engine:local:{index}", namespace=NAMESPACE).stats.remote())
    found: EngineStats = stats
    return found
