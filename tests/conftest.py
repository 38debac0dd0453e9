import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import NullPool, create_engine, make_url

from ramify.store.migration import upgrade
from tests.postgres import ENVIRONMENT, NoPostgres, Postgres, database, migrated

STORES = {"sqlite": "sqlite_store", "postgresql": "postgres_store"}  # their fixtures by their kinds

# The machine may be busy: what is slow is no fault. Each run of the suite has the same examples; `make soak` looks for new ones,
# and prints a falsifying one with the blob that brings it back.
COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ramify", derandomize=True, max_examples=40, **COMMON)  # type: ignore[arg-type]
settings.register_profile("soak", max_examples=2000, **COMMON)  # type: ignore[arg-type]
settings.load_profile("ramify")

SYSTEMS = ("tests/e2e/", "tests/faults/")  # each has systems that its tests share

# Ray lets its workers stand back behind all else; here all else are the tests, which would starve the systems that they test.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of whole systems mostly wait: two workers have them all, and start with them, while others compute."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Systems(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in SYSTEMS if nodeid.startswith(folder)), nodeid)

    return Systems(config, log)


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


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """See `migrated`."""
    with migrated(postgres_url) as template:
        yield template


@pytest.fixture
def postgres_store(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """The URL of an empty store on PostgreSQL, which has its tables."""
    with database(postgres_url, postgres_template) as url:
        yield url


@pytest.fixture
def bare_postgres_store(postgres_url: str) -> Iterator[str]:
    """The URL of a store on PostgreSQL that has no tables yet."""
    with database(postgres_url) as url:
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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file that has our tables, to be copied: that takes a tenth of the time."""
    file = tmp_path_factory.mktemp("template") / "state.db"
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        upgrade(connection)
    return file


@pytest.fixture
def sqlite_store(bare_sqlite_store: str, sqlite_template: Path) -> str:
    """The URL of an empty store on SQLite, which has its tables."""
    shutil.copyfile(sqlite_template, make_url(bare_sqlite_store).database or "")
    return bare_sqlite_store


@pytest.fixture
def bare_sqlite_store(tmp_path: Path) -> str:
    """The URL of a store on SQLite that has no tables yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store of each kind that we support; it has its tables."""
    return str(request.getfixturevalue(STORES[request.param]))


@pytest.fixture(params=STORES)
def bare_store_url(request: pytest.FixtureRequest) -> str:
    """The URL of a store of each kind that has no tables yet."""
    return str(request.getfixturevalue(f"bare_{STORES[request.param]}"))
