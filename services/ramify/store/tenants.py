"""Tenants: who shares the system, what each may have at once and in a day, and what it has spent."""

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Row, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.audit import KEPT_DAYS, ROWS_A_SWEEP, Actor, record
from ramify.store.clock import Clock, db_now_ms
from ramify.store.database import Database, insert_changed, to_its_end
from ramify.store.errors import InvalidName, QuotaExceeded, QuotaTooSmall
from ramify.store.schema import DEFAULT_TENANT, jobs, tenants, usage
from ramify.v1 import job_pb2

DAY_MS = 86_400_000
STORE = Actor("", "store")  # who is at the store itself
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OPEN = (job_pb2.JOB_STATE_UPLOADING, job_pb2.JOB_STATE_RUNNING)
_MARK = "\x1f"  # between a tenant's name and a request id, neither of which can hold it


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one may have. None: any amount."""

    name: str
    weight: float = 1.0  # its share of engines and verifiers as against the others that want something
    jobs_max: int | None = None  # that upload or run at once
    live_chains_max: int | None = None
    tokens_per_day_max: int | None = None  # days are UTC


@dataclass(frozen=True, slots=True)
class Standing:
    """A tenant, and what it has spent today."""

    tenant: Tenant
    steps_today: int = 0
    tokens_today: int = 0

    @property
    def tokens_left(self) -> int | None:
        """That it may still spend today; None: any number."""
        most = self.tenant.tokens_per_day_max
        return None if most is None else max(0, most - self.tokens_today)


class Tenants:
    """See the module."""

    def __init__(self, database: Database, clock: Clock = db_now_ms) -> None:
        """`clock`: by which days are told, in milliseconds; for tests."""
        self.database = database
        self._clock = clock

    @to_its_end
    async def put(self, tenant: Tenant, by: Actor = STORE) -> None:
        """Set what a tenant may have; one that is not there is made. Raises `InvalidName`."""
        check_tenant(tenant.name)
        async with self.database.write() as connection:
            values, now = asdict(tenant), await self._clock(connection)
            await connection.execute(insert_changed(connection, tenants, {**values, "created_ms": now}, changed=values))
            said = ", ".join(f"{field} {value:,}" for field, value in values.items() if field != "name" and value is not None)
            await record(connection, now, by, "tenants.set", tenant.name, detail=said)

    @to_its_end
    async def get(self, name: str) -> Tenant | None:
        """What is said of a tenant."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(tenants).where(tenants.c.name == name))).one_or_none()
        return None if row is None else _tenant(row)

    @to_its_end
    async def remove(self, name: str, by: Actor = STORE) -> bool:
        """Have a tenant be as one that nothing is said of; whether anything was. Its jobs and keys stay."""
        async with self.database.write() as connection:
            gone = (await connection.execute(delete(tenants).where(tenants.c.name == name))).rowcount
            if gone:
                await record(connection, await self._clock(connection), by, "tenants.remove", name)
        return bool(gone)

    @to_its_end
    async def standings(self) -> dict[str, Standing]:
        """Every tenant of which something is said or that has spent something today, by name."""
        async with self.database.read() as connection:
            return await standings(connection, await self._clock(connection))


