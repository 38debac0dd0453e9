"""The connection: one code path for SQLite and PostgreSQL above the dialect line, which is here."""

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import alembic.command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ramify.store.errors import CannotOpen

BUSY_MS = 30_000  # how long a SQLite writer waits for another one
WAL_RETRY_MS = 10
EXAMPLES = "sqlite+aiosqlite:////var/lib/ramify/state.db or postgresql+psycopg://user:password@host/database"

_WRITES = "ramify_writes"
_WRITE_LOCK = 0x72616D696679  # PostgreSQL knows the lock by this number


class Database:
    """Transactions on one database. One event loop may use it, with many tasks."""

    def __init__(self, url: str) -> None:
        """Open `url`, e.g. `sqlite+aiosqlite:////var/lib/ramify/state.db`; connects on first use.

        Raises:
            CannotOpen: the URL is not one of a database that we know.
        """
        self.url = url
        try:
            self.engine: AsyncEngine = create_async_engine(url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise CannotOpen(f"this is no store that can be opened ({_reason(error)}); give one like {EXAMPLES}") from error
        self._sqlite = self.engine.dialect.name == "sqlite"
        self.running: set[asyncio.Task[Any]] = set()  # transactions, see `to_its_end`
        self._one_writer = asyncio.Lock()  # within a process tasks queue here, not in the database
        if self._sqlite:
            event.listen(self.engine.sync_engine, "connect", _set_up_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        elif self.engine.dialect.name == "postgresql":
            event.listen(self.engine.sync_engine, "begin", _begin_postgresql)
        else:
            raise CannotOpen(f"{self.engine.dialect.name} is no store that Ramify knows; give one like {EXAMPLES}")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view, which a writer neither changes nor waits for."""
        async with self.engine.connect() as connection:
            if not self._sqlite:  # whose readers always have one view
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: durable when the block ends, undone when it raises.

        There is one writer at a time, whatever the database and the number of processes: what a transaction has read still
        holds when it writes.
        """
        async with self._one_writer, self.engine.connect() as connection:
            await connection.execution_options(**{_WRITES: True})
            async with connection.begin():
                yield connection

    async def migrate(self) -> None:
        """Bring the tables up to date; creates SQLite's file and the tables if there are none. Safe to call at once.

        Raises:
            CannotOpen: the database can't be reached, or a newer version of Ramify has written it.
        """
        url = make_url(self.url)
        try:
            if self._sqlite and url.database:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            async with self.write() as connection:
                await connection.run_sync(_upgrade)
        except (SQLAlchemyError, CommandError, OSError) as error:
            await self.close()
            raise CannotOpen(f"the store {url.render_as_string(hide_password=True)} can't be used: {_reason(error)}") from error

    async def close(self) -> None:
        """Let the transactions that run come to their end, and close every connection."""
        await asyncio.gather(*self.running, return_exceptions=True)
        await self.engine.dispose()


class OnDatabase(Protocol):
    """What has methods that are transactions."""

    database: Database


_Self = TypeVar("_Self", bound=OnDatabase)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def to_its_end(
    method: Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[_Self, _P], Coroutine[Any, Any, _R]]:
    """Make a transaction run to its end, though its caller be cancelled; the caller waits for that.

    A client that leaves cancels its call at any statement. The driver then forgets a statement of which SQLite may still hold
    the results, and with them the lock of the whole database, until the garbage is collected.
    """

    async def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        task = asyncio.create_task(method(self, *args, **kwargs))
        self.database.running.add(task)
        task.add_done_callback(self.database.running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})  # so that those who leave count for as long as they cause work
            raise

    return functools.update_wrapper(run, method)


def _reason(error: Exception) -> str:
    """What went wrong, without the statement and the links that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction handling would begin too late for BEGIN IMMEDIATE; see _begin_sqlite.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    _use_wal(connection, cursor)
    cursor.execute("PRAGMA synchronous=FULL")  # an acknowledged commit survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_wal(connection: Any, cursor: Any) -> None:
    # Of two that switch a new file to WAL at once, one fails without waiting for the other, whatever its busy_timeout.
    for tries_left in reversed(range(BUSY_MS // WAL_RETRY_MS)):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not tries_left:
                raise
            connection.run_async(lambda _: asyncio.sleep(WAL_RETRY_MS / 1000))


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that began as a reader could not wait for it, only fail.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITES, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})")
