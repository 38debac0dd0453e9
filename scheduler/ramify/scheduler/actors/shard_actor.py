"""A shard as a Ray actor."""

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import ray

from ramify.scheduler.actors.aside import Aside
from ramify.scheduler.actors.config import DRAIN_S, NAMESPACE, FleetConfig, SystemConfig, placed, shard_choices, shard_owner
from ramify.scheduler.actors.lanes import EngineHandle
from ramify.scheduler.actors.metrics import ShardMetrics
from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.actors.status import ShellStatus
from ramify.scheduler.actors.telling import over_and_over, tell
from ramify.scheduler.memory import keep_freed_memory
from ramify.store.errors import Fenced
from ramify.store.work import Work

log = logging.getLogger(__name__)

PREFIX = "ramify:shard:"  # of the actors' names
RESTART_S = 0.5  # from a shell's end to the next one; twice as long after each, until one has worked for GOOD_S
RESTART_S_MAX = 15.0
GOOD_S = 60.0
CUT_S = 1.0  # in which a shell that is cut short ends
SWITCH_S = 0.001  # after which a busy thread lets another one run: the store's has little to do, but often


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """How a shard stands."""

    index: int
    shell: ShellStatus | None  # None: it does not work now
    failures: int = 0  # shells that have died one after the other
    failure: str = ""  # what the last of them died of, or why the shard can't be asked
    pid: int = 0  # of its process; 0: it can't be asked


@ray.remote
class ShardActor:
    """Holds one shard and the asyncio shell around it. Whatever it dies of, the next one goes on from the last commit."""

    def __init__(
        self,
        index: int,
        config: SystemConfig,
        engines: Sequence[EngineHandle],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        tell("shard", shard=str(index))
        keep_freed_memory()
        sys.setswitchinterval(SWITCH_S)
        self._index, self._config, self._engines, self._fleet = index, config, engines, config.fleet
        self._store: Aside | None = None  # of the shell
        self._closing: asyncio.Task[None] | None = None  # of the shell before
        self._verifier = config.verifier()
        self._shell: Shell | None = None
        self._run: asyncio.Task[None] | None = None
        self._drained = False
        self._now_s = now_s
        self._metrics = ShardMetrics(index)
        self._telling: asyncio.Task[NoReturn] | None = None
        self._failures, self._failure = 0, ""
        self._began_s = self._next_s = 0.0  # when the shell was started, and when the next one may be

    def __repr__(self) -> str:
        name = name_of(self._index)
        if self._shell is None:  # Ray's dashboard shows for ever what it is told now
            return f"{name} up to {self._config.limits.trees_max} trees"
        if self._run is None or self._run.done():
            return f"{name} {'drained' if self._drained else 'stopped'}"
        state = " paused" if self._shell.paused else ""
        return f"{name}{state} {len(self._shell.keeper.slots)} slots {self._shell.shard.live_trees} trees"

    async def use(self, engines: Sequence[EngineHandle], fleet: FleetConfig) -> None:
        """Work with other engines from now on, or with other terms."""
        self._engines, self._fleet = engines, fleet
        if self._shell is not None:
            self._shell.use(engines, fleet.terms)

    async def fleet(self) -> FleetConfig:
        """What it works with."""
        return self._fleet

    async def ensure(self) -> int:
        """Start working, or go on; called over and over by the supervisor.

        Returns:
            Revision of the fleet that it works with.

        Raises:
            Exception: what the shell has died of since the last call; a new one is started after a while.
        """
        now_s = self._now_s()
        self._telling = self._telling or asyncio.create_task(over_and_over(self._tell))
        if self._run is not None and self._run.done():
            run, self._run = self._run, None
            if now_s - self._began_s > GOOD_S:
                self._failures = 0
            self._next_s = now_s + min(RESTART_S * 2**self._failures, RESTART_S_MAX)
            if not self._drained:
                self._failures += 1
            try:
                run.result()
            except Exception as error:
                self._failure = f"{type(error).__name__}: {error}"
                self._metrics.restarted(fenced=isinstance(error, Fenced))
                raise
        if self._run is None and not self._drained and now_s >= self._next_s:
            # A new incarnation: it takes the slots of the one before, whose commits fail from then on, if it is still there.
            owner = shard_owner(self._config, self._index, secrets.token_hex(4))
            if self._store is not None:  # which knows what its shell has recovered; it may take as long as the database does
                self._closing = asyncio.create_task(self._store.close())
            self._store = Aside(self._config.store_url, self._config.work or Work)
            limits, terms = self._config.limits, self._fleet.terms
            self._shell = Shell(self._store, owner, self._engines, self._verifier, limits, terms)
            self._run, self._began_s = asyncio.create_task(self._shell.run()), now_s
        return self._fleet.revision

    @property
    def _works(self) -> ShellStatus | None:
        """How the shell stands; None: it does not work now."""
        return self._shell.status if self._shell and self._run is not None and not self._run.done() else None

    async def status(self) -> ShardStatus:
        """How it stands."""
        return ShardStatus(self._index, self._works, self._failures, self._failure, os.getpid())

    def _tell(self) -> None:
        if self._shell is not None:
            regions = {engine.name: engine.region for engine in self._engines}
            self._metrics.tell(self._works, self._shell.meters, regions)

    async def node(self) -> str:
        """Ray's id of the node where it runs."""
        return str(ray.get_runtime_context().get_node_id())

    async def drain(self, within_s: float = DRAIN_S) -> bool:
        """Commit what is there, hand the slots over and stop, within some seconds and `CUT_S`.

        Returns:
            Whether it came to its end; else it was cut short: the leases end by themselves, and what was not committed is
            sampled again.
        """
        self._drained = True
        if self._shell is None or self._run is None or self._run.done():
            return True
        self._shell.stop()
        done, _ = await asyncio.wait({self._run}, timeout=within_s)
        if not done:
            log.error("ramify:shard:%d was cut short: it could not commit all within %g s", self._index, within_s)
            self._run.cancel()
            await asyncio.wait({self._run}, timeout=CUT_S)
        return bool(done)


def name_of(index: int) -> str:
    """What a shard's actor is called."""
    return f"{PREFIX}{index}"


def start_shard(index: int, config: SystemConfig, engines: Sequence[EngineHandle]) -> Any:
    """Start a shard actor, or find it: Ray restarts it whenever its process dies, `ensure` then sets it to work.

    It outlives who has started it.
    """
    return ShardActor.options(  # type: ignore[attr-defined]
        name=name_of(index),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=config.shard_cpus,
        max_restarts=-1,
        max_task_retries=0,
        **placed(shard_choices(config, index)),
    ).remote(index, config, engines)
