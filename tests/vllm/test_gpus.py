"""What an engine's actor asks Ray for. The GPUs are Ray's numbers only; none is touched."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from ramify.scheduler.actors.config import EngineConfig
from ramify.scheduler.actors.engine_actor import RayEngine, start_engine

GPUS = 3


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_gpus=GPUS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


async def test_an_engine_has_its_gpus_for_itself(cluster: None) -> None:
    taken: RayEngine = start_engine(EngineConfig("two", "simulated", gpus=2))
    none = start_engine(EngineConfig("none", "simulated"))
    assert [(await engine.describe()).name for engine in (taken, none)] == ["simulated", "simulated"]
    actors: list[Any] = [ray.get_actor(f"ramify:engine:{name}", "ramify") for name in ("two", "none")]
    assert ray.available_resources().get("GPU") == GPUS - 2
    for actor in actors:
        ray.kill(actor)
