"""Sends what the shard wants sampled to the engines, as columns, as far as their credits reach."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Generate, Withdraw
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.events import Event, StepsLost, StepsSampled
from ramify.scheduler.forest.ids import job_key, mix64
from ramify.scheduler.journal import without
from ramify.scheduler.placement import rendezvous

log = logging.getLogger(__name__)

QUEUE_FACTOR = 2  # credits for each of an engine's slots: a full batch runs, another waits at its door
SPECULATIVE_MAX = 1024  # speculative steps under way at once, on all engines
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
    credits: int  # steps that may still be sent
    alive: bool = True
    waiting: deque[Generate] = field(default_factory=deque)
    speculative: deque[Generate] = field(default_factory=deque)  # sent when nothing else waits

    @property
    def queued(self) -> int:
        """Credits beyond the engine's slots: what is sent on them waits at its door, where no speculation shall stand."""
        return (QUEUE_FACTOR - 1) * self.info.slots


class Dispatcher:
    """See the module. Bounded by the shard's admission: it holds no step twice."""

    def __init__(
        self,
        engines: Sequence[tuple[EngineHandle, ModelInfo]],
        post: Callable[[Event], None],
        speculative_max: int = SPECULATIVE_MAX,
    ) -> None:
        self._lanes = [Lane(engine, info, job_key(engine.name), QUEUE_FACTOR * info.slots) for engine, info in engines]
        self._speculative_max = speculative_max
        self._post = post
        self._tasks: set[asyncio.Task[None]] = set()
        self._homeless: deque[Generate] = deque()  # while no engine with the model is alive
        self._speculating = 0  # speculative steps that are under way, on all engines
        self._guesses: dict[int, None] = {}  # their names, as long as their command is under way

    @property
    def busy(self) -> bool:
        """Whether any step waits or is under way."""
        return bool(self._tasks or self._homeless or any(lane.waiting or lane.speculative for lane in self._lanes))

    def info(self, model: str) -> ModelInfo | None:
        """What a model is, if an engine has it."""
        return next((lane.info for lane in self._lanes if lane.info.name == model), None)

    def add(self, command: Generate) -> None:
        """Take a command; `pump` sends it. A step that was a speculation, and is asked for in earnest, is sampled once."""
        if not command.speculative:
            self._drop([self._homeless, *(lane.speculative for lane in self._lanes)], command)
            under_way = np.isin(names(command), np.fromiter(self._guesses, np.uint64))
            if under_way.all():
                return
            command = without(command, under_way) if under_way.any() else command
        self._place(command)

    def _place(self, command: Generate) -> None:
        lanes = [lane for lane in self._lanes if lane.alive and lane.info.name == command.plan.generator]
        if not lanes:
            self._homeless.append(command)
            return
        at = rendezvous(command.tree_id, np.array([lane.key for lane in lanes], np.uint64))
        for index in np.unique(at).tolist():
            lane = lanes[index]
            queue = lane.speculative if command.speculative else lane.waiting
            queue.append(command if len(lanes) == 1 else without(command, at != index))

    def withdraw(self, command: Withdraw) -> None:
        """Drop what has not been sent; the shard hears that it is lost. What is under way ends by itself."""
        lanes = (queue for lane in self._lanes for queue in (lane.waiting, lane.speculative))
        for dropped in self._drop([self._homeless, *lanes], command):
            self._post(lose(dropped, np.arange(len(dropped.hint)), "withdrawn"))

    def _drop(self, queues: Sequence[deque[Generate]], wanted: Generate | Withdraw) -> list[Generate]:
        """Take the steps that `wanted` names out of some queues; what was found there."""
        found: list[Generate] = []
        for queue in queues:
            for _ in range(len(queue)):
                command = queue.popleft()
                gone = np.isin(names(command), names(wanted))
                if gone.any():
                    found.append(without(command, ~gone))
                if not gone.all():
                    queue.append(without(command, gone) if gone.any() else command)
        return found

    def pump(self) -> None:
        """Send as much as credits allow."""
        for _ in range(len(self._homeless)):
            self._place(self._homeless.popleft())
        for lane in self._lanes:
            self._send(lane, lane.waiting, lane.credits)
        for lane in self._lanes:
            if not lane.waiting:
                free = min(lane.credits - lane.queued, self._speculative_max - self._speculating)
                self._send(lane, lane.speculative, free)

    def _send(self, lane: Lane, queue: deque[Generate], most: int) -> None:
        """Send up to `most` steps of a lane's queue."""
        while lane.alive and queue and most > 0:
            command = queue.popleft()
            if len(command.hint) > most:
                late = np.arange(len(command.hint)) >= most
                queue.appendleft(without(command, ~late))
                command = without(command, late)
            most -= len(command.hint)
            lane.credits -= len(command.hint)
            if command.speculative:
                self._speculating += len(command.hint)
                self._guesses |= dict.fromkeys(names(command).tolist())
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
            (command.params,),
            np.zeros(len(command.offsets) - 1, np.int32),
            command.group,
            command.code,
            command.node_id,
        )
        open_rows = np.ones(len(command.hint), np.bool_)
        try:
            async for results in lane.engine.generate(batch):
                open_rows[results.row] = False
                self._ended(lane, command, len(results.row))
                self._post(sampled(command, results))
            reason = "the engine ended its answer early"
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever an engine dies of, its steps must go elsewhere
            log.warning("engine %s failed: %s", lane.engine.name, error)
            reason = f"engine {lane.engine.name} failed: {error}"
            self._lose(lane)
        lost = np.flatnonzero(open_rows)
        self._ended(lane, command, len(lost))
        for name in names(command).tolist() if command.speculative else []:
            self._guesses.pop(name, None)
        if len(lost):
            self._post(lose(command, lost, reason))

    def _ended(self, lane: Lane, command: Generate, count: int) -> None:
        lane.credits += count
        self._speculating -= count * command.speculative

    def _lose(self, lane: Lane) -> None:
        """Send nothing more to an engine until it answers again; what waits for it goes elsewhere."""
        if not lane.alive:
            return
        lane.alive = False
        self._homeless.extend([*lane.waiting, *lane.speculative])
        lane.waiting.clear()
        lane.speculative.clear()
        self._start(self._await_return(lane))

    async def _await_return(self, lane: Lane) -> None:
        while not lane.alive:
            await asyncio.sleep(PROBE_S)
            try:
                lane.alive = (await lane.engine.describe()).revision == lane.info.revision
            except Exception as error:  # it is still away
                log.info("engine %s is still away: %s", lane.engine.name, error)
        log.warning("engine %s is back", lane.engine.name)


def names(command: Generate | Withdraw) -> NDArray[np.uint64]:
    """`[R]` one number for the names of each step."""
    return mix64(command.tree_id, command.node_id)


def lose(command: Generate, rows: NDArray[np.int64], reason: str) -> StepsLost:
    """The event that some rows of a command will not be answered."""
    return StepsLost(command.hint[rows], command.tree_id[rows], command.node_id[rows], command.attempt[rows], reason)


def sampled(command: Generate, results: StepResults) -> StepsSampled:
    """An engine's results under the names of the command's nodes."""
    at = results.row
    return StepsSampled(
        hint=command.hint[at],
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
