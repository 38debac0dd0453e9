import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.postgres import ENVIRONMENT, NoPostgres, Postgres, empty_store


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL that all tests of this process share: RAMIFY_TEST_POSTGRES_URL, or a server that is started for them."""
    if ENVIRONMENT in os.environ:
        yield os.environ[ENVIRONMENT]
        return
    try:
        server = Postgres()
    except NoPostgres as error:
        pytest.skip(str(error))
    with server:
        yield server.url


@pytest.fixture
async def postgres_store(postgres_url: str) -> AsyncIterator[str]:
    """The URL of an empty store on PostgreSQL."""
    async with empty_store(postgres_url) as url:
        yield url


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, which it may stop and start; it runs."""
    try:
        server = Postgres()
    except NoPostgres as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store of each kind that we support."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("postgres_store"))
