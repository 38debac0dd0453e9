"""A database that is down, full, hung or too busy: who calls is told so in our words, and all goes on once it is over."""

import asyncio
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError

from ramify.store import database as database_module
from ramify.store.database import IDLE_MS, LOCK_MS, POOL_OVERFLOW, POOL_SIZE, STATEMENT_MS, Database
from ramify.store.errors import CannotOpen, Contention, DiskFull, StoreBusy, StoreError, StoreOutage, StoreUnavailable
from ramify.store.failures import kind_of, translated
from ramify.store.jobs import Jobs
from ramify.store.rows import job_row
from ramify.store.uploads import Uploads
from ramify.v1 import job_pb2
from tests.postgres import Postgres
from tests.unit.store.helpers import FILLED, SPEC, chunk, count, running_job

PATIENCE_S = 60  # how long a test waits for what must come
STILL_MS = 200

STANDS_STILL = """
import asyncio, sys
from ramify.store.database import Database
from ramify.store.rows import change_and_record, job_row

async def main(url, job_id):
    try:
        async with Database(url).write() as connection:
            row = await job_row(connection, job_id, None, lock=True)
            await change_and_record(connection, row.number, tokens=1_000)
            print("holds the row", flush=True)
            sys.stdin.readline()  # with the whole event loop
            await change_and_record(connection, row.number, tokens=2_000)
    except Exception as error:
        print(type(error).__name__)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


def with_options(url: str, **settings: object) -> str:
    """The URL, with settings of the session added."""
    parsed = make_url(url)
    (options,) = parsed.normalized_query.get("options", ("",))
    added = "".join(f" -c{name}={value}" for name, value in settings.items())
    return parsed.update_query_dict({"options": options + added}).render_as_string(hide_password=False)


class Said(Exception):
    """What a driver raises."""

    def __init__(self, **codes: object) -> None:
        super().__init__("secret")
        vars(self).update(codes)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ({"sqlstate": None}, StoreUnavailable),  # libpq's own: connection refused, reset, timed out
        ({"sqlstate": "08006"}, StoreUnavailable),
        ({"sqlstate": "57P01"}, StoreUnavailable),  # told to stop
        ({"sqlstate": "57P03"}, StoreUnavailable),  # starting up
        ({"sqlstate": "25P03"}, StoreUnavailable),
        ({"sqlstate": "25006"}, StoreUnavailable),  # a standby
        ({"sqlstate": "53300"}, StoreBusy),  # too many connections
        ({"sqlstate": "55P03"}, StoreBusy),
        ({"sqlstate": "57014"}, StoreBusy),
        ({"sqlstate": "40001"}, Contention),
        ({"sqlstate": "40P01"}, Contention),
        ({"sqlstate": "53100"}, DiskFull),
        ({"sqlstate": "42P01"}, None),  # no such table
        ({"sqlstate": "23505"}, None),  # not unique
        ({"sqlite_errorcode": sqlite3.SQLITE_FULL}, DiskFull),
        ({"sqlite_errorcode": sqlite3.SQLITE_IOERR_SHMSIZE}, DiskFull),
        ({"sqlite_errorcode": sqlite3.SQLITE_BUSY_TIMEOUT}, StoreBusy),
        ({"sqlite_errorcode": sqlite3.SQLITE_LOCKED_SHAREDCACHE}, StoreBusy),
        ({"sqlite_errorcode": sqlite3.SQLITE_IOERR_FSYNC}, StoreUnavailable),
        ({"sqlite_errorcode": sqlite3.SQLITE_CANTOPEN}, StoreUnavailable),
        ({"sqlite_errorcode": sqlite3.SQLITE_CORRUPT}, None),
        ({"sqlite_errorcode": sqlite3.SQLITE_ERROR}, None),
    ],
)
def test_codes(codes: dict[str, Any], kind: type[StoreOutage] | None) -> None:
    error = OperationalError("SELECT secret", {}, Said(**codes))
    assert kind_of(error) is kind
    with pytest.raises(kind or OperationalError) as caught, translated():
        raise error
    if kind is not None:
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is error
        assert isinstance(caught.value, StoreError)
        assert isinstance(caught.value, SQLAlchemyError), "who tries again whatever the database fails with catches it too"


async def test_what_is_no_outage_comes_through(database: Database) -> None:
    for transaction in (database.read, database.write):
        with pytest.raises((ProgrammingError, OperationalError), match="nothing_of_the_kind"):
            async with transaction() as connection:
                await connection.execute(text("SELECT * FROM nothing_of_the_kind"))


async def test_more_transactions_than_connections(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(database_module._POOL, "pool_timeout", 0.01)
    database = Database(store_url)
    await database.migrate()
    job = await running_job(database)
    full, release = asyncio.Barrier(POOL_SIZE + POOL_OVERFLOW + 1), asyncio.Event()

    async def hold() -> None:
        async with database.read():
            await full.wait()
            await release.wait()

    holding = [asyncio.create_task(hold()) for _ in range(POOL_SIZE + POOL_OVERFLOW)]
    await full.wait()
    with pytest.raises(StoreBusy, match="all connections to the store's database are in use: try again"):
        await Jobs(database).get(job.job_id)
    release.set()
    await asyncio.gather(*holding)
    assert (await Jobs(database).get(job.job_id)).job_id == job.job_id
    await database.close()


async def test_a_full_disk_of_sqlite(tmp_path_factory: pytest.TempPathFactory) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('store') / 'state.db'}")
    await database.migrate()
    job = await running_job(database)
    async with database.engine.connect() as connection:  # the only one of the pool: writers come one after the other
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    large = chunk(0, *("x" * 10_000 for _ in range(100)))
    for _ in range(2):
        with pytest.raises(DiskFull, match="the store's disk is full: free space, and work goes on by itself"):
            await Uploads(database).create("large", SPEC, FILLED, large, "a")
    assert (await Jobs(database).get(job.job_id)).state == job_pb2.JOB_STATE_RUNNING
    async with database.engine.connect() as connection:
        await connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    assert (await Uploads(database).create("large", SPEC, FILLED, large, "a")).progress.problems_total == 100
    await database.close()


async def test_a_full_disk_of_postgresql(postgres_store: str) -> None:
    database = Database(postgres_store)
    with pytest.raises(DiskFull):
        async with database.write() as connection:
            await connection.exec_driver_sql("DO $$ BEGIN RAISE disk_full; END $$")
    await database.close()


async def test_a_session_has_bounds_and_the_url_goes_before_them(postgres_store: str) -> None:
    async def settings(url: str) -> dict[str, str]:
        database = Database(url)
        async with database.read() as connection:
            rows = (await connection.execute(text("SELECT name, setting FROM pg_settings"))).all()
        await database.close()
        return {row.name: row.setting for row in rows}

    ours = await settings(postgres_store)
    assert int(ours["idle_in_transaction_session_timeout"]) == IDLE_MS
    assert int(ours["statement_timeout"]) == STATEMENT_MS
    assert int(ours["lock_timeout"]) == LOCK_MS
    assert ours["application_name"].startswith("ramify ")
    theirs = await settings(with_options(postgres_store, statement_timeout=7) + "&application_name=theirs")
    assert int(theirs["statement_timeout"]) == 7
    assert int(theirs["lock_timeout"]) == LOCK_MS
    assert theirs["application_name"] == "theirs"


async def test_a_lock_that_does_not_become_free(postgres_store: str) -> None:
    database = Database(with_options(postgres_store, lock_timeout=STILL_MS))
    await database.migrate()
    job = await running_job(database)
    async with database.write() as connection:
        await job_row(connection, job.job_id, None, lock=True)
        with pytest.raises(StoreBusy):
            await Jobs(database).cancel(job.job_id)
    assert (await Jobs(database).cancel(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED
    await database.close()


async def test_a_writer_that_stands_still_holds_nobody_up(postgres_store: str) -> None:
    database = Database(postgres_store)
    await database.migrate()
    job = await running_job(database)
    url = with_options(postgres_store, idle_in_transaction_session_timeout=STILL_MS)
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", STANDS_STILL, url, job.job_id, stdin=PIPE, stdout=PIPE)
    assert writer.stdout is not None
    assert await writer.stdout.readline() == b"holds the row\n"
    writer.send_signal(signal.SIGSTOP)
    cancelled = await Jobs(database).cancel(job.job_id)  # nothing but the bound frees the row
    assert (cancelled.state, cancelled.progress.tokens) == (job_pb2.JOB_STATE_CANCELLED, 0)
    writer.send_signal(signal.SIGCONT)
    said, _ = await writer.communicate(b"go on\n")
    assert said == b"StoreUnavailable\n"
    assert (await Jobs(database).get(job.job_id)) == cancelled
    await database.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_restarts(postgres: Postgres, mode: Any) -> None:
    database = Database(postgres.url)
    await database.migrate()
    jobs, uploads = Jobs(database), Uploads(database)
    made = await asyncio.gather(*(running_job(database, request_id=f"{number}") for number in range(20)))
    await asyncio.gather(*(jobs.page(1, None, 0) for _ in range(20)))  # fills the pool

    async def meet_the_end() -> None:
        async with database.write() as connection:
            await job_row(connection, made[0].job_id, None, lock=True)
            await asyncio.to_thread(postgres.stop, mode)
            await job_row(connection, made[1].job_id, None, lock=True)

    with pytest.raises(StoreUnavailable, match="does not answer: try again"):
        await meet_the_end()
    for call in (jobs.get, jobs.cancel):
        with pytest.raises(StoreUnavailable):
            await call(made[0].job_id)
    with pytest.raises(StoreUnavailable):
        await running_job(database)
    await asyncio.to_thread(postgres.start)
    assert await asyncio.gather(*(jobs.get(job.job_id) for job in made)) == made
    assert await asyncio.gather(*(uploads.find(f"{number}", SPEC) for number in range(20))) == made
    await running_job(database)
    assert await count(database, "jobs") == 21
    await database.close()


async def test_a_server_that_is_not_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nobody")
    with pytest.raises(CannotOpen, match=r"can't be used: .*failed") as caught:
        await Database(f"postgresql+psycopg://me:secret@/ramify?host={folder}").migrate()
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreUnavailable) as outage:
        await Jobs(Database(f"postgresql+psycopg://me:secret@/ramify?host={folder}")).get("x")
    assert isinstance(outage.value.__cause__, DBAPIError)


@pytest.mark.parametrize("url", ["postgresql+psycopg2://host/database", "mysql+aiomysql://host/database", "sqlite+aiosqlite://"])
def test_databases_that_are_no_store(url: str) -> None:
    with pytest.raises(CannotOpen, match="give one like"):
        Database(url)
