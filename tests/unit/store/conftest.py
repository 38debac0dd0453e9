import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateSchema, DropSchema

from ramify.store.database import Database

POSTGRES = "RAMIFY_TEST_POSTGRES_URL"


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An empty database of each kind that we support."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
        return
    if POSTGRES not in os.environ:
        pytest.skip(f"no {POSTGRES}, e.g. postgresql+psycopg://user:password@localhost/database")
    url, schema = make_url(os.environ[POSTGRES]), f"test_{secrets.token_hex(8)}"
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(CreateSchema(schema))
    yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)
    async with engine.begin() as connection:
        await connection.execute(DropSchema(schema, cascade=True))
    await engine.dispose()


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    """A migrated one."""
    database = Database(store_url)
    await database.migrate()
    yield database
    await database.close()
