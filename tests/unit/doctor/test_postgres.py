import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from ramify.cli.doctor import postgres as checks
from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.subject import Subject
from ramify.store.database import Database
from tests.postgres import NoPostgres, Postgres


@pytest.fixture(scope="module")
def small() -> Iterator[Postgres]:
    """A server with few connections that keeps what it acknowledges."""
    try:
        server = Postgres(max_connections="10", fsync="on", full_page_writes="on")
    except NoPostgres as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
async def on_small(small: Postgres) -> AsyncIterator[Subject]:
    database = Database(small.url)
    yield Subject(database)
    await database.close()


@pytest.fixture
async def on_shared(postgres_store: str) -> AsyncIterator[Subject]:
    database = Database(postgres_store)
    yield Subject(database)
    await database.close()


async def test_a_server_that_keeps_what_it_acknowledges(on_small: Subject) -> None:
    finding = await checks.server(on_small)
    assert (finding.level, finding.details) == (Level.OK, ())
    assert finding.summary.startswith("PostgreSQL ")


async def test_a_server_that_does_not(small: Postgres) -> None:
    database = Database(f"{small.url}&options=-csynchronous_commit%3Doff")
    finding = await checks.server(Subject(database))
    await database.close()
    assert (finding.level, finding.details) == (Level.BAD, ("synchronous_commit is off",))


async def test_too_few_connections(on_small: Subject, on_shared: Subject) -> None:
    few = await checks.connections(on_small)
    assert few.level is Level.WARN
    assert "of 7 connections are in use, and 1 process of ours may want 17" in few.summary
    assert "raise max_connections to 37 or more" in few.remedy
    assert (await checks.connections(on_shared)).level is Level.OK


async def test_isolation_notices_and_space(on_small: Subject) -> None:
    assert (await checks.isolation(on_small)).level is Level.OK
    assert (await checks.notices(on_small)).level is Level.OK
    space = await checks.space(on_small)
    assert space.level is not Level.SKIPPED
    assert space.summary.startswith("the database has ")


async def test_a_transaction_that_lasts(on_small: Subject, small: Postgres) -> None:
    assert (await checks.activity(on_small, 0)).level is Level.OK
    with await asyncio.to_thread(small.connect) as held:
        held.execute("BEGIN")
        held.execute("SELECT 'what keeps it'")
        finding = await checks.activity(on_small, 0)
        assert (finding.level, len(finding.details)) == (Level.WARN, 1)
        assert "idle in transaction" in finding.details[0]
        assert "what keeps it" in finding.details[0]
        assert (await checks.activity(on_small)).level is Level.OK
