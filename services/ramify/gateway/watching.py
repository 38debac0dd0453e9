"""Waiting for jobs to go on: one look at the store for all watches, and one read for all that are at the same place."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from ramify.gateway.errors import Stopping
from ramify.store.jobs import Jobs
from ramify.store.looks import History, Place
from ramify.store.rows import JOBS_A_STATEMENT
from ramify.store.wakeup import Channel, Listener, Wakeups

Waiting = set[asyncio.Future[History]]


class Pulse:
    """Looks while anybody waits: where the store tells of events, as soon as it does, and else every `poll_s` seconds.

    In any case looks are `poll_s` apart, whatever the number of events.
    """

    def __init__(self, jobs: Jobs, poll_s: float) -> None:
        self._jobs, self._poll_s = jobs, poll_s
        self._wakeups = Wakeups(jobs.database, Channel.EVENTS)
        self._waiting: defaultdict[str, defaultdict[int, Waiting]] = defaultdict(lambda: defaultdict(set))  # by job and cursor
        self._events: Listener | None = None
        self._look: asyncio.Task[None] | None = None
        self._stopping = False

    async def beyond(self, job_id: str, cursor: int) -> History:
        """The history after `cursor`, as soon as there is some.

        Raises:
            JobNotFound: the job is gone.
            Stopping: the gateway stops.
            StoreOutage: the store does not answer.
        """
        if self._stopping:
            raise _stopping()
        found: asyncio.Future[History] = asyncio.get_running_loop().create_future()
        self._waiting[job_id][cursor].add(found)
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._run(), name="watch")
        elif self._events is not None:
            self._events.wake()  # an event may have been told between the caller's own look and now
        try:
            return await found
        finally:
            self._leave(job_id, cursor, found)

    def stop(self) -> None:
        """Send everybody away."""
        self._stopping = True
        if self._look is not None:
            self._look.cancel()
        self._fail(_stopping())

    def _leave(self, job_id: str, cursor: int, found: asyncio.Future[History]) -> None:
        of_job = self._waiting[job_id]
        of_job[cursor].discard(found)
        if not of_job[cursor]:
            del of_job[cursor]
        if not of_job:
            del self._waiting[job_id]

    async def _run(self) -> None:
        try:
            with self._wakeups.listener(Channel.EVENTS, wanted=self._waiting.__contains__) as self._events:
                self._events.wake()
                while self._waiting:
                    await self._events.wait(0)
                    await self._answer_all()
                    await asyncio.sleep(self._poll_s)
        except Exception as error:
            self._fail(error)

    async def _answer_all(self) -> None:
        """Tell those of whom something has happened, or whose job is gone; an error of the store, all."""
        places = [Place(job_id, cursor) for job_id, of_job in self._waiting.items() for cursor in of_job]
        for start in range(0, len(places), JOBS_A_STATEMENT):
            some = places[start : start + JOBS_A_STATEMENT]
            for place, history in zip(some, await self._jobs.histories(some), strict=True):
                for found in _open(self._at(place.job_id, place.cursor)):
                    if isinstance(history, Exception):
                        found.set_exception(history)
                    elif history.cursor != place.cursor:
                        found.set_result(history)

    def _at(self, job_id: str, cursor: int) -> Iterable[asyncio.Future[History]]:
        return self._waiting[job_id][cursor] if cursor in self._waiting.get(job_id, ()) else ()

    def _fail(self, error: Exception) -> None:
        for of_job in self._waiting.values():
            for waiting in of_job.values():
                for found in _open(waiting):
                    found.set_exception(error)


def _open(futures: Iterable[asyncio.Future[History]]) -> list[asyncio.Future[History]]:
    return [future for future in futures if not future.done()]


def _stopping() -> Stopping:
    return Stopping("this gateway is stopping: watch again with the last cursor that you saw")
