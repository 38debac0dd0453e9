"""Migrations: which tables an older version starts on, what the command says, and that work goes on meanwhile."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from ramify.cli.main import app, run
from ramify.store import database as database_module
from ramify.store.database import Database, to_its_end
from ramify.store.errors import CannotOpen
from ramify.store.migration import Migration, known, newest
from tests.postgres import Postgres
from tests.unit.store.helpers import contents, running_job
from tests.unit.store.test_upgrades import upgrade

BEFORE = "0005"  # of the release before
INSERT = text(
    "INSERT INTO jobs (job_id, request_id, spec, spec_asked, state, problems_total, problems_done, problems_solved, "
    "problems_failed, steps, tokens, cursor, segment_floor, uploader, touched_ms, created_ms) "
    "VALUES (:job_id, :job_id, :spec, :spec, 1, 0, 0, 0, 0, 0, 0, 0, 0, '', 0, 0)"
)
LOOK = text("SELECT job_id, request_id FROM jobs")


@pytest.fixture
async def old(store_url: str) -> AsyncIterator[Database]:
    """A database with the tables of the release before."""
    database = Database(store_url)
    async with database.write() as connection:
        await connection.run_sync(upgrade, BEFORE)
    yield database
    await database.close()


async def migrated(url: str) -> Migration:
    database = Database(url)
    try:
        return await database.migrate()
    finally:
        await database.close()


async def insert(database: Database, job: str) -> None:
    async with database.write() as connection:
        await connection.execute(INSERT, {"job_id": job, "spec": b""})


# --- which version starts on which tables -----------------------------------------------------------------------------


async def name(database: Database, revision: str, readable_from: str) -> None:
    """Have the tables be of a later revision, as its migration would."""
    async with database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        await connection.execute(text("UPDATE compatibility SET readable_from = :from"), {"from": readable_from})


@pytest.mark.parametrize("readable_from", [newest(), BEFORE])
async def test_a_version_starts_on_later_tables_that_admit_it(store_url: str, readable_from: str) -> None:
    """A gateway that is restarted in the middle of an upgrade; it writes nothing of the tables' version."""
    database = Database(store_url)
    assert await database.migrate() == Migration("", newest())
    await name(database, "9999", readable_from)
    before = await contents(database)
    assert await database.migrate() == Migration("9999", "9999")
    assert await contents(database) == before
    await running_job(database)
    await database.close()


async def test_a_version_refuses_later_tables_that_do_not_admit_it(store_url: str) -> None:
    database = Database(store_url)
    await database.migrate()
    await name(database, "9999", "9998")
    with pytest.raises(CannotOpen, match=f"tables are of revision 9999, and this version of Ramify knows up to {newest()}: run"):
        await database.migrate()


async def test_the_release_before_may_work_with_these_tables(store_url: str) -> None:
    """A migration that it can't go on with comes one minor release later, see docs/decisions/026."""
    database = Database(store_url)
    await database.migrate()
    ((readable_from,),) = (await contents(database, ["compatibility"]))["compatibility"]
    assert readable_from in known()
    assert readable_from <= BEFORE
    await database.close()


async def test_who_does_not_migrate_says_that_somebody_must(store_url: str) -> None:
    database = Database(store_url)
    with pytest.raises(CannotOpen, match=r"it has no tables of Ramify, and this version works with .*: run `ramify migrate`"):
        await database.check()
    async with database.write() as connection:
        await connection.run_sync(upgrade, BEFORE)
    with pytest.raises(CannotOpen, match=f"its tables are of revision {BEFORE}, and this version works with"):
        await database.check()
    await database.migrate()
    await database.check()
    await name(database, "9999", newest())
    await database.check()
    await database.close()


# --- what the command says --------------------------------------------------------------------------------------------


def test_the_command_says_from_which_revision_to_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAMIFY_STORE", raising=False)
    url = f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
    (tmp_path / "url").write_text(url + "\n")
    assert run(["migrate", "--store-file", str(tmp_path / "url")]) == 0
    assert capsys.readouterr().out == f"{url}: migrated from nothing to {newest()}\n"
    assert run(["migrate", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{url}: is at {newest()}, which is this version's: nothing to do\n"
    monkeypatch.setenv("RAMIFY_STORE", url)
    assert run(["migrate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"store": url, "before": newest(), "after": newest()}
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE compatibility SET readable_from = '9998'")
    connection.close()
    assert run(["migrate"]) == 1
    assert "knows up to" in capsys.readouterr().err


def test_the_command_does_not_show_the_password(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["migrate", "--store", f"postgresql+psycopg://me:secret@/ramify?host={tmp_path}"])
    assert told.exit_code
    assert "secret" not in f"{told.output}{told.exception}"


# --- work goes on -----------------------------------------------------------------------------------------------------


class Looks:
    """Reads within a transaction that writes, as commits do."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @to_its_end
    async def ids(self) -> list[str]:
        async with self.database.write() as connection:
            return [row.job_id for row in await connection.execute(LOOK)]


async def test_statements_that_are_prepared_outlast_it(old: Database) -> None:
    """PostgreSQL refuses those of which a column's type has changed."""
    await insert(old, "a-job")
    looks = Looks(Database(old.url))
    for _ in range(10):  # psycopg prepares what it has seen five times
        assert await looks.ids() == ["a-job"]
    assert (await old.migrate()).before == BEFORE
    assert await looks.ids() == ["a-job"]
    await looks.database.close()


async def test_nobody_waits_behind_a_migration_that_has_to_wait(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup reads for minutes: the migration comes after it, and what is asked meanwhile is answered meanwhile."""
    monkeypatch.setattr(database_module, "MIGRATION_LOCK_MS", 200)
    monkeypatch.setattr(database_module, "MIGRATION_PAUSE_S", (0.1, 0.2))
    old = Database(postgres.url)
    async with old.write() as connection:
        await connection.run_sync(upgrade, BEFORE)
    with postgres.connect() as session:
        with session.transaction():
            session.execute("SELECT * FROM jobs")
            migrating = asyncio.create_task(migrated(old.url))
            for index in range(20):
                await insert(old, f"job-{index}")
                await asyncio.sleep(0.05)
            assert not migrating.done()
        assert await migrating == Migration(BEFORE, newest())
        (found,) = session.execute("SELECT count(*) FROM jobs WHERE tenant = 'default'").fetchall()
    assert found == (20,)
    await old.close()


async def test_a_migration_that_never_gets_its_turn_says_so(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MIGRATION_LOCK_MS", 50)
    monkeypatch.setattr(database_module, "MIGRATION_PAUSE_S", (0.01, 0.02))
    monkeypatch.setattr(database_module, "MIGRATION_S", 0.3)
    database = Database(postgres.url)
    async with database.write() as connection:
        await connection.run_sync(upgrade, BEFORE)
    with postgres.connect() as session, session.transaction():
        session.execute("SELECT * FROM jobs")
        with pytest.raises(CannotOpen, match="lock timeout: others hold what it takes; end what lasts so long there"):
            await database.migrate()
    await database.close()