async def standings(connection: AsyncConnection, now_ms: int) -> dict[str, Standing]:
    """See `Tenants.standings`."""
    rows = (await connection.execute(select(tenants))).all()
    spent = select(usage.c.tenant, func.sum(usage.c.steps).label("steps"), func.sum(usage.c.tokens).label("tokens"))
    today = (await connection.execute(spent.where(usage.c.day == now_ms // DAY_MS).group_by(usage.c.tenant))).all()
    told = {row.name: _tenant(row) for row in rows}
    steps, tokens = {row.tenant: int(row.steps) for row in today}, {row.tenant: int(row.tokens) for row in today}
    return {
        name: Standing(told.get(name) or Tenant(name), steps.get(name, 0), tokens.get(name, 0))
        for name in sorted(told.keys() | steps.keys())
    }


async def spend(connection: AsyncConnection, shard: str, now_ms: int, spent: Mapping[str, tuple[int, int]]) -> None:
    """Add to what tenants have spent today: by their names, steps and tokens."""
    for name, (steps, tokens) in sorted(spent.items()):
        values = {"tenant": name, "day": now_ms // DAY_MS, "shard": shard, "steps": steps, "tokens": tokens}
        more = {"steps": usage.c.steps + steps, "tokens": usage.c.tokens + tokens}
        await connection.execute(insert_changed(connection, usage, values, changed=more))


@dataclass(slots=True)
class Room:
    """What a tenant may still have, in a transaction that holds its row."""

    tenant: Tenant
    open_jobs: int  # counted only where it is bounded
    tokens_today: int  # likewise
    now_ms: int  # by the store's clock

    def admit(self, chains: int) -> None:
        """One more job, of which a tree has so many chains at once.

        Raises:
            QuotaExceeded: not now.
            QuotaTooSmall: not this one.
        """
        name, most = self.tenant.name, self.tenant
        if most.live_chains_max is not None and chains > most.live_chains_max:
            raise QuotaTooSmall(
                f"one tree of this job has {chains:,} chains at once, and tenant {name} may have {most.live_chains_max:,} in all "
                "(live_chains_max): ask for fewer with n, or parallel and branch, or have the operator raise the bound"
            )
        if most.jobs_max is not None and self.open_jobs >= most.jobs_max:
            raise QuotaExceeded(
                f"tenant {name} has {self.open_jobs:,} open jobs, and may have {most.jobs_max:,} (jobs_max): wait for one to "
                "end, cancel one, or have the operator raise the bound",
                name,
            )
        if most.tokens_per_day_max is not None and self.tokens_today >= most.tokens_per_day_max:
            raise QuotaExceeded(
                f"tenant {name} has spent {self.tokens_today:,} tokens today, and may spend {most.tokens_per_day_max:,} a day "
                "(tokens_per_day_max): a new day begins at midnight UTC",
                name,
                retry_s=(DAY_MS - self.now_ms % DAY_MS) / 1000,
            )
        self.open_jobs += 1


async def hold(connection: AsyncConnection, names: Collection[str], now_ms: int, *, wait: bool = True) -> dict[str, Room]:
    """What some tenants may still have, by name, without those of whom nothing is said; nobody else holds them till the end.

    `wait`: for who holds one now; else that one is left out as well.
    """
    here = select(tenants).where(tenants.c.name.in_(names)).order_by(tenants.c.name)
    held = {row.name: _tenant(row) for row in await connection.execute(here.with_for_update(skip_locked=not wait))}
    jobs_of, tokens_of = dict[str, int](), dict[str, int]()
    if bounded := [name for name, tenant in held.items() if tenant.jobs_max is not None]:
        count = select(jobs.c.tenant, func.count().label("jobs")).where(jobs.c.tenant.in_(bounded), jobs.c.state.in_(_OPEN))
        jobs_of = {row.tenant: row.jobs for row in await connection.execute(count.group_by(jobs.c.tenant))}
    if bounded := [name for name, tenant in held.items() if tenant.tokens_per_day_max is not None]:
        today = (usage.c.tenant.in_(bounded)) & (usage.c.day == now_ms // DAY_MS)
        spent = select(usage.c.tenant, func.sum(usage.c.tokens)).where(today).group_by(usage.c.tenant)
        tokens_of = {name: int(tokens) for name, tokens in await connection.execute(spent)}
    return {name: Room(tenant, jobs_of.get(name, 0), tokens_of.get(name, 0), now_ms) for name, tenant in held.items()}


async def told_of(connection: AsyncConnection, names: Collection[str]) -> set[str]:
    """Those of some tenants of whom something is said."""
    return set((await connection.scalars(select(tenants.c.name).where(tenants.c.name.in_(names)))).all())


async def expire(connection: AsyncConnection, now_ms: int) -> None:
    """Forget what was spent more than `KEPT_DAYS` ago, up to `ROWS_A_SWEEP` rows."""
    key = tuple_(usage.c.tenant, usage.c.day, usage.c.shard)
    past = select(usage.c.tenant, usage.c.day, usage.c.shard).where(usage.c.day < now_ms // DAY_MS - KEPT_DAYS)
    await connection.execute(delete(usage).where(key.in_(past.limit(ROWS_A_SWEEP))))


def check_tenant(name: str) -> None:
    """Raises `InvalidName` for what can't name a tenant."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"a tenant's name has 1 to 64 letters, digits, dots, dashes and underscores and begins with one of the first two, "
            f"not {name!r:.200}"
        )


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(row.name, row.weight, row.jobs_max, row.live_chains_max, row.tokens_per_day_max)


def scoped(tenant: str, request_id: str) -> str:
    """A tenant's request id as the store has it: what one tenant calls a request, another may call another one."""
    return request_id if tenant == DEFAULT_TENANT else f"{tenant}{_MARK}{request_id}"


def unscoped(request_id: str) -> str:
    """The request id as the tenant has it."""
    return request_id.rpartition(_MARK)[2]
