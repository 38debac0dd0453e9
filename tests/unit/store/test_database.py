"""The database: URLs, migrations, crashes, and many who read and write at once."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, inspect, text

from ramify.store.database import Database
from ramify.store.errors import CannotOpen
from ramify.store.jobs import Jobs
from ramify.store.rows import change, job_row
from ramify.store.schema import metadata
from ramify.store.uploads import Uploads
from ramify.v1 import job_pb2
from tests.unit.store.helpers import FILLED, SPEC, chunk, contents, count, running_job

PATIENCE_S = 30  # how long a test waits for what must come

WRITER = """
import asyncio, sys
from ramify.store.database import Database
from ramify.store.rows import change_and_record

async def main(url, number):
    async with Database(url).write() as connection:
        await change_and_record(connection, number, state=4, tokens=1_000)
        print("written", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

MIGRATOR = """
import asyncio, sys
from ramify.store.database import Database

async def main(url):
    database = Database(url)
    sys.stdin.readline()
    await database.migrate()
    await database.close()

asyncio.run(main(sys.argv[1]))
"""


def differences(connection: Connection) -> list[Any]:
    # What alembic reads of SQLite's index over an expression is not what it has made.
    unreadable = "jobs_to_run" if connection.dialect.name == "sqlite" else ""
    opts = {"compare_type": True, "include_object": lambda _object, name, *_: name != unreadable}
    return list(compare_metadata(MigrationContext.configure(connection, opts=opts), metadata))


async def test_the_migrated_tables_are_those_of_the_schema(database: Database) -> None:
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
        indexes = await connection.run_sync(lambda sync: {each["name"] for each in inspect(sync).get_indexes("problems")})
    assert "problems_by_id" in indexes


async def test_to_migrate_again_changes_nothing(database: Database) -> None:
    await running_job(database)
    before = await contents(database)
    await database.migrate()
    assert await contents(database) == before


def migrate(url: str) -> None:
    async def main() -> None:
        database = Database(url)
        await database.migrate()
        await database.close()

    asyncio.run(main())


async def test_threads_that_migrate_at_once(bare_store_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(pool, migrate, bare_store_url) for _ in range(8)))
    database = Database(bare_store_url)
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_processes_that_migrate_at_once(bare_store_url: str) -> None:
    command = (sys.executable, "-c", MIGRATOR, bare_store_url)
    processes = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stderr=PIPE) for _ in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        said = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0], said
    database = Database(bare_store_url)
    await running_job(database)
    await database.close()


async def test_a_writer_that_is_killed_leaves_nothing(database: Database) -> None:
    job = await running_job(database)
    before = await contents(database)
    number = before["jobs"][0][0]
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, database.url, str(number), stdout=PIPE)
    assert writer.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        assert await writer.stdout.readline() == b"written\n"
        assert await contents(database) == before, "nobody sees what is not committed"
        writer.send_signal(signal.SIGKILL)
        await writer.wait()
        assert await contents(database) == before
        assert (await Jobs(database).cancel(job.job_id)).state == job_pb2.JOB_STATE_CANCELLED  # the lock is free


async def test_a_reader_sees_one_state_while_a_writer_writes(database: Database) -> None:
    await running_job(database, request_id="before")
    writer = Database(database.url)
    async with database.read() as connection:
        query = text("SELECT count(*) FROM jobs")
        assert await connection.scalar(query) == 1
        async with writer.write() as writing:
            await writing.execute(text("UPDATE jobs SET tokens = 5"))
            assert await connection.scalar(text("SELECT sum(tokens) FROM jobs")) == 0
        await running_job(writer, request_id="meanwhile")
        assert await connection.scalar(query) == 1
        assert await connection.scalar(text("SELECT count(*) FROM problems")) == 2
    assert await count(database, "jobs") == 2
    await writer.close()


