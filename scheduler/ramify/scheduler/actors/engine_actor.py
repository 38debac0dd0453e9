"""An engine as a Ray actor, and the shell's handle on it."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import ray

from ramify.scheduler.actors.config import NAMESPACE, EngineConfig, placed
from ramify.scheduler.actors.gate import Gate
from ramify.scheduler.engines.base import Engine, EngineStats, ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.errors import EngineAway, EngineError

log = logging.getLogger(__name__)

CALLS_MAX = 1000  # batches open at once
NO_STEPS = StepBatch(
    tokens=np.empty(0, np.int32),
    offsets=np.zeros(1, np.int64),
    params=(),
    group_params=np.empty(0, np.int32),
    group=np.empty(0, np.int32),
    code=np.empty(0, np.float64),
    seed=np.empty(0, np.uint64),
)
BEGUN = StepResults(
    row=np.empty(0, np.int32),
    finish=np.empty(0, np.uint8),
    logprob=np.empty(0, np.float32),
    tokens=np.empty(0, np.int32),
    token_count=np.empty(0, np.int32),
    token_cost=np.empty(0, np.int32),
    text=np.empty(0, np.uint8),
    text_count=np.empty(0, np.int32),
)


@ray.remote
class EngineActor:
    """Holds one engine. A restart loses its cache and what it was sampling, nothing else."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._rows_open = 0
        self._gate = Gate()
        self._loading = asyncio.Lock()
        # A model that can't be loaded is told by `describe`; raised here, Ray would try again for ever.
        self._engine = self._load()

    def __repr__(self) -> str:
        name = f"ramify:engine:{self._config.name}"
        if isinstance(self._engine, EngineError):
            return f"{name} failed"
        return f"{name} {self._engine.info.name} {self._rows_open}/{self._engine.info.slots}"

    def _load(self) -> Engine | EngineError:
        try:
            return load_engine(self._config.spec)
        except EngineError as error:
            return error

    def _loaded(self) -> Engine:
        if isinstance(self._engine, EngineError):
            raise self._engine
        return self._engine

    async def describe(self) -> ModelInfo:
        """What its model is. An engine that can't go on ends its process: Ray starts a new one.

        One whose server is away does not: it is asked again, by the same process.
        """
        async with self._loading:
            if isinstance(self._engine, EngineAway):
                self._engine = await asyncio.to_thread(self._load)
        engine = self._loaded()
        try:
            async for _ in engine.generate(NO_STEPS):
                pass
        except EngineAway:
            raise
        except EngineError as error:
            log.critical("engine %s starts anew: %s", self._config.name, error)
            os._exit(1)
        return engine.info

    async def stats(self) -> EngineStats:
        """What its engine has done since this process was started."""
        return self._loaded().stats()

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """See `EngineHandle.generate`."""
        self._rows_open += len(batch)
        left = len(batch)
        try:
            async with self._gate.passed(alone=alone):
                if alone:
                    yield BEGUN
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

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """See `EngineHandle.generate`; raises a RayError when the actor is lost."""
        async for reference in self._actor.generate.remote(batch, alone=alone):
            yield await reference


def start_engine(config: EngineConfig) -> RayEngine:
    """Start an engine actor, or find it: Ray restarts it whenever its process dies, and it outlives who has started it."""
    actor = EngineActor.options(  # type: ignore[attr-defined]
        name=f"ramify:engine:{config.name}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        num_gpus=config.gpus,
        max_restarts=-1,
        max_task_retries=0,  # a lost call may have been carried out: the shard decides what is sampled again
        max_concurrency=CALLS_MAX,
        **placed(config.labels),
    ).remote(config)
    return RayEngine(config.name, actor)
