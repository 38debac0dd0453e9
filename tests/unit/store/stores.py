"""What the conformance tests ask of a store: every kind of it passes the same ones."""

from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.commands import Commit, NodeRows
from ramify.store.audit import Actor
from ramify.store.clock import now_ms
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.tenants import Standing
from ramify.store.uploads import Uploads
from ramify.store.work import NONE, Beat, Claim, OpenJob, Pins, Recovered, Report, Swept, WaitingProblem, Work
from ramify.v1 import job_pb2
from tests.simulation.memory_kind import MemoryKind
from tests.unit.store.helpers import FILLED, SPEC, chunk

T = TypeVar("T")
Answer = Coroutine[Any, Any, T]


class ShardStore(Protocol):
    """What a shard knows of a store; see `Work`, which says what each of them does."""

    def beat(self, owner: str, ttl_ms: int, report: Report) -> Answer[Beat]: ...
    def claim(self, owner: str, wanted: Sequence[int], ttl_ms: int) -> Answer[Claim]: ...
    def release(self, claim: Claim, slots: Sequence[int]) -> Answer[None]: ...
    def leave(self, owner: str) -> Answer[None]: ...
    def open_jobs(self, known: Mapping[str, OpenJob] = NONE) -> Answer[list[OpenJob]]: ...
    def named(self, job_ids: Collection[str]) -> Answer[list[OpenJob]]: ...
    def standings(self) -> Answer[dict[str, Standing]]: ...
    def waiting(self, job: OpenJob, slots: Sequence[int], after: int, limit: int) -> Answer[list[WaitingProblem]]: ...
    def pin(self, claim: Claim, job_id: str, generator: str, verifier: str, checker: str) -> Answer[Pins]: ...
    def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> Answer[int]: ...
    def recover(self, claim: Claim) -> Answer[Recovered]: ...
    def archive(self, claim: Claim, limit: int) -> Answer[int]: ...
    def sweep(self, retention_ms: int | None) -> Answer[Swept]: ...


class Store(Protocol):
    """A store as seen from all sides: that of shards, that of users, and that of whoever moves its clock."""

    @property
    def work(self) -> ShardStore:
        """The store as the test's own process sees it."""
        ...

    def other_work(self) -> ShardStore:
        """The same store as another process sees it: nothing is shared but what is stored."""
        ...

    def advance(self, milliseconds: int) -> None:
        """Let time pass by the store's clock, which moves by this alone."""
        ...

    async def submit(self, problems: int, request_id: str, tenant: str = DEFAULT_TENANT, priority: int = 0) -> job_pb2.Job:
        """A job that runs, with so many problems."""
        ...

    async def cancel(self, job_id: str) -> None: ...

    async def job(self, job_id: str) -> job_pb2.Job:
        """Raises `JobNotFound`."""
        ...

    async def history(self, job_id: str) -> list[job_pb2.JobEvent]: ...

    async def results(self, job_id: str) -> list[job_pb2.Result]:
        """By problem index."""
        ...

    async def tree(self, job_id: str, index: int) -> NodeRows:
        """All committed steps of a tree, in the order of their commits."""
        ...


class SqlStore:
    """A `Store` on a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._now_ms = now_ms()
        self._jobs = Jobs(database, self._clock)
        self.work = Work(database, self._clock)

    async def _clock(self, _: AsyncConnection) -> int:
        return self._now_ms

    def other_work(self) -> ShardStore:
        return Work(self.database, self._clock)

    def advance(self, milliseconds: int) -> None:
        self._now_ms += milliseconds

    async def submit(self, problems: int, request_id: str, tenant: str = DEFAULT_TENANT, priority: int = 0) -> job_pb2.Job:
        texts, filled = [f"p{index}" for index in range(problems)], job_pb2.JobSpec(priority=priority)
        filled.MergeFrom(FILLED)
        uploads = Uploads(self.database, by=Actor(tenant))
        return await uploads.create(request_id, SPEC, filled, chunk(0, *texts, last=True), "call")

    async def cancel(self, job_id: str) -> None:
        await self._jobs.cancel(job_id)

    async def job(self, job_id: str) -> job_pb2.Job:
        return await self._jobs.get(job_id)

    async def history(self, job_id: str) -> list[job_pb2.JobEvent]:
        found: list[job_pb2.JobEvent] = []
        while True:
            page = await self._jobs.history(job_id, len(found))
            found += page.events
            if len(found) == page.cursor:
                return found

    async def results(self, job_id: str) -> list[job_pb2.Result]:
        found, _ = await self._jobs.results(job_id, 100_000, -1)
        return found

    async def tree(self, job_id: str, index: int) -> NodeRows:
        return (await self._jobs.tree(job_id, index)).nodes


MEMORY = "memory"  # the fake of the simulation
KINDS = ("sqlite", "postgresql", MEMORY)


@asynccontextmanager
async def opened(place: str) -> AsyncIterator[Store]:
    """An empty store of one of the `KINDS`; `place` is its URL, where it has one, and else its kind."""
    if place == MEMORY:
        yield MemoryKind(FILLED)
        return
    database = Database(place)
    await database.migrate()
    try:
        yield SqlStore(database)
    finally:
        await database.close()
