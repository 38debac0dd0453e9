"""The audit log: who has done what. A row of an act is written in the act's own transaction: there is no act without its row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tenacity
from sqlalchemy import Select, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.clock import Clock, db_now_ms
from ramify.store.database import LOCK_MS, STATEMENT_MS, Database, to_its_end
from ramify.store.errors import StoreBusy
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.schema import audit as table

KEPT_DAYS = 400
ROWS_A_SWEEP = 10_000
OK = "OK"
DETAIL_MAX = 500  # characters

SETTLE_S = (LOCK_MS + STATEMENT_MS) / 1000  # how long those who write now may take to end
SETTLE_POLL_S = 0.02

# Transactions that have written entries, or are about to: each holds this lock from before its entry has a number until all
# see the entry.
_WRITERS = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' "
    "AND relation = 'audit'::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, as the gateway has found out or the operator's command says."""

    tenant: str = DEFAULT_TENANT  # whose jobs it makes; empty: nobody who is known
    name: str = ""  # id of its key, or of whoever is at the store itself
    peer: str = ""  # where it comes from
    everywhere: bool = False  # it sees every tenant's jobs, and may cancel them

    @property
    def scope(self) -> str | None:
        """The tenant whose jobs it sees; None: all."""
        return None if self.everywhere else self.tenant


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the log."""

    number: int
    at_ms: int
    tenant: str
    key_id: str
    peer: str
    action: str  # a method of the API, or the like of keys.revoke
    subject: str  # what it was done to
    outcome: str  # OK, or the status that it was refused with
    detail: str


class Audit:
    """See the module."""

    def __init__(self, database: Database, clock: Clock = db_now_ms) -> None:
        self.database = database
        self._clock = clock

    @to_its_end
    async def refused(self, actor: Actor, action: str, subject: str, outcome: str, detail: str) -> None:
        """Tell of what was not done."""
        async with self.database.write() as connection:
            await record(connection, await self._clock(connection), actor, action, subject, outcome, detail)

    @to_its_end
    async def latest(self, limit: int, tenant: str | None = None) -> list[Entry]:
        """The newest entries, the newest first; of one tenant, or of all."""
        return await self._entries(select(table).order_by(table.c.number.desc()).limit(limit), tenant)

    @to_its_end
    async def following(self, after: int, limit: int, tenant: str | None = None) -> list[Entry]:
        """Entries with a larger number than `after`, the oldest first; for those who keep the log elsewhere.

        None that comes later has a smaller number than one of these: so whoever goes on after the last of them misses none.

        Raises:
            StoreBusy: transactions that may have smaller numbers have not ended within `SETTLE_S`.
        """
        query = select(table).where(table.c.number > after, table.c.number <= await self._settled())
        return await self._entries(query.order_by(table.c.number).limit(limit), tenant)

    async def _settled(self) -> int:
        """A number up to which nothing is to come any more: on PostgreSQL they are not committed in their order."""
        async with self.database.read() as connection:
            last = await connection.scalar(select(func.coalesce(func.max(table.c.number), 0)))
            if connection.dialect.name != "postgresql":  # which has one writer
                return int(last or 0)
            open_still = set(await connection.scalars(_WRITERS))  # as it is now, later than `last`
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(bool),
            stop=tenacity.stop_after_delay(SETTLE_S),
            wait=tenacity.wait_fixed(SETTLE_POLL_S),
        )
        try:
            await tries(self._of_those, open_still)
        except tenacity.RetryError as error:
            raise StoreBusy(f"transactions that write the audit log have not ended for {SETTLE_S:g} s: try again") from error
        return int(last or 0)

    async def _of_those(self, writers: set[str]) -> set[str]:
        """Which of them write still."""
        if not writers:
            return writers
        async with self.database.read() as connection:
            return writers.intersection(await connection.scalars(_WRITERS))

    async def _entries(self, query: Select[Any], tenant: str | None) -> list[Entry]:
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        async with self.database.read() as connection:
            return [Entry(*row) for row in await connection.execute(query)]


async def record(
    connection: AsyncConnection,
    at_ms: int,
    actor: Actor,
    action: str,
    subject: str,
    outcome: str = OK,
    detail: str = "",
) -> None:
    """Write an entry, in the transaction of what it tells of."""
    await connection.execute(insert(table).values(entry(at_ms, actor, action, subject, outcome, detail)))


def entry(at_ms: int, actor: Actor, action: str, subject: str, outcome: str = OK, detail: str = "") -> dict[str, Any]:
    """The columns of an entry. Too long texts are cut, and NULs, which no database keeps, left out."""
    texts = {"key_id": actor.name, "peer": actor.peer, "subject": subject, "outcome": outcome, "detail": detail}
    bounds = {"key_id": 64, "peer": 128, "subject": 128, "outcome": 32, "detail": DETAIL_MAX}
    values = {name: text.replace("\0", "")[: bounds[name]] for name, text in texts.items()}
    return {"at_ms": at_ms, "tenant": actor.tenant, "action": action, **values}


async def expire(connection: AsyncConnection, now_ms: int) -> int:
    """Delete what is older than `KEPT_DAYS`, up to `ROWS_A_SWEEP` entries, the oldest first; how many."""
    oldest = select(table.c.number, table.c.at_ms).order_by(table.c.number).limit(ROWS_A_SWEEP).subquery()
    past = select(oldest.c.number).where(oldest.c.at_ms < now_ms - KEPT_DAYS * 86_400_000)
    gone: Sequence[int] = (await connection.scalars(past)).all()
    if gone:  # they are numbered in the order of their times
        await connection.execute(delete(table).where(table.c.number <= max(gone)))
    return len(gone)
