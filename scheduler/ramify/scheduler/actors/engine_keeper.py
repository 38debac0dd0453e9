"""Keeps the engines as a fleet says: starts them, finds those that are there, ends those that are wanted no more."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import ray
import tenacity

from ramify.scheduler.actors.config import NAMESPACE, EngineConfig, FleetConfig
from ramify.scheduler.actors.engine_actor import PREFIX, RayEngine, crowded_out, start_engine
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.errors import EngineAway
from ramify.store.database import Database
from ramify.store.jobs import Jobs, ModelRow

log = logging.getLogger(__name__)

GENERATOR = "generator"  # role of a model that an engine has
CONFIG_S = 2.0  # in which an engine says what it was started with; one that is loading can't
JOIN_S_MAX = 10.0  # between two tries to learn what the model of an engine is that has joined
LEAVE_S_MAX = 120.0  # in which an engine that leaves must be idle; what it is at then is sampled elsewhere


class EngineKeeper:
    """See the module.

    Args:
        fleet: what there is to be.
        store_url: where it is said which models there are.
        changed: tells the shards; awaited after each change of `fleet` and `engines`.
    """

    def __init__(self, fleet: FleetConfig, store_url: str, changed: Callable[[], Awaitable[None]]) -> None:
        self.fleet = fleet  # its revision rises with each change, of the engines too
        self.engines: dict[str, RayEngine] = {}  # all but those that leave
        self._store_url, self._changed = store_url, changed
        self._spared: set[str] = set()  # that are sent nothing for now
        self._scorers: list[ModelRow] = []  # that the verifier has
        self._infos: dict[str, ModelInfo] = {}  # of engines that have answered
        self._joining: dict[str, asyncio.Task[None]] = {}  # of those that have not
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._applying, self._publishing = asyncio.Lock(), asyncio.Lock()

    @property
    def usable(self) -> list[RayEngine]:
        """Those that shards may send steps to."""
        return [engine for name, engine in self.engines.items() if name not in self._spared]

    async def start(self, scorers: Sequence[ModelRow], patience_s: float = inf) -> dict[RayEngine, BaseException]:
        """Start all engines, and say which models there are: theirs and the verifier's. May be called again after it has raised.

        Args:
            scorers: the verifier's models.
            patience_s: for which it waits for engines that load.

        Returns:
            Which of them are away, and why; they are looked for. Raises if all are, or if one can't ever be there.
        """
        self.engines |= {each.name: each for each in self._start(c for c in self.fleet.engines if c.name not in self.engines)}
        engines = [*self.engines.values()]
        away: dict[RayEngine, BaseException] = {**crowded_out(engines, await asyncio.to_thread(ray.nodes))}
        asked = [engine for engine in engines if engine not in away]
        for engine, found in zip(
            asked, await asyncio.gather(*(each.describe(patience_s) for each in asked), return_exceptions=True), strict=True
        ):
            if isinstance(found, BaseException):
                away[engine] = found
            else:
                self._infos[engine.name] = found
        for error in away.values():
            if len(away) == len(engines) or not isinstance(error, EngineAway):
                raise error
        self._look_for(away)
        await self.publish(scorers)
        return away

    async def adopt(self, fleet: FleetConfig) -> list[RayEngine]:
        """Go on with what a predecessor has started.

        Returns:
            Engines that are there and are not, or not so, what the fleet wants: for `end`, once the shards have been told.
        """
        self.fleet = replace(fleet, revision=fleet.revision + 1)
        wanted = {config.name: config for config in fleet.engines}
        actors: Any = ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX)]
        handles = [ray.get_actor(name, namespace=NAMESPACE) for name in names]
        stale = []
        for name, actor, config in zip(names, handles, await asyncio.gather(*map(_config_of, handles)), strict=True):
            if config is not None and config != wanted.get(config.name):
                stale.append(RayEngine(config, [], actor))
            elif name.removeprefix(PREFIX) not in wanted:  # it is just being loaded, for nobody
                ray.kill(actor)
        gone = {engine.name for engine in stale}
        self.engines = {engine.name: engine for engine in self._start(each for each in fleet.engines if each.name not in gone)}
        self._look_for(self.engines.values())
        return stale

    async def apply(self, fleet: FleetConfig) -> None:
        """Have another fleet, from now on.

        Engines that are new join; those that are wanted no more are sent nothing more and end once they are idle; one that has
        changed does so too, and is then started anew. Of a group whose engines come and go there stay as many as there
        are, within its bounds. A fleet that can't be started changes nothing.
        """
        async with self._applying:
            await self._change(fleet.scaled(self.fleet.counts))

    async def scale(self, counts: Mapping[str, int]) -> None:
        """Have so many engines of some groups, likewise."""
        async with self._applying:
            await self._change(self.fleet.scaled({**self.fleet.counts, **counts}))

    async def _change(self, fleet: FleetConfig) -> None:
        if replace(fleet, revision=self.fleet.revision) == self.fleet:
            return
        wanted = {config.name: config for config in fleet.engines}
        gone = [engine for name, engine in self.engines.items() if engine.config != wanted.get(name)]
        fresh = self._start(each for each in fleet.engines if each.name not in self.engines.keys() | self._leaving.keys())
        for engine in gone:
            del self.engines[engine.name]
        self.engines |= {engine.name: engine for engine in fresh}
        self.fleet = replace(fleet, revision=self.fleet.revision + 1)
        self._look_for(fresh)
        await self._changed()
        self.end(gone)
        await self.publish()

    async def spare(self, names: Iterable[str]) -> None:
        """Have some engines sent nothing more, until `unspare`."""
        async with self._applying:
            self._spared |= {*names}
            await self._renew()

    async def unspare(self, names: Iterable[str]) -> None:
        """See `spare`."""
        async with self._applying:
            self._spared -= {*names}
            await self._renew()

    async def _renew(self) -> None:
        self.fleet = replace(self.fleet, revision=self.fleet.revision + 1)
        await self._changed()

    def end(self, engines: Iterable[RayEngine]) -> None:
        """End engines that no shard uses any more, once they are idle."""
        self._leaving |= {engine.name: asyncio.create_task(self._end(engine)) for engine in engines}

    async def _end(self, engine: RayEngine) -> None:
        if (joining := self._joining.pop(engine.name, None)) is not None:
            joining.cancel()
        self._infos.pop(engine.name, None)
        with contextlib.suppress(Exception):  # it has died, stands still, or was never there: it has nothing to end
            async with asyncio.timeout(LEAVE_S_MAX):
                await engine.actor.idle.remote()
        ray.kill(engine.actor)
        del self._leaving[engine.name]
        again = [config for config in self.fleet.engines if config.name == engine.name]
        if again:  # it has changed
            fresh = self._start(again)
            self.engines |= {each.name: each for each in fresh}
            self._look_for(fresh)
            await self._renew()
        await self.publish()

    def _start(self, configs: Iterable[EngineConfig]) -> list[RayEngine]:
        return [start_engine(config, self.fleet.region_label) for config in configs]

    def _look_for(self, engines: Iterable[RayEngine]) -> None:
        """Say what models engines have once they are there."""
        fresh = [engine for engine in engines if engine.name not in self._joining or self._joining[engine.name].done()]
        self._joining |= {engine.name: asyncio.create_task(self._join(engine)) for engine in fresh}

    @tenacity.retry(
        wait=tenacity.wait_random_exponential(max=JOIN_S_MAX), before_sleep=tenacity.before_sleep_log(log, logging.WARNING)
    )
    async def _join(self, engine: RayEngine) -> None:
        self._infos[engine.name] = await engine.describe()
        await self.publish()

    async def publish(self, scorers: Sequence[ModelRow] = ()) -> None:
        """Say which models there are. What has not been asked yet has what was said before.

        Args:
            scorers: the verifier's models; empty: as they were said last.
        """
        async with self._publishing, opened(self._store_url) as database:
            before = await Jobs(database).models()
            self._scorers = [*scorers] or self._scorers or [row for row in before if row.role != GENERATOR]
            generators = [] if self.engines.keys() <= self._infos.keys() else [row for row in before if row.role == GENERATOR]
            known = {(row.role, row.name): row for row in (*self._scorers, *generators)}
            for info in self._infos.values():
                row = ModelRow(GENERATOR, info.name, info.revision, info.delimiter, info.problem_format)
                known[row.role, row.name] = row
            await Jobs(database).put_models([*known.values()])


async def _config_of(actor: Any) -> EngineConfig | None:
    """What an engine was started with; None: it can't say now."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CONFIG_S):
            found: EngineConfig = await actor.config.remote()
            return found
    return None


@contextlib.asynccontextmanager
async def opened(store_url: str) -> AsyncIterator[Database]:
    """The store, for a moment."""
    database = Database(store_url)
    try:
        yield database
    finally:
        await database.close()
