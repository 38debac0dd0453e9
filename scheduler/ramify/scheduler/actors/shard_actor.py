"""A shard as a Ray actor."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray

from ramify.scheduler.actors.config import NAMESPACE, SystemConfig
from ramify.scheduler.actors.engine_actor import RayEngine
from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.memory import keep_freed_memory
from ramify.store.database import Database
from ramify.store.schema import SLOTS
from ramify.store.work import Work
from ramify.verifier.client import VerifierClient

log = logging.getLogger(__name__)

STOP_S = 5.0  # a drain that takes longer is cut: what is not committed is sampled again


@ray.remote
class ShardActor:
    """Holds one shard and the asyncio shell around it. Whatever it dies of, the next one goes on from the last commit."""

    def __init__(self, index: int, config: SystemConfig, engines: Sequence[RayEngine]) -> None:
        keep_freed_memory()
        self._index, self._config, self._engines = index, config, engines
        self._database = Database(config.store_url)
        self._shell: Shell | None = None
        self._run: asyncio.Task[None] | None = None
        self._drained = False

    def __repr__(self) -> str:
        trees = self._shell.shard.live_trees if self._shell else 0
        return f"ramify:shard:{self._index} {trees} trees"

    async def ensure(self) -> None:
        """Start working, or go on; called over and over by the supervisor.

        Raises:
            Exception: what the shard died of since the last call; the next call starts it anew.
        """
        if self._run is None and not self._drained:
            work = Work(self._database)
            claim = await work.claim(f"shard:{self._index}", range(self._index, SLOTS, self._config.shards))
            self._shell = Shell(work, claim, self._engines, VerifierClient(self._config.verifier_address))
            self._run = asyncio.create_task(self._shell.run())
        if self._run is not None and self._run.done():
            run, self._run = self._run, None
            run.result()

    async def drain(self) -> None:
        """Commit what is there and stop; on return nothing is lost, or `STOP_S` seconds have passed."""
        self._drained = True
        if self._shell is not None and self._run is not None:
            self._shell.stop()
            await asyncio.wait({self._run}, timeout=STOP_S)


def start_shard(index: int, config: SystemConfig, engines: Sequence[RayEngine]) -> Any:
    """Start a shard actor; Ray restarts it whenever its process dies, `ensure` then sets it to work."""
    return ShardActor.options(  # type: ignore[attr-defined]
        name=f"ramify:shard:{index}",
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
    ).remote(index, config, engines)
