"""An engine as a Ray actor, and the shell's handle on it."""

from collections.abc import AsyncIterator
from typing import Any

import ray

from ramify.scheduler.actors.config import NAMESPACE, EngineConfig
from ramify.scheduler.engines.base import Engine, ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.errors import EngineError

CALLS_MAX = 1000  # batches open at once


@ray.remote
class EngineActor:
    """Holds one engine. A restart loses its cache and what it was sampling, nothing else."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._rows_open = 0
        # A model that can't be loaded is told by `describe`; raised here, Ray would try again for ever.
        self._engine: Engine | EngineError
        try:
            self._engine = load_engine(config.spec)
        except EngineError as error:
            self._engine = error

    def __repr__(self) -> str:
        name = f"ramify:engine:{self._config.name}"
        if isinstance(self._engine, EngineError):
            return f"{name} failed"
        return f"{name} {self._engine.info.name} {self._rows_open}/{self._engine.info.slots}"

    def _loaded(self) -> Engine:
        if isinstance(self._engine, EngineError):
            raise self._engine
        return self._engine

    async def describe(self) -> ModelInfo:
        """What its model is."""
        return self._loaded().info

    async def generate(self, batch: StepBatch) -> AsyncIterator[StepResults]:
        """See `engines.base.Engine.generate`."""
        self._rows_open += len(batch)
        left = len(batch)
        try:
            async for results in self._loaded().generate(batch):
                self._rows_open -= len(results.row)
                left -= len(results.row)
                yield results
        finally:
            self._rows_open -= left


class RayEngine:
    """An engine in another process. Picklable: shards get theirs from the supervisor."""

    def __init__(self, name: str, actor: Any) -> None:
        self._name, self._actor = name, actor

    @property
    def name(self) -> str:
        """Unique in the system."""
        return self._name

    async def describe(self) -> ModelInfo:
        """What its model is; raises while the actor is away."""
        info: ModelInfo = await self._actor.describe.remote()
        return info

    async def generate(self, batch: StepBatch) -> AsyncIterator[StepResults]:
        """See `engines.base.Engine.generate`; raises a RayError when the actor is lost."""
        async for reference in self._actor.generate.remote(batch):
            yield await reference


def start_engine(config: EngineConfig) -> RayEngine:
    """Start an engine actor; Ray restarts it whenever its process dies."""
    actor = EngineActor.options(  # type: ignore[attr-defined]
        name=f"ramify:engine:{config.name}",
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,  # a lost call may have been carried out: the shard decides what is sampled again
        max_concurrency=CALLS_MAX,
    ).remote(config)
    return RayEngine(config.name, actor)
