"""Clears away what has ended, at a low duty: every shard in its own slots, the holder of slot 0 in the whole store."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from ramify.store.errors import Fenced
from ramify.store.leases import Claim
from ramify.store.work import Work

log = logging.getLogger(__name__)

TREES_A_CALL = 2000
REST_S = 2.0  # between two calls, at least
DUTY = 0.1  # at most this share of the time is spent
SWEEP_S = 60.0  # between two sweeps
SWEEPER = 0  # the slot whose holder sweeps


class Housekeeping:
    """See the module."""

    def __init__(
        self,
        work: Work,
        claim: Callable[[], Claim],
        retention_ms: int | None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Clear away in the slots of `claim`; jobs that ended longer than `retention_ms` ago are deleted; None: none is."""
        self._work, self._claim, self._retention_ms = work, claim, retention_ms
        self._now_s, self._sleep = now_s, sleep
        self._swept_s = now_s()

    async def run(self) -> None:
        """Clear away until cancelled. What fails is tried again with the next turn."""
        rest_s = REST_S
        while True:
            await self._sleep(rest_s)
            began_s = self._now_s()
            try:
                await self.turn()
            except (SQLAlchemyError, Fenced) as error:  # of slots that were given up meanwhile; if they were taken, others say so
                log.info("housekeeping goes on later: %s", error)
            rest_s = max(REST_S, (self._now_s() - began_s) * (1 / DUTY - 1))

    async def turn(self) -> None:
        """Clear away some of what there is."""
        claim = self._claim()
        if claim.epochs:
            moved = await self._work.archive(claim, TREES_A_CALL)
            if moved:
                log.info("%s has archived %d trees", claim.owner, moved)
        if SWEEPER in claim.epochs and self._now_s() >= self._swept_s + SWEEP_S:
            swept = await self._work.sweep(self._retention_ms)
            self._swept_s = self._now_s()
            if swept.segments or swept.jobs:
                log.info("%s has deleted %d segments and %d jobs", claim.owner, swept.segments, swept.jobs)
