"""The store, used from a thread of its own: a transaction must not wait for the shard's turns."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from ramify.scheduler.commands import Commit
from ramify.store.database import Database
from ramify.store.leases import Beat, Claim, Report
from ramify.store.recovery import Recovered
from ramify.store.tenants import Standing
from ramify.store.work import NONE, OpenJob, Pins, Swept, WaitingProblem, Work

R = TypeVar("R")

CLOSE_S = 5.0


class Aside(Work):
    """`Work` for an event loop that is busy.

    A transaction is a dozen statements, and after each of them its task waits for the loop. A shard's loop comes round once in 50
    ms or more under load: commits would take seconds, and other writers would wait for them. So they are made on a loop of their
    own, in a thread.
    """

    def __init__(self, url: str, make: Callable[[Database], Work] = Work) -> None:
        """Use the store at `url` through what `make` makes; nothing is connected before the first call."""
        super().__init__(Database(url))  # for what is asked of the database in the caller's loop
        self._work = make(Database(url))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="store")
        self._thread.start()

    async def close(self) -> None:
        """Let the transactions that run come to their end, and close every connection."""
        await self.database.close()
        await self._there(self._work.database.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _there(self, call: Coroutine[Any, Any, R]) -> R:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    async def beat(self, owner: str, ttl_ms: int, report: Report) -> Beat:
        """See `Work`."""
        return await self._there(self._work.beat(owner, ttl_ms, report))

    async def claim(self, owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        """See `Work`."""
        return await self._there(self._work.claim(owner, wanted, ttl_ms))

    async def release(self, claim: Claim, slots: Sequence[int]) -> None:
        """See `Work`."""
        await self._there(self._work.release(claim, slots))

    async def leave(self, owner: str) -> None:
        """See `Work`."""
        await self._there(self._work.leave(owner))

    async def open_jobs(self, known: Mapping[str, OpenJob] = NONE) -> list[OpenJob]:
        """See `Work`."""
        return await self._there(self._work.open_jobs(dict(known)))

    async def named(self, job_ids: Collection[str]) -> list[OpenJob]:
        """See `Work`."""
        return await self._there(self._work.named(job_ids))

    async def standings(self) -> dict[str, Standing]:
        """See `Work`."""
        return await self._there(self._work.standings())

    async def waiting(self, job: OpenJob, slots: Sequence[int], after: int, limit: int) -> list[WaitingProblem]:
        """See `Work`."""
        return await self._there(self._work.waiting(job, slots, after, limit))

    async def pin(self, claim: Claim, job_id: str, generator: str, verifier: str, checker: str) -> Pins:
        """See `Work`."""
        return await self._there(self._work.pin(claim, job_id, generator, verifier, checker))

    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        """See `Work`."""
        known = dict(first_segment)  # the caller's may change meanwhile
        before = len(known)
        segment = await self._there(self._work.commit(claim, commit, known))
        for tree_id in itertools.islice(known, before, None):
            first_segment.setdefault(tree_id, known[tree_id])
        return segment

    async def recover(self, claim: Claim) -> Recovered:
        """See `Work`."""
        return await self._there(self._work.recover(claim))

    async def archive(self, claim: Claim, limit: int) -> int:
        """See `Work`."""
        return await self._there(self._work.archive(claim, limit))

    async def sweep(self, retention_ms: int | None) -> Swept:
        """See `Work`."""
        return await self._there(self._work.sweep(retention_ms))
