"""The supervisor: starts engines and shards, says which models there are, and keeps the shards at work."""

import asyncio
import logging
from typing import Any

import ray

from ramify.scheduler.actors.config import NAMESPACE, SystemConfig
from ramify.scheduler.actors.engine_actor import RayEngine, start_engine
from ramify.scheduler.actors.shard_actor import start_shard
from ramify.store.database import Database
from ramify.store.jobs import Jobs, ModelRow
from ramify.verifier.client import VerifierClient

log = logging.getLogger(__name__)

WATCH_S = 0.5  # between two looks at the shards
FAILURES_MAX = 100  # of one shard in a row; then it is left alone, and `status` says so


@ray.remote
class Supervisor:
    """One in a system."""

    def __init__(self, config: SystemConfig) -> None:
        self._config = config
        self._engines: list[RayEngine] = []
        self._shards: list[Any] = []
        self._watch: asyncio.Task[None] | None = None
        self._failures: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"ramify:supervisor {self._config.shards} shards {len(self._config.engines)} engines"

    async def start(self) -> None:
        """Start everything; returns when jobs can be submitted. Raises what an engine or the verifier can't start for."""
        self._engines = [start_engine(config) for config in self._config.engines]
        database = Database(self._config.store_url)
        await database.migrate()
        await Jobs(database).put_models(await self._models())
        await database.close()
        self._shards = [start_shard(index, self._config, self._engines) for index in range(self._config.shards)]
        await asyncio.gather(*(shard.ensure.remote() for shard in self._shards))
        self._watch = asyncio.create_task(self._keep_alive())

    async def _models(self) -> list[ModelRow]:
        rows = {}
        for engine in self._engines:
            info = await engine.describe()
            rows[info.name] = ModelRow("generator", info.name, info.revision, info.delimiter, info.problem_format)
        async with VerifierClient(self._config.verifier_address) as verifier:
            names = (await verifier.get_model()).models
            models = [await verifier.get_model(name) for name in names]
        scorers = [ModelRow("checker" if m.backend == "rule" else "verifier", m.name, m.revision, "", "") for m in models]
        return [*rows.values(), *scorers]

    async def _keep_alive(self) -> None:
        failures = [0] * len(self._shards)
        while True:
            await asyncio.sleep(WATCH_S)
            for index, shard in enumerate(self._shards):
                if failures[index] >= FAILURES_MAX:
                    continue
                try:
                    await shard.ensure.remote()
                    failures[index] = 0
                    self._failures.pop(index, None)
                except Exception as error:  # its process died, or its shard did: the next look starts it anew
                    failures[index] += 1
                    self._failures[index] = str(error)
                    log.error("shard %d failed (%d in a row): %s", index, failures[index], error)

    async def status(self) -> dict[int, str]:
        """What each shard that does not work died of."""
        return self._failures

    async def drain(self) -> None:
        """Have every shard commit what it has, and stop."""
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(shard.drain.remote() for shard in self._shards), return_exceptions=True)


def start_supervisor(config: SystemConfig) -> Any:
    """Start the supervisor's actor; its `start` does the rest."""
    return Supervisor.options(  # type: ignore[attr-defined]
        name="ramify:supervisor", namespace=NAMESPACE, num_cpus=0, max_restarts=0
    ).remote(config)
