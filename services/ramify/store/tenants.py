"""Tenants: who shares the system, what each may have at once and in a day, and what it has spent."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.clock import Clock, db_now_ms
from ramify.store.database import Database, insert_changed, to_its_end
from ramify.store.schema import DEFAULT_TENANT, tenants, usage

DAY_MS = 86_400_000
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
    async def put(self, tenant: Tenant) -> None:
        """Set what a tenant may have; one that is not there is made."""
        async with self.database.write() as connection:
            values = asdict(tenant)
            known = insert_changed(connection, tenants, {**values, "created_ms": await self._clock(connection)}, changed=values)
            await connection.execute(known)

    @to_its_end
    async def remove(self, name: str) -> None:
        """Have a tenant be as one that nothing is said of."""
        async with self.database.write() as connection:
            await connection.execute(delete(tenants).where(tenants.c.name == name))

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
    told = {row.name: Tenant(row.name, row.weight, row.jobs_max, row.live_chains_max, row.tokens_per_day_max) for row in rows}
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


def scoped(tenant: str, request_id: str) -> str:
    """A tenant's request id as the store has it: what one tenant calls a request, another may call another one."""
    return request_id if tenant == DEFAULT_TENANT else f"{tenant}{_MARK}{request_id}"


def unscoped(request_id: str) -> str:
    """The request id as the tenant has it."""
    return request_id.rpartition(_MARK)[2]
