"""The connection: one code path for SQLite and PostgreSQL above the dialect line, which is here."""

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

import tenacity
from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, func, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ramify.store.errors import CannotOpen, Contention, StoreBusy
from ramify.store.failures import kind_of, reason, translated
from ramify.store.migration import Migration, check, upgrade
from ramify.store.turns import Turns
from ramify.store.wakeup import announce, forget

if TYPE_CHECKING:
    from psycopg import AsyncConnection as PsycopgConnection

log = logging.getLogger(__name__)

POOL_SIZE = 8  # connections that are kept open
POOL_OVERFLOW = 8  # more of them, for as long as they are needed
POOL_WAIT_S = 10.0  # how long a call waits for one
POOL_KEPT = 4  # of all of them, that uploads leave to others
TRIES_MAX = 5  # of a transaction that another one keeps undoing
BUSY_MS = 30_000  # how long a SQLite writer waits for another one
WAL_RETRY_MS = 10

# PostgreSQL's bounds. A shard that stands still within a transaction keeps its locks for IDLE_MS: less than a lease, so that its
# successor never waits for them; less than LOCK_MS, so that nobody else fails for them.
CONNECT_S = 5
IDLE_MS = 5_000  # between two statements of a transaction
LOCK_MS = 10_000  # of waiting for a lock
STATEMENT_MS = 30_000
# A peer that is gone without a word, host and all, is found out by the system: ours by us, we by the server.
KEEPALIVE_S = 10  # of silence, until the first of
KEEPALIVES = 3  # questions, each
KEEPALIVE_EVERY_S = 5  # after the other
UNACKNOWLEDGED_MS = 25_000  # the same for what was sent

# A table that is to change must be nobody's for a moment. Until it is, all who come later queue behind whoever wants to change
# it: so that one gives up after MIGRATION_LOCK_MS, lets them pass, and comes again.
MIGRATION_LOCK_MS = 2_000
MIGRATION_PAUSE_S = (1.0, 3.0)  # between two tries, from and to
MIGRATION_S = 600.0  # of tries

_CLIENT = {
    "connect_timeout": CONNECT_S,
    "keepalives_idle": KEEPALIVE_S,
    "keepalives_interval": KEEPALIVE_EVERY_S,
    "keepalives_count": KEEPALIVES,
    "tcp_user_timeout": UNACKNOWLEDGED_MS,
}
_SESSION = {
    "statement_timeout": STATEMENT_MS,
    "lock_timeout": LOCK_MS,
    "idle_in_transaction_session_timeout": IDLE_MS,
    "tcp_keepalives_idle": KEEPALIVE_S,
    "tcp_keepalives_interval": KEEPALIVE_EVERY_S,
    "tcp_keepalives_count": KEEPALIVES,
}
_POOL = {"pool_size": POOL_SIZE, "max_overflow": POOL_OVERFLOW, "pool_timeout": POOL_WAIT_S}
_SQLITE = "sqlite+aiosqlite"
_ENGINE: dict[str, dict[str, Any]] = {
    _SQLITE: {},
    "postgresql+psycopg": {
        "pool_pre_ping": True,  # what a restart has left in the pool is found out before it is used
        "isolation_level": "READ COMMITTED",  # whatever the server's default
    },
}

EXAMPLES = "sqlite+aiosqlite:////var/lib/ramify/state.db or postgresql+psycopg://user:password@host/database"

_WRITES = "ramify_writes"


class Lock(IntEnum):
    """Locks of the whole store, by the numbers by which PostgreSQL knows them."""

    MIGRATION = 0x72616D696679
    MODELS = 0x72616D69667A


