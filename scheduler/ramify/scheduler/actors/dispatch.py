"""Sends what the shard wants sampled to the engines, as columns, as far as their credits reach."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ramify.scheduler.commands import Generate
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.events import Event, StepsLost, StepsSampled
from ramify.scheduler.forest.ids import job_key
from ramify.scheduler.journal import without
from ramify.scheduler.placement import rendezvous

log = logging.getLogger(__name__)

QUEUE_FACTOR = 2  # credits for each of an engine's slots: a full batch runs, another waits at its door
PROBE_S = 0.5  # between two looks at an engine that has failed


class EngineHandle(Protocol):
    """An engine as the shell sees it, in this process or behind a Ray actor."""

    @property
    def name(self) -> str:
        """Unique in the system."""
        ...

    async def describe(self) -> ModelInfo:
        """What its model is; raises if the engine is not there."""
        ...

    def generate(self, batch: StepBatch) -> AsyncIterator[StepResults]:
        """See `engines.base.Engine`; raises if the engine is lost."""
        ...


@dataclass(slots=True)
class Lane:
    """An engine and what is on its way to it."""

    engine: EngineHandle
    info: ModelInfo
    key: int
    credits: int
    alive: bool = True
    waiting: deque[Generate] = field(default_factory=deque)


class Dispatcher:
    """See the module. Bounded by the shard's admission: it holds no step twice."""

    def __init__(self, engines: Sequence[tuple[EngineHandle, ModelInfo]], post: Callable[[Event], None]) -> None:
        self._lanes = [Lane(engine, info, job_key(engine.name), QUEUE_FACTOR * info.slots) for engine, info in engines]
        self._post = post
        self._tasks: set[asyncio.Task[None]] = set()
        self._homeless: deque[Generate] = deque()  # while no engine with the model is alive

    @property
    def busy(self) -> bool:
        """Whether any step waits or is under way."""
        return bool(self._tasks or self._homeless or any(lane.waiting for lane in self._lanes))

    def info(self, model: str) -> ModelInfo | None:
        """What a model is, if an engine has it."""
        return next((lane.info for lane in self._lanes if lane.info.name == model), None)

    def add(self, command: Generate) -> None:
        """Take a command; `pump` sends it."""
        lanes = [lane for lane in self._lanes if lane.alive and lane.info.name == command.plan.generator]
        if not lanes:
            self._homeless.append(command)
            return
        at = rendezvous(command.tree_id, np.array([lane.key for lane in lanes], np.uint64))
        for index in np.unique(at).tolist():
            lanes[index].waiting.append(command if len(lanes) == 1 else without(command, at != index))

    def pump(self) -> None:
        """Send as much as credits allow."""
        for _ in range(len(self._homeless)):
            self.add(self._homeless.popleft())
        for lane in self._lanes:
            while lane.alive and lane.waiting and lane.credits > 0:
                command = lane.waiting.popleft()
                if len(command.row) > lane.credits:
                    late = np.arange(len(command.row)) >= lane.credits
                    lane.waiting.appendleft(without(command, ~late))
                    command = without(command, late)
                lane.credits -= len(command.row)
                self._start(self._sample(lane, command))

    async def close(self) -> None:
        """Give up all that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sample(self, lane: Lane, command: Generate) -> None:
        batch = StepBatch(
            command.tokens,
            command.offsets,
            (command.plan.params,),
            np.zeros(len(command.offsets) - 1, np.int32),
            command.group,
            command.code,
            command.node_id,
        )
        open_rows = np.ones(len(command.row), np.bool_)
        try:
            async for results in lane.engine.generate(batch):
                open_rows[results.row] = False
                lane.credits += len(results.row)
                self._post(sampled(command, results))
            reason = "the engine ended its answer early"
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever an engine dies of, its steps must go elsewhere
            log.warning("engine %s failed: %s", lane.engine.name, error)
            reason = f"engine {lane.engine.name} failed: {error}"
            self._lose(lane)
        lost = np.flatnonzero(open_rows)
        lane.credits += len(lost)
        if len(lost):
            self._post(StepsLost(command.row[lost], command.tree_id[lost], command.node_id[lost], reason))

    def _lose(self, lane: Lane) -> None:
        """Send nothing more to an engine until it answers again; what waits for it goes elsewhere."""
        if not lane.alive:
            return
        lane.alive = False
        self._homeless.extend(lane.waiting)
        lane.waiting.clear()
        self._start(self._await_return(lane))

    async def _await_return(self, lane: Lane) -> None:
        while not lane.alive:
            await asyncio.sleep(PROBE_S)
            try:
                lane.alive = (await lane.engine.describe()).revision == lane.info.revision
            except Exception as error:  # it is still away
                log.info("engine %s is still away: %s", lane.engine.name, error)
        log.warning("engine %s is back", lane.engine.name)


def sampled(command: Generate, results: StepResults) -> StepsSampled:
    """An engine's results under the names of the command's nodes."""
    at = results.row
    return StepsSampled(
        row=command.row[at],
        tree_id=command.tree_id[at],
        node_id=command.node_id[at],
        tokens=results.tokens,
        token_count=results.token_count,
        text=results.text,
        text_count=results.text_count,
        logprob=results.logprob,
        finish=results.finish,
        score=np.full(len(at), np.nan, np.float32),
        message=results.message,
    )
