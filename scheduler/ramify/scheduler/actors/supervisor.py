"""The supervisor: starts engines and shards, says which models there are, and keeps the shards at work.

Engines may come and go while jobs run: it is given another fleet, and tells the shards.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import ray
import tenacity

from ramify.scheduler.actors.config import DRAIN_S, NAMESPACE, REMOVE_S, FleetConfig, SystemConfig, placed, straying
from ramify.scheduler.actors.engine_keeper import EngineKeeper, opened
from ramify.scheduler.actors.shard_actor import CUT_S, ShardStatus, name_of, start_shard
from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.slots import SLOTS
from ramify.store.jobs import ModelRow
from ramify.verifier.errors import VerifierError

log = logging.getLogger(__name__)

WATCH_S = 0.5  # between two looks at a shard
ANSWER_S = 10.0  # in which a shard says that it is there; it may stand still, and others are looked after meanwhile
STATUS_S = 2.0  # in which it says how it stands
RESUME_S_MAX = 5.0  # between two tries to find what a predecessor has started
GENERATOR = "generator"  # role of a model that an engine has
LEAVE_S = 0.5  # for its answer to a drain to arrive
JOIN_S_MAX = 10.0  # between two tries to learn what the model of an engine is that has joined
LEAVE_S_MAX = 120.0  # in which an engine that leaves must be idle; what it is at then is sampled elsewhere


@dataclass(slots=True)
class Shard:
    """A shard, and who looks after it."""

    actor: Any
    watch: "asyncio.Task[None] | None" = None
    failure: str = ""  # why it can't be reached, or what it has died of


@ray.remote
class Supervisor:
    """One in a system. What it has started outlives it; Ray restarts it, and it looks after what is there."""

    def __init__(self, config: SystemConfig) -> None:
        self._config = config
        self._keeper = EngineKeeper(config.fleet, config.store_url, self._tell_shards)
        self._shards: dict[int, Shard] = {}
        context = ray.get_runtime_context()
        if context.was_current_actor_reconstructed:
            context.current_actor.resume.remote()

    def __repr__(self) -> str:
        return f"ramify:supervisor {len(self._shards)} shards {len(self._keeper.engines)} engines"

    async def start(self) -> list[str]:
        """Start everything; returns when jobs can be submitted. Raises what an engine or the verifier can't start for.

        Returns:
            Which engines are away, and why; they are looked for. If all were, it would have raised.
        """
        async with opened(self._config.store_url) as database:
            await database.migrate()
        away = await self._keeper.start(await self._scorers())
        await self.scale(self._config.shards)
        return [f"{engine.name}: {error}" for engine, error in away.items()]

    @tenacity.retry(
        wait=tenacity.wait_random_exponential(max=RESUME_S_MAX), before_sleep=tenacity.before_sleep_log(log, logging.ERROR)
    )
    async def resume(self) -> None:
        """Look after what its predecessor has started; nobody else does, so it is tried until it succeeds."""
        actors: Any = ray.util.list_named_actors(all_namespaces=True)
        there = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE}
        found = [index for index in range(SLOTS) if name_of(index) in there]
        known = await asyncio.gather(*map(fleet_of, found))
        fleet = max([self._config.fleet, *(each for each in known if each)], key=lambda fleet: fleet.revision)
        stale = await self._keeper.adopt(fleet)
        log.warning("the supervisor was started anew, and looks after shards %s", ", ".join(map(str, found)))
        self._look_after(found or range(self._config.shards))
        await self._tell_shards()
        self._keeper.end(stale)

    async def apply(self, fleet: FleetConfig) -> None:
        """Have another fleet, see `EngineKeeper.apply`."""
        await self._keeper.apply(fleet)

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
                await shard.actor.use.remote([*self._keeper.engines.values()], self._keeper.fleet)

    async def scale(self, shards: int) -> None:
        """Have so many shards: start what is missing, or drain those with the highest numbers."""
        fresh = self._look_after(index for index in range(shards) if index not in self._shards)
        await asyncio.gather(*(shard.actor.ensure.remote() for shard in fresh))
        await asyncio.gather(*(self.remove(index) for index in [*self._shards] if index >= shards))

    def _look_after(self, indices: Iterable[int]) -> list[Shard]:
        """Start shards, or find them, and keep them at work."""
        config = replace(self._config, fleet=self._keeper.fleet)
        fresh = {index: Shard(start_shard(index, config, [*self._keeper.engines.values()])) for index in indices}
        for index, shard in fresh.items():
            shard.watch = asyncio.create_task(self._keep_alive(index, shard))
        self._shards |= fresh
        return [*fresh.values()]

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
                shard.failure = ""
            except TimeoutError:
                shard.failure = f"it does not answer within {ANSWER_S:.0f} s"
                log.error("shard %d stands still: %s", index, shard.failure)
            except Exception as error:  # its process died, or its shell did: the next look starts it anew
                shard.failure = str(error)
                log.error("shard %d failed: %s", index, error)

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


def start_supervisor(config: SystemConfig) -> Any:
    """Start the supervisor's actor; its `start` does the rest."""
    return Supervisor.options(  # type: ignore[attr-defined]
        name="ramify:supervisor", namespace=NAMESPACE, num_cpus=0, max_restarts=-1, **placed(straying(config.labels))
    ).remote(config)
