import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.unit.gateway.system import LIMITS, PATIENCE_S, System, running


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture
async def system(store_url: str) -> AsyncIterator[System]:
    """A gateway on a free port, over a store of each kind, for a system with the tiny24 models."""
    async with running(store_url, LIMITS) as system:
        await system.jobs.put_models(system.MODELS)
        yield system
