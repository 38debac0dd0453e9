from collections.abc import AsyncIterator

import pytest

from ramify.store.database import Database
from tests.conftest import STORES
from tests.unit.store.stores import KINDS, Store, opened


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """A migrated one, of each kind that we support."""
    database = Database(store_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture(params=KINDS)
def store_place(request: pytest.FixtureRequest) -> str:
    """Where an empty store of each kind can be opened; see `stores.opened`."""
    return str(request.getfixturevalue(STORES[request.param]) if request.param in STORES else request.param)


@pytest.fixture
async def store(store_place: str) -> AsyncIterator[Store]:
    """An empty one of each kind."""
    async with opened(store_place) as store:
        yield store
