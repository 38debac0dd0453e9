import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import ENVIRONMENT, NoPostgres, Postgres, empty_store

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
