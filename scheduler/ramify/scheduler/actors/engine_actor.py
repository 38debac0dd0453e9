"""An engine as a Ray actor, and the shell's handle on it."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import ray

from ramify import tracing
from ramify.scheduler.actors.config import NAMESPACE, REGION_LABEL, EngineConfig, placed, selectors, unplaceable
from ramify.scheduler.actors.gate import Gate
from ramify.scheduler.actors.metrics import EngineMetrics
from ramify.scheduler.actors.telling import over_and_over, tell
from ramify.scheduler.engines.base import Engine, EngineStats, ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.errors import EngineAway, EngineError

log = logging.getLogger(__name__)

PREFIX = "ramify:engine:"  # of the actors' names
CALLS_MAX = 1000  # batches open at once
PLACED_S = 2.0  # after which an actor that does not answer is looked at more closely
STARTED_S = 25.0  # in which one is expected to have started
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
        tell("engine", engine=config.name)
        self._config = config
        self._rows_open = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._gate = Gate()
        self._loading = asyncio.Lock()
        self._metrics: EngineMetrics | None = None
        self._telling: asyncio.Task[NoReturn] | None = None
        # A model that can't be loaded is told by `describe`; raised here, Ray would try again for ever.
        self._engine = self._load()

    def __repr__(self) -> str:
        name = PREFIX + self._config.name
        if isinstance(self._engine, EngineError):
            return f"{name} failed"
        info = self._engine.info
        return f"{name} {info.name} {f'{self._rows_open}/' if self._rows_open else ''}{info.slots} slots"

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
        self._metrics = self._metrics or EngineMetrics(self._config, engine.info)
        self._telling = self._telling or asyncio.create_task(over_and_over(self._tell))
        return engine.info

    def _tell(self) -> None:
        if self._metrics is not None:
            self._metrics.tell(self._loaded().stats())

    async def stats(self) -> EngineStats:
        """What its engine has done since this process was started."""
        return self._loaded().stats()

    async def config(self) -> EngineConfig:
        """What it was started with."""
        return self._config

    async def node(self) -> str:
        """Ray's id of the node where it runs."""
        return str(ray.get_runtime_context().get_node_id())

    async def idle(self) -> None:
        """Return once it has answered all that it was asked for."""
        await self._quiet.wait()

    async def generate(
        self, batch: StepBatch, *, alone: bool = False, carrier: tracing.Carrier = tracing.NOTHING
    ) -> AsyncIterator[StepResults]:
        """See `EngineHandle.generate`; `carrier` tells of the caller's span."""
        began_s = time.monotonic()
        self._rows_open += len(batch)
        self._quiet.clear()
        left = len(batch)
        try:
            with tracing.served("engine.sample", carrier, engine=self._config.name, steps=len(batch)):
                async with self._gate.passed(alone=alone):
                    if alone:
                        yield BEGUN
                    async for results in self._loaded().generate(batch):
                        self._rows_open -= len(results.row)
                        left -= len(results.row)
                        yield results
        finally:
            self._rows_open -= left
            if self._metrics is not None:
                self._metrics.called(time.monotonic() - began_s)
            if not self._rows_open:
                self._quiet.set()


class RayEngine:
    """An engine in another process. Picklable: shards get theirs from the supervisor."""

    def __init__(self, config: EngineConfig, choices: list[dict[str, str]], actor: Any) -> None:
        """Make a handle on an actor; `choices` are the labels of the nodes where it may run, see `config.selectors`."""
        self.config, self.choices, self.actor = config, choices, actor
        self._asked: asyncio.Future[ModelInfo] | None = None  # one question at a time waits at an actor that is not there

    def __reduce__(self) -> tuple[Any, ...]:
        return RayEngine, (self.config, self.choices, self.actor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayEngine) and (self.config, self.choices) == (other.config, other.choices)

    def __hash__(self) -> int:
        return hash(self.config.name)

    @property
    def name(self) -> str:
        """Unique in the system."""
        return self.config.name

    @property
    def region(self) -> str:
        """Where it is."""
        return self.config.region

    async def describe(self, patience_s: float = STARTED_S) -> ModelInfo:
        """What its model is; raises while the actor is away.

        Raises:
            EngineAway: no node can have it, or it has not started within `patience_s`.
        """
        if self._asked is None or self._asked.done():
            self._asked = asyncio.ensure_future(_answer(self.actor.describe.remote()))
        if not (await asyncio.wait({self._asked}, timeout=PLACED_S))[0]:
            # Ray keeps an actor that fits nowhere waiting for ever, and says nothing.
            nodes = await asyncio.to_thread(ray.nodes)
            if why := unplaceable(self.choices, self.config.gpus, nodes):
                raise EngineAway(why)
            if not (await asyncio.wait({self._asked}, timeout=patience_s))[0]:
                raise EngineAway(f"it has not started within {patience_s:.0f} s: it still loads, or Ray has no room for it")
        return await self._asked

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """See `EngineHandle.generate`; raises a RayError when the actor is lost."""
        async for reference in self.actor.generate.remote(batch, alone=alone, carrier=tracing.carrier()):
            yield await reference


async def _answer(reference: Any) -> ModelInfo:
    info: ModelInfo = await reference
    return info


def crowded_out(engines: Sequence[RayEngine], nodes: Sequence[Mapping[str, Any]]) -> dict[RayEngine, EngineAway]:
    """For which of some engines, in their order, there are not enough GPUs, and what to say of it."""
    free = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in nodes if node["Alive"]}
    labels = {node["NodeID"]: node["Labels"] for node in nodes}
    away = {}
    for engine in engines:
        fits = [node for node in free if any(choice.items() <= labels[node].items() for choice in engine.choices)]
        room = next((node for node in fits if free[node] >= engine.config.gpus), None)
        if room is not None:
            free[room] -= engine.config.gpus
        elif engine.config.gpus and fits:
            away[engine] = EngineAway(f"it needs {engine.config.gpus:g} GPUs, and those that there are others take")
    return away


def start_engine(config: EngineConfig, region_label: str = REGION_LABEL) -> RayEngine:
    """Start an engine actor, or find it: Ray restarts it whenever its process dies, and it outlives who has started it."""
    choices = selectors(config, region_label)
    actor = EngineActor.options(  # type: ignore[attr-defined]
        name=PREFIX + config.name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=config.cpus,
        num_gpus=config.gpus,
        max_restarts=-1,
        max_task_retries=0,  # a lost call may have been carried out: the shard decides what is sampled again
        max_concurrency=CALLS_MAX,
        **placed(choices),
    ).remote(config)
    return RayEngine(config, choices, actor)
