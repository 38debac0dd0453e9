"""Checks of a PostgreSQL server."""

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.cli.doctor.findings import Finding, Level, listed, size
from ramify.cli.doctor.subject import Subject
from ramify.cli.output import counted, duration
from ramify.store.database import POOL_OVERFLOW, POOL_SIZE

VERSION_MIN = 130000  # of the server, as it numbers itself
CONNECTIONS_A_PROCESS = POOL_SIZE + POOL_OVERFLOW + 1  # and the one that listens
NOTICE_S = 5.0
FREE_WARN = 1 << 30
FREE_BAD = 64 << 20

_CHANNEL = "ramify_doctor"


async def server(subject: Subject) -> Finding:
    """The version of the server, and whether what it calls durable is."""
    async with subject.database.read() as connection:
        number = int(await _setting(connection, "server_version_num"))
        told = await _setting(connection, "server_version")
        standby = await connection.scalar(text("SELECT pg_is_in_recovery()"))
        settings = {name: await _setting(connection, name) for name in ("fsync", "synchronous_commit", "full_page_writes")}
    off = [f"{name} is off" for name, value in settings.items() if value == "off"]
    if number < VERSION_MIN:
        return Finding(
            "server",
            Level.BAD,
            f"PostgreSQL {told} is too old",
            why="Ramify is tested with 13 and later",
            remedy="upgrade the server",
        )
    if standby:
        return Finding(
            "server",
            Level.BAD,
            f"PostgreSQL {told} here is a standby, which takes no writes",
            why="nothing can be committed",
            remedy="give the address of the primary, or promote this one",
        )
    if off:
        return Finding(
            "server",
            Level.BAD,
            f"PostgreSQL {told} does not keep what it has acknowledged",
            tuple(off),
            why="after a power cut, steps that were committed and told are lost and paid for again, or the whole database is",
            remedy="set them to on in postgresql.conf, and reload",
        )
    return Finding("server", Level.OK, f"PostgreSQL {told}, durable")


async def isolation(subject: Subject) -> Finding:
    """Whether transactions are isolated as the store needs it; a pooler between may have its own mind."""
    async with subject.database.read() as connection:
        reads = await _setting(connection, "transaction_isolation")
    async with subject.database.write() as connection:
        writes = await _setting(connection, "transaction_isolation")
    if (reads, writes) == ("repeatable read", "read committed"):
        return Finding("isolation", Level.OK, "read committed, and one view for each read")
    return Finding(
        "isolation",
        Level.BAD,
        f"reads are {reads}, writes {writes}; they should be repeatable read and read committed",
        why="the store's guarantees rest on them",
        remedy="connect without a pooler between that changes them",
    )


async def connections(subject: Subject) -> Finding:
    """Whether there are connections enough for the pools of all processes that are there."""
    async with subject.database.read() as connection:
        most = int(await _setting(connection, "max_connections"))
        kept = int(await _setting(connection, "superuser_reserved_connections"))
        rows: Any = (await connection.execute(text("SELECT application_name, count(*) FROM pg_stat_activity GROUP BY 1"))).all()
    processes = {name for name, _ in rows if name and name.startswith("ramify ")}
    used, there = sum(count for _, count in rows), most - kept
    needed = len(processes) * CONNECTIONS_A_PROCESS
    told = f"{used} of {there} connections are in use"
    if used >= there * 0.9 or needed > there:
        return Finding(
            "connections",
            Level.WARN,
            f"{told}, and {counted(len(processes), 'process')} of ours may want {needed}".replace("processs", "processes"),
            why="who gets none waits, and fails after a while with `too many connections`",
            remedy=f"raise max_connections to {max(needed, used) + kept + CONNECTIONS_A_PROCESS} or more, or run fewer processes",
        )
    return Finding("connections", Level.OK, told)


async def notices(subject: Subject) -> Finding:
    """Whether LISTEN and NOTIFY come through."""
    database = subject.database
    listener = await database.past_the_pool()
    try:
        await listener.execute(f"LISTEN {_CHANNEL}".encode())
        async with database.read() as connection:
            await connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": _CHANNEL})
            await connection.commit()
        async with asyncio.timeout(NOTICE_S), aclosing(listener.notifies()) as told:
            async for _ in told:
                return Finding("notices", Level.OK, "LISTEN and NOTIFY come through")
    except TimeoutError:
        pass
    finally:
        await listener.close()
    return Finding(
        "notices",
        Level.WARN,
        "what NOTIFY tells does not arrive",
        why="watches and shards hear of changes only when they look by themselves, seconds later",
        remedy="connect without a pooler, or let it pool sessions and not transactions",
    )


async def space(subject: Subject) -> Finding:
    """Space on the server's disk, if that is this host's."""
    async with subject.database.read() as connection:
        stored = int(await connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
        allowed = await connection.scalar(text("SELECT pg_has_role(current_user, 'pg_read_all_settings', 'member')"))
        folder = Path(await _setting(connection, "data_directory")) if allowed else None
    told = f"the database has {size(stored)}"
    if folder is None:
        return Finding("disk", Level.SKIPPED, f"{told}; this user may not ask where the server keeps it")
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Finding("disk", Level.SKIPPED, f"{told}; its disk is not this host's")
    if free >= FREE_WARN:
        return Finding("disk", Level.OK, f"{told}, {size(free)} are free")
    return Finding(
        "disk",
        Level.BAD if free < FREE_BAD else Level.WARN,
        f"{told}, only {size(free)} are free in {folder}",
        why="on a full disk nothing can be committed: shards pause, and go on by themselves once there is space",
        remedy="free some space",
    )


async def activity(subject: Subject, longer_than_s: float = 60.0) -> Finding:
    """Whether somebody holds a transaction open for so long."""
    query = text(
        "SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::int AS lasts_s, state,"
        " left(query, 80) AS query FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
        " AND clock_timestamp() - xact_start > make_interval(secs => :longer_than_s) ORDER BY xact_start"
    )
    async with subject.database.read() as connection:
        rows: Any = (await connection.execute(query, {"longer_than_s": longer_than_s})).all()
    if not rows:
        return Finding("transactions", Level.OK, "none lasts long")
    lines = [
        f"process {row.pid} ({row.application_name}), {row.state} for {row.lasts_s} s: {' '.join(row.query.split())}"
        for row in rows
    ]
    return Finding(
        "transactions",
        Level.WARN,
        f"{counted(len(rows), 'transaction')} open for more than {duration(longer_than_s)}",
        listed(lines),
        why="the server can't clean up behind them, and others may wait for their locks",
        remedy="end them with SELECT pg_terminate_backend(PROCESS) if nobody needs them",
    )


async def _setting(connection: AsyncConnection, name: str) -> str:
    return str(await connection.scalar(text("SELECT current_setting(:name)"), {"name": name}))