class Database:
    """Transactions on one database. One event loop may use it, with many tasks."""

    def __init__(self, url: str) -> None:
        """Open `url`, e.g. `sqlite+aiosqlite:////var/lib/ramify/state.db`; connects on first use.

        Of PostgreSQL, libpq's own parameters may follow after a `?` and go before ours.

        Raises:
            CannotOpen: the URL is not one of a database that we know.
        """
        self.url = url
        try:
            parsed = make_url(url)
            kind = f"{parsed.get_backend_name()}+{parsed.get_driver_name()}"
            self.engine: AsyncEngine = create_async_engine(
                parsed, hide_parameters=True, **_POOL, **_ENGINE.get(kind, {}), connect_args=_arguments(parsed)
            )
        except (SQLAlchemyError, ImportError, ValueError, TypeError) as error:
            raise CannotOpen(f"this is no store that can be opened ({reason(error)}); give one like {EXAMPLES}") from error
        if kind not in _ENGINE:
            raise CannotOpen(f"{kind} is no store that Ramify knows; give one like {EXAMPLES}")
        self._sqlite = kind == _SQLITE
        self.running: set[asyncio.Task[Any]] = set()  # transactions, see `to_its_end`
        self.queues: dict[Hashable, Any] = {}  # of those that wait for one, see `together`
        self.turns = Turns(POOL_SIZE + POOL_OVERFLOW - POOL_KEPT)  # of those that write uploads
        self._background: set[asyncio.Task[None]] = set()
        self._one_writer = asyncio.Lock()  # SQLite has one at a time: within a process tasks queue here, not in the database
        if self._sqlite:
            event.listen(self.engine.sync_engine, "connect", _set_up_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)

    @property
    def tells(self) -> bool:
        """Whether it tells of changes; see `wakeup`."""
        return not self._sqlite

    async def past_the_pool(self) -> "PsycopgConnection[Any]":
        """A connection for the caller alone, in autocommit mode; only of a database that `tells`. Raises `psycopg.Error`."""
        from psycopg import AsyncConnection  # an extra, which SQLite does without

        _, arguments = self.engine.dialect.create_connect_args(self.engine.url)
        return await AsyncConnection.connect(**{**arguments, **_arguments(self.engine.url)}, autocommit=True)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view, which a writer neither changes nor waits for.

        Raises:
            StoreOutage: the database can't now.
        """
        with translated():
            async with self.engine.connect() as connection:
                if not self._sqlite:  # whose readers always have one view
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: durable when the block ends, undone when it raises.

        On PostgreSQL transactions run at once, each statement sees what is committed when it starts: whoever writes what
        follows from a row that it has read must have read it `with_for_update`. Rows of `jobs` are locked before what belongs to
        them, and several of them by rising `number`. On SQLite there is one writer at a time, and nothing to be locked.

        Raises:
            StoreOutage: the database can't now.
        """
        with translated():
            async with self._writing() as connection:
                yield connection

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        turn: AbstractAsyncContextManager[Any] = self._one_writer if self._sqlite else contextlib.nullcontext()
        async with turn, self.engine.connect() as connection:
            forget(connection)
            await connection.execution_options(**{_WRITES: True})
            async with connection.begin():
                yield connection
            await announce(connection)

    async def migrate(self) -> Migration:
        """Bring the tables up to date; creates SQLite's file and the tables if there are none. Safe to call at once.

        Others may work meanwhile: they wait for seconds at most. What has tables of a newer version that this one can work with,
        as its `compatibility` says, stays as it is.

        Raises:
            CannotOpen: the database can't be reached, a newer version of Ramify has written it that this one can't work with,
                or others have held its tables for all of `MIGRATION_S`.
        """
        url = make_url(self.url)
        try:
            if self._sqlite and url.database:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            again = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception(_is_busy),
                stop=tenacity.stop_after_delay(MIGRATION_S),
                wait=tenacity.wait_random(*MIGRATION_PAUSE_S),
                before_sleep=lambda _: log.warning("others hold the store's tables, which are to change: trying again"),
                reraise=True,
            )
            done: Migration = await again(self._migrate)
        except (SQLAlchemyError, CommandError, CannotOpen, OSError) as error:
            await self.close()
            told = reason(error)
            if _is_busy(error):
                told += ": others hold what it takes; end what lasts so long there, such as a backup, and try again"
            raise CannotOpen(f"the store {self._shown} can't be used: {told}") from error
        if done.before != done.after:
            log.info("the store's tables are of revision %s now, and were of %s", done.after, done.before or "none")
        return done

    async def check(self) -> None:
        """See that there are tables with which this version can work; changes nothing.

        Raises:
            CannotOpen: there are none; or the database can't be reached.
        """
        try:
            async with self.engine.connect() as connection:
                await connection.run_sync(check)
        except (SQLAlchemyError, CannotOpen, OSError) as error:
            await self.close()
            raise CannotOpen(f"the store {self._shown} can't be used: {reason(error)}") from error

    @property
    def _shown(self) -> str:
        return make_url(self.url).render_as_string(hide_password=True)

    async def _migrate(self) -> Migration:
        async with self._writing() as connection:
            if not self._sqlite:  # to change a large table takes its time
                bounds = f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {MIGRATION_LOCK_MS}"
                await connection.exec_driver_sql(bounds)
            await take(connection, Lock.MIGRATION)
            return await connection.run_sync(upgrade)

    def in_background(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something until `close`."""
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Let the transactions that run come to their end, and close every connection."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self.running, *self._background, return_exceptions=True)
        await self.engine.dispose()


async def take(connection: AsyncConnection, lock: Lock) -> None:
    """Hold a lock to the end of the transaction; on SQLite every writer holds them all."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock.value)))


def insert_new(connection: AsyncConnection, table: Any) -> Any:
    """INSERT that leaves out what is there already; waits for who is inserting the same. Not standard SQL."""
    return _insert(connection)(table).on_conflict_do_nothing()


def insert_changed(connection: AsyncConnection, table: Any, values: Mapping[str, Any], changed: Mapping[str, Any]) -> Any:
    """INSERT of a row, or, where one of its primary key is there, an UPDATE that sets `changed`."""
    return _insert(connection)(table).values(**values).on_conflict_do_update(index_elements=[*table.primary_key], set_=changed)


def _insert(connection: AsyncConnection) -> Any:
    return insert_sqlite if connection.dialect.name == "sqlite" else insert_postgresql


again = tenacity.retry(
    retry=tenacity.retry_if_exception_type(Contention),
    stop=tenacity.stop_after_attempt(TRIES_MAX),
    wait=tenacity.wait_random(max=0.1),  # seconds
    reraise=True,
)
"""Makes a transaction start again that another one has undone."""


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

    One that PostgreSQL has undone because another stood in its way (a deadlock) starts again, up to `TRIES_MAX` times: so the
    method must change nothing but the database before it has committed.
    """
    persistent = again(method)

    async def run(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        task = asyncio.create_task(persistent(self, *args, **kwargs))
        self.database.running.add(task)
        task.add_done_callback(self.database.running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})  # so that those who leave count for as long as they cause work
            raise

    return functools.update_wrapper(run, method)


def _arguments(url: URL) -> dict[str, Any]:
    """How to connect: what `url` says, and for the rest our bounds. None for SQLite."""
    if url.get_backend_name() != "postgresql":
        return {}
    given = url.normalized_query
    ours = {**_CLIENT, "application_name": f"ramify {socket.gethostname()} {os.getpid()}"}
    arguments = {name: value for name, value in ours.items() if name not in given}
    options = [f"-c{name}={value}" for name, value in _SESSION.items()]
    arguments["options"] = " ".join([*options, *given.get("options", ())])  # of two of a name the last one counts
    return arguments


def _is_busy(error: BaseException) -> bool:
    """Whether the database could do it once others let it."""
    return isinstance(error, SQLAlchemyError) and issubclass(kind_of(error) or type(error), StoreBusy)


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
