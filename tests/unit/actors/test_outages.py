"""The store is away or full, engines or the verifier are away: what goes on, what waits, and that it is told."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from sqlalchemy import Connection, event

from ramify.scheduler.actors import waits
from ramify.scheduler.actors.backlog import Backlog
from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.commands import Commit
from ramify.scheduler.events import StepsSampled
from ramify.store.errors import StoreUnavailable
from ramify.store.leases import Beat, Claim, Report
from ramify.store.work import NONE, OpenJob, Work
from ramify.v1 import job_pb2
from tests.postgres import Postgres
from tests.unit.actors.house import LIMITS, House, house

T = TypeVar("T")


class Distant(Work):
    """A store that is away when the test says so."""

    away = False

    async def beat(self, owner: str, ttl_ms: int, report: Report) -> Beat:
        return await self._reach(super().beat(owner, ttl_ms, report))

    async def claim(self, owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        return await self._reach(super().claim(owner, wanted, ttl_ms))

    async def open_jobs(self, known: Mapping[str, OpenJob] = NONE) -> list[OpenJob]:
        return await self._reach(super().open_jobs(known))

    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        return await self._reach(super().commit(claim, commit, first_segment))

    async def _reach(self, call: Coroutine[Any, Any, T]) -> T:
        if Distant.away:
            call.close()
            raise StoreUnavailable("the store's database does not answer")
        return await call


@pytest.fixture
async def home(sqlite_store: str) -> AsyncIterator[House]:
    async with house(sqlite_store, Distant) as found:
        yield found
        Distant.away = False


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "TOLD_S", 0.0)


def steps(count: int, tokens: int = 3, *, committed: bool = False) -> StepsSampled:
    names, ones = np.arange(count, dtype=np.uint64), np.ones(count, np.int32)
    text = np.zeros(count, np.uint8)
    floats = np.zeros(count, np.float32)
    all_tokens = np.zeros(count * tokens, np.int32)
    return StepsSampled(
        ones.astype(np.int64),
        names,
        names,
        all_tokens,
        tokens * ones,
        text,
        ones,
        floats,
        ones.astype(np.uint8),
        floats,
        committed=committed,
    )


def test_the_backlog_is_bounded_in_steps_bytes_and_seconds() -> None:
    now_s = 0.0
    limits = ShellLimits(backlog_steps_max=10, backlog_bytes_max=8 << 20, backlog_s_max=5)
    backlog = Backlog(limits, lambda: now_s)
    backlog.add(steps(10))
    assert (backlog.steps, backlog.full) == (10, "")
    backlog.add(steps(5, committed=True))
    assert backlog.full == "", "what the journal tells is durable"
    backlog.begin()
    backlog.add(steps(1))
    assert backlog.full == "11 steps are not committed"
    backlog.stuck = "the disk is full"
    assert backlog.full == "11 steps are not committed: the disk is full"
    backlog.end()
    assert (backlog.steps, backlog.full) == (1, "")
    backlog.add(steps(1, tokens=(8 << 20) // 4))
    assert backlog.full == "8 MiB of steps are not committed"
    backlog.begin()
    backlog.end()
    backlog.begin()
    now_s = 5.0
    assert backlog.full == ""
    now_s = 6.0
    assert backlog.full == "a commit has taken 6 s"
    backlog.end()
    assert (backlog.full, backlog.lag_s) == ("", 0.0)


async def test_while_the_store_is_away_sampling_goes_on_until_the_backlog_is_full(home: House) -> None:
    limits = replace(LIMITS, lease_ms=60_000, backlog_steps_max=100)
    job_id = await home.submit(60)
    shell = home.start(limits=limits)
    home.engines[0].go_on(2)
    await home.until(lambda: shell.commits > 0)
    Distant.away = True
    home.engines[0].go_on()
    await home.until(lambda: shell.paused.endswith("steps are not committed: the store's database does not answer"))
    assert shell.status.uncommitted_steps <= 100 + 2 * 16, "what was in flight has come as well"
    sampled, seen = home.engines[0].sampled, (await home.job(job_id)).progress
    for _ in range(20):
        await asyncio.sleep(0)
    assert home.engines[0].sampled == sampled
    assert (await home.job(job_id)).progress == seen, "nothing is published that is not committed"
    (wait,) = shell.status.waits
    assert (wait.job_id, wait.what, wait.reason) == (job_id, "store", shell.paused)
    assert wait.count == shell.status.uncommitted_steps
    Distant.away = False
    await home.done(job_id)
    assert not shell.paused


async def test_when_no_beat_succeeds_for_long_nothing_is_sampled_until_one_does(home: House) -> None:
    job_id = await home.submit(60)
    shell = home.start()
    await home.until(lambda: home.engines[0].sampled > 0)
    Distant.away = True
    await home.until(lambda: shell.keeper.stale)
    assert shell.paused == "the store has not been heard of for so long that the leases may have ended"
    Distant.away = False
    await home.done(job_id)


class Disk:
    """That of SQLite, which may be full. To be made before anything runs: a listener must not come in the midst of others."""

    def __init__(self, home: House) -> None:
        self._pages: int | None = None  # that there may be; None: nobody has asked
        self._filling = False
        event.listen(home.database.engine.sync_engine, "begin", self._bound)

    def fill(self) -> None:
        """No page more may be taken, but for a few."""
        self._filling = True

    def free(self) -> None:
        """There is space again."""
        self._pages = 1 << 30

    def _bound(self, connection: Connection) -> None:
        if self._filling and self._pages is None:
            self._pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 2
        if self._pages is not None:
            connection.exec_driver_sql(f"PRAGMA max_page_count={self._pages}")


async def test_a_full_disk_pauses_everything_and_space_lets_it_go_on(home: House) -> None:
    """SQLite itself says that it is full."""
    disk = Disk(home)
    undisturbed = await home.submit(40, "undisturbed")
    shell = home.start()
    progress = (await home.done(undisturbed)).progress
    job_id = await home.submit(40)
    disk.fill()
    await home.until(lambda: shell.paused == "the store's disk is full: free space, and work goes on by itself")
    assert {wait.what for wait in shell.status.waits} <= {"store"}
    disk.free()
    job = await home.done(job_id)
    assert await home.outcome(job_id) == await home.outcome(undisturbed)
    assert job.progress == progress
    async with home.database.read() as connection:
        assert (await connection.exec_driver_sql("PRAGMA integrity_check")).scalar_one() == "ok"


async def test_postgresql_is_stopped_and_started_in_the_middle_of_a_job(postgres: Postgres) -> None:
    async with house(postgres.url) as home:
        undisturbed = await home.submit(40, "undisturbed")
        shell = home.start()
        progress = (await home.done(undisturbed)).progress
        job_id = await home.submit(40)
        home.engines[0].go_on(3)
        await home.until(lambda: shell.shard.live_trees > 0)
        await asyncio.to_thread(postgres.stop, "immediate")
        home.engines[0].go_on()
        await home.until(lambda: shell.paused)
        await asyncio.to_thread(postgres.start)
        job = await home.done(job_id)
        assert await home.outcome(job_id) == await home.outcome(undisturbed)
        assert job.progress == progress


async def test_a_job_waits_for_its_engines_and_says_so(home: House) -> None:
    home.engines[0].gone = True
    job_id = await home.submit()
    shell = home.start()
    await home.until(lambda: shell.status.waits)
    (wait,) = shell.status.waits
    reason = "no engine with simulated is alive (engine 0: EngineError: it is away)"
    assert (wait.job_id, wait.what, wait.reason, wait.count) == (job_id, "engines", reason, 12)
    await home.until(lambda: told(home, job_id, "engines"))
    home.engines[0].gone = False
    job = await home.done(job_id)
    assert job.pins.generator == "1"
    await home.until(lambda: not shell.status.waits)


async def told(home: House, job_id: str, what: str) -> bool:
    """Whether users are told that a job waits for something."""
    return what in [wait.what for wait in (await home.job(job_id)).waits]


async def test_steps_wait_for_engines_and_their_loss_costs_nothing(home: House) -> None:
    undisturbed = await home.submit(40, "undisturbed")
    shell = home.start()
    progress = (await home.done(undisturbed)).progress
    job_id = await home.submit(40)
    home.engines[0].go_on(3)
    await home.until(lambda: home.engines[0].batches_left <= 0)
    home.engines[0].gone = True
    home.engines[0].go_on()
    await home.until(lambda: told(home, job_id, "engines"))
    (wait,) = [wait for wait in shell.status.waits if wait.what == "engines"]
    assert wait.count > 0
    home.engines[0].gone = False
    job = await home.done(job_id)
    assert await home.outcome(job_id) == await home.outcome(undisturbed)
    assert job.progress.retries > 0
    assert (job.progress.steps, job.progress.tokens) == (progress.steps, progress.tokens)
    history = [found.notice for found in (await home.jobs.history(job_id, 0)).events if found.HasField("notice")]
    kinds = [notice.kind for notice in history]
    assert job_pb2.NOTICE_KIND_WAIT in kinds


async def test_a_job_keeps_to_the_revisions_that_it_began_with(home: House) -> None:
    job_id = await home.submit(40)
    shell = home.start()
    home.engines[0].go_on(2)
    await home.until(lambda: home.engines[0].batches_left <= 0)
    home.verifier.revision = "8"
    home.engines[0].go_on()
    await home.until(lambda: told(home, job_id, "verifier"))
    (wait,) = [wait for wait in shell.status.waits if wait.what == "verifier"]
    assert "prm is of revision 8, not 7" in wait.reason
    home.verifier.revision = "7"
    await home.done(job_id)
    assert home.verifier.asked == {"7"}
    home.engines[0].revision = "2"
    await home.crash(shell)
    other = await home.submit(4, "other")
    home.start()
    assert (await home.done(other)).pins.generator == "2"


async def test_a_job_that_is_pinned_waits_for_an_engine_of_its_revision(home: House) -> None:
    job_id = await home.submit(40)
    shell = home.start()
    home.engines[0].go_on(2)
    await home.until(lambda: home.engines[0].batches_left <= 0)
    await home.crash(shell)
    home.engines[0].revision = "2"
    shell = home.start()
    home.engines[0].go_on()
    await home.until(lambda: told(home, job_id, "engines"))
    assert {wait.reason for wait in shell.status.waits} == {
        "the job keeps to revision 1 of simulated, the engines have 2",
    }
    home.engines[0].revision = "1"
    await home.crash(shell)
    home.start()
    await home.done(job_id)


async def test_jobs_wait_for_the_verifier(home: House) -> None:
    home.verifier.gone = True
    job_id = await home.submit()
    home.start()
    await home.until(lambda: told(home, job_id, "verifier"))
    home.verifier.gone = False
    await home.done(job_id)
