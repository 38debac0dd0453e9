"""The HTTP surface over a real gateway and store; the test plays the shard."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np

from ramify.gateway.limits import GatewayLimits
from ramify.gateway.server import Gateway
from ramify.http.app import make_app
from ramify.http.settings import HttpSettings
from ramify.scheduler.forest.ids import root_ids
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.gateway.system import System
from tests.unit.store.helpers import Step, all_slots, commit, delta, result, rows, tree_id

BASE = "http://ramify"
SEARCH = {"n": 4, "max_steps": 8}


class House:
    """What a test sees of it."""

    def __init__(self, database: Database, http: httpx.AsyncClient) -> None:
        self.http, self.jobs, self.work = http, Jobs(database), Work(database)
        self._claim: Any = None
        self._sequence = 0

    async def job(self, *states: job_pb2.JobState.ValueType) -> job_pb2.Job:
        """The newest job, once there is one, and it is in one of some states."""
        while True:
            found = (await self.jobs.page(1, None, 0))[0]
            if found and (not states or found[0].state in states):
                return found[0]
            await asyncio.sleep(0.01)

    async def step(self, job: job_pb2.Job, text: bytes, node: int = 7) -> None:
        """Commit a step of problem 0, as a shard does."""
        root = int(root_ids(job.spec.search.seed, np.array([0], np.int64))[0])
        await self._commit(delta(job), nodes=rows(Step(tree_id(job, 0), node, root, text=text)))

    async def finish(self, job: job_pb2.Job, index: int = 0, **values: Any) -> None:
        """Commit a result."""
        await self._commit(delta(job, result(job, index, **values)))

    async def _commit(self, *deltas: Any, **values: Any) -> None:
        self._claim = self._claim or await all_slots(self.work)
        self._sequence += 1
        await self.work.commit(self._claim, commit(self._sequence, *deltas, **values), {})

    async def ask(self, **fields: Any) -> httpx.Response:
        """A chat completion."""
        return await self.http.post("/v1/chat/completions", json={"messages": [said("4 5 6 10")], "search": SEARCH, **fields})

    async def solve(self, answer: Callable[[job_pb2.Job], Any], **fields: Any) -> httpx.Response:
        """A chat completion whose job the test does."""
        asked = asyncio.create_task(self.ask(**fields))
        await answer(await self.job(job_pb2.JOB_STATE_RUNNING))
        return await asked


def said(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """What a stream has brought, its last mark apart."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@asynccontextmanager
async def house(url: str, settings: dict[str, Any] | None = None, *, keys: bool = False) -> AsyncIterator[House]:
    database = Database(url)
    await database.migrate()
    await Jobs(database).put_models(System.MODELS)
    gateway = Gateway(database, GatewayLimits(poll_s=0.005), keys=keys)
    port = await gateway.start("127.0.0.1:0")
    app = make_app(HttpSettings(gateway=f"127.0.0.1:{port}", **(settings or {})))
    try:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=BASE, timeout=60) as http:
                yield House(database, http)
    finally:
        await gateway.stop(0)
        await database.close()
