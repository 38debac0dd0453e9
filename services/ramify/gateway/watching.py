"""Waiting for jobs to go on: one look at the store for all watches, and one read for all that are at the same place."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from ramify.gateway.errors import Stopping
from ramify.store.errors import StoreError
from ramify.store.jobs import History, Jobs

Place = tuple[str, int]  # job and cursor


class Pulse:
    """Looks every `poll_s` seconds, while anybody waits."""

    def __init__(self, jobs: Jobs, poll_s: float) -> None:
        self._jobs, self._poll_s = jobs, poll_s
        self._waiting: defaultdict[Place, set[asyncio.Future[History]]] = defaultdict(set)
        self._look: asyncio.Task[None] | None = None
        self._stopping = False

    async def beyond(self, job_id: str, cursor: int) -> History:
        """The history after `cursor`, as soon as there is some.

        Raises:
            JobNotFound: the job is gone.
            Stopping: the gateway stops.
            SQLAlchemyError: the store does not answer.
        """
        if self._stopping:
            raise _stopping()
        place = (job_id, cursor)
        found: asyncio.Future[History] = asyncio.get_running_loop().create_future()
        self._waiting[place].add(found)
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._run(), name="watch")
        try:
            return await found
        finally:
            self._waiting[place].discard(found)
            if not self._waiting[place]:
                del self._waiting[place]

    def stop(self) -> None:
        """Send everybody away."""
        self._stopping = True
        if self._look is not None:
            self._look.cancel()
        self._fail(_stopping())

    async def _run(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(self._poll_s)
                places = list(self._waiting)
                cursors = await self._jobs.cursors({job_id for job_id, _ in places})
                for job_id, cursor in places:
                    if cursors.get(job_id) != cursor:  # it went on, or is gone
                        await self._answer((job_id, cursor))
        except Exception as error:
            self._fail(error)

    async def _answer(self, place: Place) -> None:
        try:
            history = await self._jobs.history(*place)
        except StoreError as error:
            for found in _open(self._waiting.get(place, ())):
                found.set_exception(error)
        else:
            for found in _open(self._waiting.get(place, ())):
                found.set_result(history)

    def _fail(self, error: Exception) -> None:
        for place in self._waiting.values():
            for found in _open(place):
                found.set_exception(error)


def _open(futures: Iterable[asyncio.Future[History]]) -> list[asyncio.Future[History]]:
    return [future for future in futures if not future.done()]


def _stopping() -> Stopping:
    return Stopping("this gateway is stopping: watch again with the last cursor that you saw")
