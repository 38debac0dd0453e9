from collections.abc import AsyncIterator

import pytest

from ramify.cli.doctor.subject import Subject
from ramify.store.database import Database


@pytest.fixture
async def subject(store_url: str) -> AsyncIterator[Subject]:
    """An empty store of each kind that we support."""
    database = Database(store_url)
    await database.migrate()
    yield Subject(database)
    await database.close()
