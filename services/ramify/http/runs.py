"""A request's job: it is cancelled if nobody waits for it any more."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from ramify.client import AsyncClient, ClientError
from ramify.http.clients import Clients
from ramify.http.errors import CLOSED, HttpError
from ramify.v1 import job_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")

FINAL = frozenset((job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED))
GRACE_S = 60.0  # after the time that a search has, for its end to be seen


class Run:
    """A job while it runs."""

    def __init__(self, client: AsyncClient, job: job_pb2.Job) -> None:
        self.client, self.job = client, job
        self.progress = job.progress
        self.done = False

    async def events(self) -> AsyncGenerator[job_pb2.JobEvent, None]:
        """Its history, until its end."""
        events = self.client.watch(self.job.job_id)
        async for event in events:
            self.progress, self.done = event.progress, event.state in FINAL
            yield event

    async def results(self) -> list[job_pb2.Result]:
        """What there is now, by the problems' indexes."""
        return [result async for result in self.client.results(self.job.job_id)]


class Runs:
    """All that are under way, and what is to be done about those that nobody waits for."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def of(self, request: Request, problems: list[job_pb2.Problem], spec: job_pb2.JobSpec) -> AsyncIterator[Run]:
        """A job for a request; cancelled at the block's end, if it has not ended. Raises `ClientError`."""
        async with self._clients.of(request) as client:
            submitted = self._start(client.submit(problems, spec))
            try:
                run = Run(client, await asyncio.shield(submitted))
            except asyncio.CancelledError:
                self._start(self._withdraw(client, submitted))
                raise
            try:
                yield run
            finally:
                if not run.done:
                    self._start(self._cancel(client, run.job.job_id))

    async def close(self) -> None:
        """Wait for what is still to be cancelled."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Not where it is called: that may be a task that is being cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _withdraw(self, client: AsyncClient, submitted: "asyncio.Task[job_pb2.Job]") -> None:
        await self._cancel(client, (await submitted).job_id)

    async def _cancel(self, client: AsyncClient, job_id: str) -> None:
        try:
            await client.cancel(job_id)
        except ClientError as error:
            log.warning("job %s, for which nobody waits any more, goes on: %s", job_id, error, extra={"job": job_id})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], within_s: float) -> T:
    """What some work comes to. Ends it when the client has gone, or after some seconds. Raises `HttpError`."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    both: set[asyncio.Future[Any]] = {doing, gone}
    try:
        done, _ = await asyncio.wait(both, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if doing in done:
            return doing.result()
        if gone in done:
            raise HttpError(CLOSED, "the client has gone", "invalid_request_error")
        raise HttpError(504, f"the search has not ended within {within_s:.0f} s", "server_error", "timeout")
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def with_pauses(items: AsyncGenerator[T, None], pause_s: float) -> AsyncIterator[T | None]:
    """Some items, and None whenever none has come for some seconds."""
    async with aclosing(items):
        coming = asyncio.ensure_future(anext(items, StopAsyncIteration))
        try:
            while True:
                if not (await asyncio.wait({coming}, timeout=pause_s))[0]:
                    yield None
                    continue
                if (item := coming.result()) is StopAsyncIteration:
                    return
                yield item  # type: ignore[misc] # no item is that class
                coming = asyncio.ensure_future(anext(items, StopAsyncIteration))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
