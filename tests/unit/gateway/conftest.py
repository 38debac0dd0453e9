import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramify.gateway.limits import GatewayLimits
from tests.unit.gateway.system import PATIENCE_S, System, running


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A gateway on a free port, over a store in a file, for a system with the tiny24 models."""
    limits = GatewayLimits(watches_max=3, uploads_max=3, poll_s=0.005)
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", limits) as system:
        await system.jobs.put_models(system.MODELS)
        yield system
