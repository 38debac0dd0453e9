"""Clocks: that of this host, and that of the store, which alone all processes share."""

import time
from collections.abc import Awaitable, Callable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

Clock = Callable[[AsyncConnection], Awaitable[int]]
"""Milliseconds since the epoch by a store's clock: `db_now_ms`, or what a test puts in its place."""

_NOW_MS = {
    # Not now(), which is when the transaction began.
    "postgresql": text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"),
    # Days since 4714 BC. unixepoch('subsec') needs SQLite 3.42; Python 3.11 comes with older ones.
    "sqlite": text("SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS integer)"),
}


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


async def db_now_ms(connection: AsyncConnection) -> int:
    """Milliseconds since the epoch by the database's clock, at this moment: in a transaction it goes on."""
    return int((await connection.execute(_NOW_MS[connection.dialect.name])).scalar_one())
