"""Wake-ups: told once it is committed, heard by other connections, and never needed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from ramify.store import wakeup as wakeup_module
from ramify.store.database import Database
from ramify.store.errors import StoreUnavailable
from ramify.store.jobs import Jobs
from ramify.store.rows import change_and_record, job_row
from ramify.store.uploads import Uploads
from ramify.store.wakeup import Channel, Listener, Wakeups, notify
from tests.postgres import Postgres
from tests.unit.store.helpers import EMPTY, FILLED, LAST, SPEC, chunk, running_job

PATIENCE_S = 30  # how long a test waits for what must come
NEVER_S = 3600.0


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is told wakes."""
    monkeypatch.setattr(wakeup_module, "FALLBACK_S", NEVER_S)


@pytest.fixture
async def telling(postgres_store: str, no_fallback: None) -> AsyncIterator[Database]:
    database = Database(postgres_store)
    await database.migrate()
    yield database
    await database.close()


class Ear:
    """Notes what it hears."""

    def __init__(self, wakeups: Wakeups, listener: Listener, said: list[str]) -> None:
        self.wakeups, self.listener, self.said = wakeups, listener, said

    async def connected(self, hears: bool = True) -> None:
        while self.wakeups.hears != hears:
            await self.listener.wait(NEVER_S)

    async def next(self, count: int) -> list[str]:
        """What was said, once it is so much."""
        while len(self.said) < count:
            await self.listener.wait(NEVER_S)
        said, self.said[:] = self.said.copy(), []
        return said


@contextmanager
def ear(database: Database, *channels: Channel) -> Iterator[Ear]:
    said: list[str] = []

    def wanted(payload: str) -> bool:
        said.append(payload)
        return True

    wakeups = Wakeups(database, *channels)
    with wakeups.listener(wanted=wanted) as listener:
        yield Ear(wakeups, listener, said)


async def tell(database: Database, *payloads: str, fail: bool = False, channel: Channel = Channel.SLOTS) -> None:
    async with database.write() as connection:
        for payload in payloads:
            await notify(connection, channel, payload)
        if fail:
            raise ZeroDivisionError


async def test_what_is_committed_is_told_once(telling: Database) -> None:
    with ear(telling, Channel.SLOTS) as heard, ear(telling) as all_ears:
        await heard.connected()
        await all_ears.connected()
        with pytest.raises(ZeroDivisionError):
            await tell(telling, "never", fail=True)
        await tell(telling, "another channel", channel=Channel.JOBS)
        await tell(telling, "a", "a", "b")
        await tell(telling, "last")
        assert await heard.next(3) == ["a", "b", "last"]
        assert await all_ears.next(4) == ["another channel", "a", "b", "last"]


async def test_what_others_want_wakes_nobody_else(telling: Database) -> None:
    said: list[str] = []

    def wanted(payload: str) -> bool:
        said.append(payload)
        return payload == "mine"

    wakeups = Wakeups(telling, Channel.SLOTS)
    with wakeups.listener(wanted=wanted) as listener, ear(telling) as heard:
        while not wakeups.hears:
            await listener.wait(NEVER_S)
        await heard.connected()

        async def woken_at() -> list[str]:
            await listener.wait(NEVER_S)
            return said.copy()

        waiting = asyncio.create_task(woken_at())
        await tell(telling, "not mine")
        await heard.next(1)
        await tell(telling, "mine")
        assert await waiting == ["not mine", "mine"]


async def test_what_is_said_before_the_wait_ends_it(telling: Database) -> None:
    wakeups, said = Wakeups(telling), asyncio.Event()

    def wanted(_: str) -> bool:
        said.set()
        return True

    with wakeups.listener(wanted=wanted) as listener:
        while not wakeups.hears:
            await listener.wait(NEVER_S)
        await tell(telling, "early")
        await said.wait()
        await listener.wait(NEVER_S)


async def test_jobs_tell_of_themselves(telling: Database) -> None:
    uploads, jobs = Uploads(telling), Jobs(telling)
    with ear(telling, Channel.JOBS) as of_jobs, ear(telling, Channel.EVENTS) as of_events:
        await of_jobs.connected()
        await of_events.connected()
        started = await running_job(telling)
        uploading = await uploads.create("uploading", SPEC, FILLED, chunk(0, "p0"), "a")
        await uploads.append(uploading.job_id, LAST, "a")
        await jobs.cancel(started.job_id)
        await jobs.cancel(started.job_id)  # it has ended
        await uploads.create("empty", SPEC, FILLED, EMPTY, "a")
        expected = [started.job_id, uploading.job_id, started.job_id]
        assert await of_jobs.next(3) == expected
        assert await of_events.next(3) == expected


async def test_a_server_that_restarts_wakes_and_is_heard_again(postgres: Postgres, no_fallback: None) -> None:
    database = Database(postgres.url)
    with ear(database) as heard:
        await heard.connected()
        await asyncio.to_thread(postgres.stop, "immediate")
        await heard.connected(hears=False)
        await asyncio.to_thread(postgres.start)
        await heard.connected()
        await tell(database, "again")
        assert await heard.next(1) == ["again"]
    await database.close()


async def test_a_server_that_comes_later_is_heard(postgres: Postgres, no_fallback: None) -> None:
    database = Database(postgres.url)
    postgres.stop()
    with ear(database) as heard:
        await heard.listener.wait(0)
        assert not heard.wakeups.hears
        await asyncio.to_thread(postgres.start)
        await heard.connected()
        await tell(database, "at last")
        assert await heard.next(1) == ["at last"]
    await database.close()


async def test_a_commit_of_which_no_word_gets_out_is_a_commit(postgres: Postgres) -> None:
    database = Database(postgres.url)
    await database.migrate()
    jobs, job = Jobs(database), await running_job(database)

    def die(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "pg_notify" in statement:
            postgres.stop("immediate")

    event.listen(database.engine.sync_engine, "before_cursor_execute", die)
    cancelled = await jobs.cancel(job.job_id)
    with pytest.raises(StoreUnavailable):
        await jobs.get(job.job_id)
    postgres.start()
    assert await jobs.get(job.job_id) == cancelled
    await database.close()


async def test_what_is_not_told_is_found_all_the_same(telling: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a process dies between its commit and the word of it."""
    job = await running_job(telling)
    with ear(telling, Channel.EVENTS) as heard:
        await heard.connected()
        monkeypatch.setattr(wakeup_module, "FALLBACK_S", 0.01)
        async with telling.engine.begin() as connection:  # not `write`, which tells
            await change_and_record(connection, (await job_row(connection, job.job_id, None)).number, steps=1)
        await heard.listener.wait(0)
        assert heard.said == []


async def test_sqlite_tells_nothing_and_all_poll(tmp_path_factory: pytest.TempPathFactory) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('store') / 'state.db'}")
    await database.migrate()
    with ear(database) as heard:
        await tell(database, "nothing")
        await heard.listener.wait(0.001)
        assert (heard.wakeups.hears, heard.said) == (False, [])
        heard.listener.wake()
        await heard.listener.wait(NEVER_S)
    await database.close()