async def test_writers_take_turns(database: Database) -> None:
    """Each reads and then writes what it has read, plus one."""
    job_id = (await running_job(database)).job_id
    databases = [database, Database(database.url), Database(database.url)]

    async def add_one(mine: Database) -> None:
        async with mine.write() as connection:
            row = await job_row(connection, job_id, None, lock=True)
            await change(connection, row.number, tokens=row.tokens + 1)

    await asyncio.gather(*(add_one(mine) for mine in databases for _ in range(10)))
    (job,), _ = await Jobs(database).page(1, None, 0)
    assert job.progress.tokens == 30
    for other in databases[1:]:
        await other.close()


async def test_a_transaction_that_fails_is_undone(database: Database) -> None:
    before = await contents(database)

    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(text("UPDATE slots SET epoch = 7"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await contents(database) == before


class CancelAt:
    """Cancels a task at its n-th statement, as a client that leaves does, or a deadline."""

    def __init__(self, database: Database) -> None:
        self.countdown = 0
        self.task: asyncio.Task[Any] | None = None
        event.listen(database.engine.sync_engine, "before_cursor_execute", self._statement)

    def _statement(self, *_: object) -> None:
        self.countdown -= 1
        if self.countdown == 0 and self.task is not None:
            self.task.cancel()

    async def run(self, call: Coroutine[Any, Any, object], statement: int) -> bool:
        """Whether the call was cancelled."""
        self.task, self.countdown = asyncio.create_task(call), statement
        await asyncio.wait({self.task})
        if not self.task.cancelled():
            self.task.result()
        return self.task.cancelled()


async def test_a_write_that_is_cancelled_is_whole_all_the_same(database: Database) -> None:
    """Else it could keep the lock of all of SQLite."""
    cancel, uploads = CancelAt(database), Uploads(database)
    statement = 1
    while await cancel.run(uploads.create(f"{statement}", SPEC, FILLED, chunk(0, "p0", last=True), "a"), statement):
        found = await uploads.find(f"{statement}", SPEC)
        assert found is not None
        assert (found.progress.problems_total, found.state) == (1, job_pb2.JOB_STATE_RUNNING)
        statement += 1
    assert statement > 5


async def test_a_read_that_is_cancelled_leaves_its_connection_in_order(database: Database) -> None:
    cancel, jobs = CancelAt(database), Jobs(database)
    job = await running_job(database)
    pool = database.engine.pool
    before = pool.status()
    statement = 1
    while await cancel.run(jobs.results(job.job_id, 10, -1), statement):
        statement += 1
        assert pool.status() == before
    assert statement > 2


async def test_close_waits_for_transactions(database: Database) -> None:
    cancel, uploads = CancelAt(database), Uploads(database)
    create = asyncio.create_task(uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a"))
    await cancel.run(uploads.create("another", SPEC, FILLED, chunk(0, "p0"), "a"), 1)
    await database.close()
    assert not database.running
    while not create.done():  # it is told in the loop's next turns; had it not ended, it would take a connection anew
        assert not database.running
        await asyncio.sleep(0)
    assert create.result().request_id == "request"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "Could not parse SQLAlchemy URL"),
        ("sqlite:///state.db", "'pysqlite' is not async"),
        ("sqlite+nodriver:///state.db", "nodriver"),
        ("postgresql+psycopg://host:port/database", "invalid literal"),
    ],
)
def test_urls_that_are_none(url: str, says: str) -> None:
    with pytest.raises(CannotOpen, match=says) as caught:
        Database(url)
    assert "give one like sqlite+aiosqlite:////var/lib/ramify/state.db or postgresql" in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(CannotOpen, match=r"state\.db can't be used: file is not a database$"):
        await Database(f"sqlite+aiosqlite:///{path}").migrate()


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotOpen, match=r"can't be used: .*file"):
        await Database(f"sqlite+aiosqlite:///{tmp_path}/file/state.db").migrate()


async def test_folders_are_made(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/a/b/state.db")
    await database.migrate()
    await running_job(database)
    await database.close()
