"""Wake-ups: what one process commits wakes those that wait for it in another, at once on PostgreSQL.

They are hints. Whoever waits looks at the store afterwards, and looks now and then without any, since one may get lost: with a
connection that breaks, or with a process that dies between its commit and the word of it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import tenacity
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.failures import reason

if TYPE_CHECKING:
    from psycopg import AsyncConnection as PsycopgConnection

    from ramify.store.database import Database

log = logging.getLogger(__name__)

FALLBACK_S = 5.0  # how long who is told of changes may go without a look of its own
RECONNECT_S_MIN = 0.1
RECONNECT_S_MAX = 5.0

_NOTICES = "ramify_notices"
_SEND = text(
    "SELECT pg_notify(channel, payload) FROM unnest(CAST(:channels AS text[]), CAST(:payloads AS text[])) AS t (channel, payload)"
)


class Channel(StrEnum):
    """What can be told."""

    JOBS = "ramify_jobs"  # a job has started or was cancelled; its job_id
    SLOTS = "ramify_slots"  # a slot is free, or a shard has come
    EVENTS = "ramify_events"  # a job has a new event; its job_id


async def notify(connection: AsyncConnection, channel: Channel, payload: str = "") -> None:
    """Tell those who wait, once the transaction is committed; nothing if it never is. Does nothing on SQLite.

    It is told after the commit, not by it: PostgreSQL lets transactions that notify commit one after the other, each with its own
    wait for the disk. With 8 writers and a disk of 3 ms that was 260 commits a second in place of 1,100.

    Args:
        connection: that of `Database.write`.
        channel: where.
        payload: up to 8,000 bytes.
    """
    if connection.dialect.name == "postgresql":
        connection.info.setdefault(_NOTICES, {})[channel, payload] = None


def forget(connection: AsyncConnection) -> None:
    """A transaction begins: what an earlier one on its connection did not come to tell was never committed."""
    connection.info.pop(_NOTICES, None)


async def announce(connection: AsyncConnection) -> None:
    """A transaction is committed: tell what it has to tell."""
    if not (notices := list(connection.info.pop(_NOTICES, ()))):
        return
    # What fails here is only late: the next look finds it. The commit must not seem to have failed.
    with contextlib.suppress(SQLAlchemyError):
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        channels, payloads = zip(*notices, strict=True)
        await connection.execute(_SEND, {"channels": [str(name) for name in channels], "payloads": list(payloads)})


class Listener:
    """One that waits; see `Wakeups.listener`."""

    def __init__(self, wakeups: "Wakeups", channels: frozenset[Channel], wanted: Callable[[str], bool] | None) -> None:
        self._wakeups, self._channels, self._wanted = wakeups, channels, wanted
        self._news = asyncio.Event()

    def tell(self, channel: str, payload: str) -> None:
        """Something was said."""
        if channel in self._channels and (self._wanted is None or self._wanted(payload)):
            self._news.set()

    def wake(self) -> None:
        """End the wait that is on, or the next one, at once."""
        self._news.set()

    async def wait(self, poll_s: float) -> None:
        """Until something was said since the last wait, for `poll_s` at most, or `FALLBACK_S` where changes are told."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(poll_s, FALLBACK_S) if self._wakeups.hears else poll_s):
                await self._news.wait()
        self._news.clear()


class Wakeups:
    """Hears what other processes tell, over a connection of its own, which `Database.close` ends.

    On SQLite it hears nothing, and all who wait poll.
    """

    def __init__(self, database: "Database", *channels: Channel) -> None:
        """Connects when somebody listens.

        Args:
            database: whose changes to hear of.
            channels: those that listeners may want; none: all.
        """
        self._database = database
        self._channels = channels or tuple(Channel)
        self._listeners: set[Listener] = set()
        self._started = False
        self.hears = False  # whether what is told now is heard

    @contextmanager
    def listener(self, *channels: Channel, wanted: Callable[[str], bool] | None = None) -> Iterator[Listener]:
        """One that is woken by what is told on some channels, and whenever something may have been missed.

        Args:
            channels: some of this object's; none: all of them.
            wanted: whether to wake for a payload; None: for any.
        """
        listener = Listener(self, frozenset(channels or self._channels), wanted)
        if not self._started and self._database.tells:
            self._started = True
            self._database.in_background(self._run())
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    async def _run(self) -> None:
        import psycopg  # an extra, which SQLite does without

        again = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(psycopg.Error),
            wait=tenacity.wait_random_exponential(multiplier=RECONNECT_S_MIN, max=RECONNECT_S_MAX),
        )
        while True:
            connection: PsycopgConnection[Any] = await again(self._connect)
            try:
                self._set(hears=True)
                async with aclosing(connection.notifies()) as notices:
                    async for notice in notices:
                        for listener in self._listeners:
                            listener.tell(notice.channel, notice.payload)
            except psycopg.Error as error:
                log.warning("changes of the store are not told now, so that they are seen later: %s", reason(error))
            finally:
                self._set(hears=False)
                await connection.close()
            await asyncio.sleep(RECONNECT_S_MIN)  # a server may take a connection and end it at once

    async def _connect(self) -> "PsycopgConnection[Any]":
        connection = await self._database.past_the_pool()
        try:
            for channel in self._channels:
                await connection.execute(f"LISTEN {channel}".encode())
        except BaseException:
            await connection.close()
            raise
        return connection

    def _set(self, *, hears: bool) -> None:
        self.hears = hears
        for listener in self._listeners:  # something may have been missed; and they wait for another time from now on
            listener.wake()
