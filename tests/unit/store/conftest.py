from collections.abc import AsyncIterator

import pytest

from ramify.store.database import Database


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """A migrated one, of each kind that we support."""
    database = Database(store_url)
    await database.migrate()
    yield database
    await database.close()
