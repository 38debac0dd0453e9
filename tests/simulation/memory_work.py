"""The store in memory as a shard's process sees it."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from ramify.scheduler.commands import Commit
from ramify.store import running
from ramify.store.archive import Swept
from ramify.store.errors import Fenced
from ramify.store.leases import Beat, Claim, Report, shard_of
from ramify.store.ledger import Ledger
from ramify.store.recovery import Recovered
from ramify.store.tenants import DAY_MS, Standing, Tenant
from ramify.store.work import NONE, OpenJob, Pins, WaitingProblem
from tests.simulation.memory_store import MemoryStore

T = TypeVar("T")

Wire = Callable[[str, Callable[[], Any]], Awaitable[Any]]
"""Carries a call (its name, and what it does) to the store, and brings its answer back."""


async def at_once(name: str, call: Callable[[], T]) -> T:
    """A wire without length."""
    return call()


class MemoryWork:
    """The store as a shard's process sees it; see `ramify.store.work.Work`."""

    database = SimpleNamespace(tells=False)  # nobody is woken: who waits has to look

    def __init__(self, store: MemoryStore, wire: Wire = at_once) -> None:
        self.store, self._wire = store, wire
        self._ledgers: dict[str, Ledger] = {}

    def _ledger(self, claim: Claim) -> Ledger:
        if claim.owner not in self._ledgers:
            self._ledgers = {name: each for name, each in self._ledgers.items() if shard_of(name) != shard_of(claim.owner)}
            self._ledgers[claim.owner] = Ledger()
        return self._ledgers[claim.owner]

    async def beat(self, owner: str, ttl_ms: int, report: Report) -> Beat:
        """See `Work.beat`."""
        return await self._call("beat", lambda: self.store.beat(owner, ttl_ms, report))

    async def claim(self, owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        """See `Work.claim`."""
        return await self._call("claim", lambda: self.store.claim(owner, [*wanted], ttl_ms))

    async def release(self, claim: Claim, slots: Sequence[int]) -> None:
        """See `Work.release`."""
        await self._call("release", lambda: self.store.release(claim, slots))

    async def leave(self, owner: str) -> None:
        """See `Work.leave`."""
        await self._call("leave", lambda: self.store.leave(owner))

    async def open_jobs(self, known: Mapping[str, OpenJob] = NONE) -> list[OpenJob]:
        """See `Work.open_jobs`."""
        return await self._call("open_jobs", lambda: self._open_jobs(known))

    async def named(self, job_ids: Collection[str]) -> list[OpenJob]:
        """See `Work.named`."""
        return await self._call("named", lambda: [job for job in self._running() if job.job_id in job_ids])

    async def standings(self) -> dict[str, Standing]:
        """See `Work.standings`."""
        return await self._call("standings", self._standings)

    async def waiting(self, job: OpenJob, slots: Sequence[int], after: int, limit: int) -> list[WaitingProblem]:
        """See `Work.waiting`."""
        return await self._call("waiting", lambda: self.store.waiting(job.job_id, [*slots], after, limit))

    async def pin(self, claim: Claim, job_id: str, generator: str, verifier: str, checker: str) -> Pins:
        """See `Work.pin`."""
        return await self._call("pin", lambda: self.store.pin(claim, job_id, Pins(generator, verifier, checker)))

    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        """See `Work.commit`."""
        ledger, trees = self._ledger(claim), np.unique(commit.nodes.tree_id).tolist()
        ledger.begin(trees)
        known = dict(first_segment)
        try:
            name = "commit that releases" if commit.released else "commit"
            segment = await self._call(name, lambda: self.store.commit(claim, commit, known))
        except Fenced:
            self._ledgers.pop(claim.owner, None)
            raise
        ledger.done(segment, trees, [result.tree_id for delta in commit.jobs for result in delta.results], commit.released)
        for tree in trees:
            first_segment.setdefault(tree, segment)
        return segment

    async def recover(self, claim: Claim) -> Recovered:
        """See `Work.recover`."""
        found = await self._call("recover", lambda: self.store.recover(claim))
        self._ledger(claim).recovered(claim.epochs, found.first_segment)
        return found

    async def archive(self, claim: Claim, limit: int) -> int:
        """See `Work.archive`."""
        return await self._call("archive", lambda: self.store.archive(claim, self._ledger(claim), limit))

    async def sweep(self, retention_ms: int | None) -> Swept:
        """See `Work.sweep`."""
        return await self._call("sweep", lambda: self.store.sweep(retention_ms))

    def _running(self) -> list[OpenJob]:
        return sorted((job.open_job() for job in self.store.running()), key=lambda job: job.order)

    def _open_jobs(self, known: Mapping[str, OpenJob]) -> list[OpenJob]:
        found, others = list[OpenJob](), Counter[str]()
        for job in self._running():
            others[job.tenant] += job.job_id not in known
            if job.job_id in known or others[job.tenant] <= running.OTHERS_MAX:
                found.append(known.get(job.job_id, job))
        return found

    def _standings(self) -> dict[str, Standing]:
        today = self.store.clock() // DAY_MS
        spent = {tenant: each for (tenant, day), each in self.store.spent.items() if day == today and any(each.values())}
        return {
            name: Standing(
                self.store.tenants.get(name, Tenant(name)),
                *(spent[name][what] if name in spent else 0 for what in ("steps", "tokens")),
            )
            for name in sorted({*self.store.tenants, *spent})
        }

    async def _call(self, name: str, call: Callable[[], T]) -> T:
        found: T = await self._wire(name, call)
        return found
