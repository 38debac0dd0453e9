"""The supervisor: starts engines and shards, says which models there are, and keeps the shards at work.

Engines may come and go while jobs run: it is given another fleet, and tells the shards.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any

import ray
import tenacity
from sqlalchemy.exc import SQLAlchemyError

from ramify import logs
from ramify.scheduler.actors.autoscaler import Autoscaler
from ramify.scheduler.actors.config import (
    DRAIN_S,
    NAMESPACE,
    REMOVE_S,
    FleetConfig,
    SystemConfig,
    placed,
    shard_choices,
    supervisor_choices,
    unplaceable,
)
from ramify.scheduler.actors.engine_actor import PREFIX
from ramify.scheduler.actors.engine_keeper import EngineKeeper, opened
from ramify.scheduler.actors.named import SUPERVISOR, actor_names, end_actors
from ramify.scheduler.actors.shard_actor import CUT_S, ShardStatus, name_of, start_shard
from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.slots import SLOTS
from ramify.store.jobs import ModelRow
from ramify.verifier.errors import VerifierError

log = logging.getLogger(__name__)

WATCH_S = 0.5  # between two looks at a shard
ANSWER_S = 10.0  # in which a shard says that it is there; it may stand still, and others are looked after meanwhile
PLACED_S = 45.0  # in which a shard that is started must answer, or else it is told what it lacks
STATUS_S = 2.0  # in which it says how it stands
LOOK_S = 2.0  # between two looks at what engines have to do
RESUME_S_MAX = 5.0  # between two tries to find what a predecessor has started
LEAVE_S = 0.5  # for its answer to a drain to arrive
SPARE_S = 15.0  # after the time in which an engine's node is to have ended
LONG_S = 60.0  # after which a shard that fails, and ...
MODELS_S = 30.0  # between two looks at what models the verifier has
AWAY_TOLD_MAX = 3  # engines that are told of
AWAY_S = 300.0  # ... after which a system without a living engine is ill


@dataclass(slots=True)
class Shard:
    """A shard, and who looks after it."""

    actor: Any
    watch: "asyncio.Task[None] | None" = None
    failure: str = ""  # why it can't be reached, or what it has died of
    well_s: float = field(default_factory=time.monotonic)  # when it was not failing last


@ray.remote
class Supervisor:
    """One in a system. What it has started outlives it; Ray restarts it, and it looks after what is there."""

    def __init__(self, config: SystemConfig) -> None:
        logs.configure()
        self._config = config
        self._keeper = EngineKeeper(config.fleet, config.store_url, self._tell_shards)
        self._shards: dict[int, Shard] = {}
        self._autoscaler = Autoscaler()
        self._away: dict[str, str] = {}  # engines, and why
        self._tasks: set[asyncio.Task[None]] = set()
        self._alive_s = time.monotonic()  # when an engine was seen last
        self._configuring, self._started = asyncio.Lock(), False
        context = ray.get_runtime_context()
        if context.was_current_actor_reconstructed:
            context.current_actor.resume.remote()

    def __repr__(self) -> str:
        return f"{SUPERVISOR} {self._config.shards} shards {len(self._keeper.fleet.engines)} engines"

    async def start(self, patience_s: float = inf) -> list[str]:
        """Start everything; returns when jobs can be submitted. Raises what an engine or the verifier can't start for.

        May be called again after it has raised. Shards are started last: where others work on the store, they take no tree that
        no engine is there for.

        Args:
            patience_s: for which it waits for engines that load.

        Returns:
            Which engines are away, and why; they are looked for. If all were, it would have raised.
        """
        async with opened(self._config.store_url) as database:
            await database.migrate()
        away = await self._keeper.start(await self._scorers(), patience_s)
        await self.scale(self._config.shards)
        self._begin()
        return [f"{engine.name}: {error}" for engine, error in away.items()]

    async def configure(self, config: SystemConfig, patience_s: float) -> list[str]:
        """Have this configuration: start it, or go on with what is there; called over and over.

        Args:
            config: what there is to be.
            patience_s: see `start`.

        Returns:
            Names of what is configured otherwise than it is at work, and takes a start of everything.

        Raises:
            SchedulerError: it can't be had now, and is to be asked for again.
        """
        async with self._configuring:
            if self._started or await self._found():
                await self.apply(config.fleet)
                await self.scale(config.shards)
            else:
                if config != self._config:  # what was started after the other one is not at work yet
                    end_actors([name for name in actor_names() if name.startswith(PREFIX)])
                    self._config, self._keeper = config, EngineKeeper(config.fleet, config.store_url, self._tell_shards)
                await self.start(patience_s)
        names = [each.name for each in fields(SystemConfig) if each.name not in ("fleet", "shards")]
        return [name for name in names if getattr(config, name) != getattr(self._config, name)]

    @tenacity.retry(
        wait=tenacity.wait_random_exponential(max=RESUME_S_MAX), before_sleep=tenacity.before_sleep_log(log, logging.ERROR)
    )
    async def resume(self) -> None:
        """Look after what its predecessor has started; nobody else does, so it is tried until it succeeds."""
        async with self._configuring:
            await self._found()

    async def _found(self) -> bool:
        """Whether there are shards at work, if need be of a predecessor; it looks after them from then on."""
        there = {*actor_names()}
        found = [index for index in range(SLOTS) if name_of(index) in there and index not in self._shards]
        if self._started or not found:
            return self._started
        known = await asyncio.gather(*map(fleet_of, found))
        fleet = max([self._config.fleet, *(each for each in known if each)], key=lambda fleet: fleet.revision)
        stale = await self._keeper.adopt(fleet)
        log.warning("the supervisor was started anew, and looks after shards %s", ", ".join(map(str, found)))
        self._look_after(found)
        await self._tell_shards()
        self._keeper.end(stale)
        self._begin()
        return True

    def _begin(self) -> None:
        self._started, self._alive_s = True, time.monotonic()
        self._start(self._look())
        self._start(self._follow_verifier())

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def apply(self, fleet: FleetConfig) -> None:
        """Have another fleet, see `EngineKeeper.apply`."""
        await self._keeper.apply(fleet)

    async def spare(self, names: Sequence[str], for_s: float) -> None:
        """Have some engines sent nothing more for a while, as their node is about to end; what they are at they end."""
        await self._keeper.spare(names)
        self._start(self._unspare(names, for_s + SPARE_S))

    async def _unspare(self, names: Sequence[str], after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self._keeper.unspare(names)

    async def _tell_shards(self) -> None:
        """Have each shard work with the fleet as it is; one that can't be told now hears of it when it answers again."""
        found = await asyncio.gather(*(self._ensure(shard) for shard in self._shards.values()), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                log.warning("a shard hears of the fleet later: %s", error)

    async def _ensure(self, shard: Shard) -> None:
        """Have a shard work, and with the fleet as it is."""
        async with asyncio.timeout(ANSWER_S):
            if await shard.actor.ensure.remote() != self._keeper.fleet.revision:
                await shard.actor.use.remote(self._keeper.usable, self._keeper.fleet)

    async def scale(self, shards: int) -> None:
        """Have so many shards: start what is missing, or drain those with the highest numbers."""
        fresh = self._look_after(index for index in range(shards) if index not in self._shards)
        await asyncio.gather(*(self._placed(index, shard) for index, shard in fresh.items()))
        await asyncio.gather(*(self.remove(index) for index in [*self._shards] if index >= shards))

    async def _placed(self, index: int, shard: Shard) -> None:
        """Wait until a shard works; one that no node can have is told, while Ray keeps it waiting and says nothing."""
        try:
            async with asyncio.timeout(PLACED_S):
                await shard.actor.ensure.remote()
        except TimeoutError:
            raise SchedulerError(f"shard {index} has not started within {PLACED_S:.0f} s: {await self._lacks(index)}") from None

    async def _lacks(self, index: int) -> str:
        """Why a shard does not answer."""
        why = unplaceable(shard_choices(self._config, index), 0, await asyncio.to_thread(ray.nodes))
        return why or "it stands still, or Ray is just starting it"

    def _look_after(self, indices: Iterable[int]) -> dict[int, Shard]:
        """Start shards, or find them, and keep them at work."""
        config = replace(self._config, fleet=self._keeper.fleet)
        fresh = {index: Shard(start_shard(index, config, self._keeper.usable)) for index in indices}
        for index, shard in fresh.items():
            shard.watch = asyncio.create_task(self._keep_alive(index, shard))
        self._shards |= fresh
        return fresh

    async def remove(self, index: int) -> bool:
        """Drain one shard and end it; the others take its slots. Whether it came to its end within `REMOVE_S`."""
        shard = self._shards.pop(index)
        done = await drain(shard, REMOVE_S)
        ray.kill(shard.actor)
        return done

    async def _scorers(self) -> list[ModelRow]:
        try:
            async with self._config.verifier() as verifier:
                names = (await verifier.get_model()).models
                models = [await verifier.get_model(name) for name in names]
        except VerifierError as error:
            where = self._config.verifier_address
            raise SchedulerError(
                f"the verifier at {where} can't be asked for its models ({error}): "
                "see that it runs there, and speaks TLS if and as you have said"
            ) from error
        return [ModelRow("checker" if m.backend == "rule" else "verifier", m.name, m.revision, "", "") for m in models]

    async def _keep_alive(self, index: int, shard: Shard) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self._ensure(shard)
                shard.failure, shard.well_s = "", time.monotonic()
            except TimeoutError:
                shard.failure = f"it does not answer within {ANSWER_S:.0f} s: {await self._lacks(index)}"
                log.error("shard %d stands still: %s", index, shard.failure, extra={"shard": str(index)})
            except Exception as error:  # its process died, or its shell did: the next look starts it anew
                shard.failure = str(error)
                log.error("shard %d failed: %s", index, error, extra={"shard": str(index)})

    async def _look(self) -> None:
        """See which engines are alive, and have more or fewer of those that come and go by what they have to do."""
        while True:
            await asyncio.sleep(LOOK_S)
            shells = [status.shell for status in await self.status() if status.shell is not None]
            lanes = [lane for shell in shells for lane in shell.lanes if not lane.leaves]
            self._away = {lane.engine: lane.reason for lane in lanes if not lane.alive}
            if any(lane.alive for lane in lanes):
                self._alive_s = time.monotonic()
            counts = self._autoscaler.counts(self._keeper.fleet, lanes, time.monotonic())
            try:
                await self._keeper.scale(counts)
            except Exception as error:  # it is tried again
                log.error("the fleet could not be changed: %s", error)

    async def _follow_verifier(self) -> None:
        """Say anew which models there are when the verifier has others."""
        scorers: list[ModelRow] = []
        while True:
            await asyncio.sleep(MODELS_S)
            try:
                if (found := await self._scorers()) != scorers:
                    await self._keeper.publish(found)
                scorers = found
            except (SchedulerError, SQLAlchemyError) as error:  # what waits for it tells that it is away
                log.info("the verifier's models are as they were: %s", error)

    async def health(self) -> str:
        """What has been wrong for long; empty: nothing."""
        now_s = time.monotonic()
        ill = [f"shard {i}: {each.failure}" for i, each in self._shards.items() if each.failure and now_s - each.well_s > LONG_S]
        if self._started and now_s - self._alive_s > AWAY_S:
            told = "; ".join(f"{name}: {reason}" for name, reason in [*self._away.items()][:AWAY_TOLD_MAX])
            ill.append(f"no engine has been alive for {AWAY_S:.0f} s ({told or 'no shard can say why'})")
        return "; ".join(ill)

    async def status(self) -> list[ShardStatus]:
        """How each shard stands."""
        return await asyncio.gather(*(self._status(index, shard) for index, shard in self._shards.items()))

    async def _status(self, index: int, shard: Shard) -> ShardStatus:
        try:
            async with asyncio.timeout(STATUS_S):
                found: ShardStatus = await shard.actor.status.remote()
        except Exception as error:  # it is just starting, or stands still
            return ShardStatus(index, None, failure=shard.failure or f"it can't be asked: {error}")
        return found

    async def drain(self) -> bool:
        """Have every shard commit what it has, hand its slots over and stop; whether all did within `DRAIN_S`."""
        return all(await asyncio.gather(*(drain(shard, DRAIN_S) for shard in self._shards.values())))


async def drain(shard: Shard, within_s: float) -> bool:
    """Drain one shard; whether it came to its end within some seconds."""
    if shard.watch is not None:
        shard.watch.cancel()
    try:
        async with asyncio.timeout(within_s + CUT_S + LEAVE_S):
            return bool(await shard.actor.drain.remote(within_s))
    except Exception as error:  # it has died, or stands still: its leases end by themselves
        log.error("a shard could not be drained: %s", error)
        return False


async def fleet_of(index: int) -> FleetConfig | None:
    """The fleet that a shard works with; None: it is just starting, or stands still."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(STATUS_S):
            shard: Any = ray.get_actor(name_of(index), namespace=NAMESPACE)
            found: FleetConfig = await shard.fleet.remote()
            return found
    return None


def start_supervisor(config: SystemConfig, *, detached: bool = False) -> Any:
    """Start the supervisor's actor; its `start` does the rest.

    Args:
        config: what there is to be.
        detached: it outlives who has started it; one that is there is found. `configure` has it work as `config` says.
    """
    lasting = {"lifetime": "detached", "get_if_exists": True} if detached else {}
    return Supervisor.options(  # type: ignore[attr-defined]
        name=SUPERVISOR, namespace=NAMESPACE, num_cpus=0, max_restarts=-1, **lasting, **placed(supervisor_choices(config))
    ).remote(config)
