from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramify.store.database import Database
from tests.unit.store.stores import KINDS, Store, opened


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """A migrated one, of each kind that we support."""
    database = Database(store_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture(params=KINDS)
def store_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store of each kind can be opened; see `stores.opened`."""
    match request.param:
        case "sqlite":
            return f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
        case "postgresql":
            return str(request.getfixturevalue("postgres_store"))
        case kind:
            return str(kind)


@pytest.fixture
async def store(store_place: str) -> AsyncIterator[Store]:
    """An empty one of each kind."""
    async with opened(store_place) as store:
        yield store
