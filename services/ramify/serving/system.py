"""The system as an application of Ray Serve: it starts the supervisor, or finds it, and tells how the system is.

The actors outlive its replica, which may be restarted at any time. They end with the application.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from ramify import logs
from ramify.scheduler.actors.config import DRAIN_S, SystemConfig, supervisor_choices, unplaceable
from ramify.scheduler.actors.lanes import told
from ramify.scheduler.actors.named import actor_names, end_actors
from ramify.scheduler.actors.shard_actor import CUT_S
from ramify.scheduler.actors.supervisor import LEAVE_S, start_supervisor
from ramify.serving.config import Source, files
from ramify.serving.errors import Ill, Misconfigured, ServingError
from ramify.watched import Watched

log = logging.getLogger(__name__)

NAME = "system"
PLACED_S = 45.0  # in which the supervisor must be there, or else it is told what it lacks
PATIENCE_S = 30.0
APPLY_S = 5.0  # between two times that the supervisor is told what there is to be
ANSWER_S = 10.0  # in which the supervisor says how things are
HEALTH_S = 10.0  # between two times that Serve asks; what fails three times is restarted
STOP_S = 5.0  # for all that is no drain
TRIES_MAX = 1_000_000  # of starts, ever longer apart; Serve's own bound is lower, see docs/dashboard.md


@serve.deployment(
    name=NAME,
    num_replicas=1,
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=64,
    max_constructor_retry_count=TRIES_MAX,
    health_check_period_s=HEALTH_S,
    health_check_timeout_s=2 * ANSWER_S,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=DRAIN_S + CUT_S + LEAVE_S + STOP_S,
)
class System:
    """See the module."""

    async def __init__(self, read: Callable[[], Source], patience_s: float = PATIENCE_S) -> None:  # type: ignore[misc] # Serve awaits it
        """Start what there is to be.

        Args:
            read: says it, now and whenever one of its files changes.
            patience_s: with engines that load, each time that it is tried.

        Raises:
            ServingError: why it can't be had now; Serve shows it, and tries again.
        """
        logs.configure()
        self._patience_s = patience_s
        self._watched = Watched(read, files, Misconfigured)
        self._restart_for: list[str] = []  # what has changed and takes a start of everything
        self._failure = ""  # why the system is not as it is to be
        self._supervisor = await _placed(self._config)
        try:
            await self._configure()
        except Exception as error:
            raise ServingError(f"the system can't be started: {told(error)}") from error
        self._keeping = asyncio.create_task(self._keep())

    @property
    def _config(self) -> SystemConfig:
        return self._watched.value.config

    async def _configure(self) -> None:
        found = await self._supervisor.configure.remote(self._config, self._patience_s)
        if found != self._restart_for and found:
            log.warning(
                "%s changed: that is used once the application is deleted and deployed anew; jobs go on", " and ".join(found)
            )
        self._restart_for = found

    async def _keep(self) -> None:
        """Have what there is to be, again and again, for a supervisor that has died may have forgotten it."""
        while True:
            await asyncio.sleep(APPLY_S)
            if self._watched.look():
                log.warning(
                    "the system is to be another one: %d shards, %d engines", self._config.shards, len(self._config.fleet.engines)
                )
            try:
                await self._configure()
                self._failure = ""
            except Exception as error:  # it is tried again
                if self._failure != (failure := told(error)):
                    log.error("the system is not as it is to be: %s", failure)
                self._failure = failure

    async def check_health(self) -> None:
        """For Serve. Raises what has been wrong for long; a restart does no harm, and finds a supervisor anew."""
        try:
            async with asyncio.timeout(ANSWER_S):
                ill = await self._supervisor.health.remote()
        except TimeoutError:
            ill = f"the supervisor does not answer within {ANSWER_S:.0f} s"
        except Exception as error:
            ill = f"the supervisor can't be asked: {told(error)}"
        if ill:
            raise Ill(ill)

    async def status(self) -> dict[str, Any]:
        """How the system stands, as JSON has it: each shard's `ShardStatus`, and what is not as it is to be."""
        async with asyncio.timeout(ANSWER_S):
            shards = await self._supervisor.status.remote()
        return {
            "shards": [asdict(shard) for shard in shards],
            "failure": self._failure,
            "restart_for": self._restart_for,
        }

    async def __del__(self) -> None:
        """Called by Serve when the replica stops. If the application is deleted, the shards commit, and all actors end."""
        self._keeping.cancel()
        if not await asyncio.to_thread(_deleted):
            return
        with contextlib.suppress(Exception):  # what is not committed is sampled again
            await self._supervisor.drain.remote()
        await asyncio.to_thread(lambda: end_actors(actor_names()))


async def _placed(config: SystemConfig) -> Any:
    """The supervisor, once it is there. Raises `ServingError` if no node can have it: Ray keeps it waiting and says nothing."""
    supervisor = start_supervisor(config, detached=True)
    try:
        async with asyncio.timeout(PLACED_S):
            await supervisor.health.remote()
    except TimeoutError:
        why = unplaceable(supervisor_choices(config), 0, await asyncio.to_thread(ray.nodes))
        if why:  # what comes next may have it elsewhere
            ray.kill(supervisor)
        raise ServingError(
            f"the supervisor has not started within {PLACED_S:.0f} s: {why or 'Ray has no room for it, or is just starting it'}"
        ) from None
    return supervisor


def _deleted() -> bool:
    """Whether the application of this replica is being deleted."""
    found = serve.status().applications.get(serve.get_replica_context().app_name)
    return found is None or found.status is ApplicationStatus.DELETING
