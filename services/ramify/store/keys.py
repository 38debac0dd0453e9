"""API keys: a tenant, a role and a secret, of which the store keeps its digest alone."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import insert, select, update

from ramify.store.audit import Actor, record
from ramify.store.clock import Clock, db_now_ms
from ramify.store.database import Database, to_its_end
from ramify.store.errors import InvalidName, KeyNotFound
from ramify.store.schema import keys
from ramify.store.tenants import DAY_MS, check_tenant
from ramify.store.together import together

SECRET_BYTES = 32
NAME_MAX = 128
KEYS_A_CALL = 512
CALLS_A_READ = 32  # databases bound the variables of a statement
_FORM = re.compile(r"rk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


class Role(StrEnum):
    """What a key is good for; each role may do what those before it may."""

    READ = "read"  # look at the tenant's jobs
    SUBMIT = "submit"  # make and cancel them
    OPERATE = "operate"  # see and cancel every tenant's

    def reaches(self, other: "Role") -> bool:
        """Whether it may do what `other` may."""
        order = [*Role]
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key."""

    key_id: str  # its public part
    tenant: str
    role: Role
    name: str  # for people
    digest: bytes  # SHA-256 of the secret part
    created_ms: int
    expires_ms: int | None  # None: never
    revoked_ms: int | None  # None: it is good

    def fits(self, secret: str) -> bool:
        """Whether this is its secret; takes as long for one that nearly is."""
        return hmac.compare_digest(self.digest, digest_of(secret))

    def fault(self, now_ms: int) -> str:
        """Why it can't be used at some time; empty: it can."""
        if self.revoked_ms is not None:
            return "was revoked"
        return "has expired" if self.expires_ms is not None and self.expires_ms <= now_ms else ""


class Keys:
    """See the module."""

    def __init__(self, database: Database, clock: Clock = db_now_ms) -> None:
        """`clock`: by which keys are dated, in milliseconds; for tests."""
        self.database = database
        self._clock = clock

    @to_its_end
    async def create(self, by: Actor, tenant: str, role: Role, name: str, days: float | None = None) -> tuple[Key, str]:
        """Make a key; `days`: until it expires.

        Returns:
            What is known of it, and the key itself, which nobody can tell again.

        Raises:
            InvalidName: of the tenant or of the key.
        """
        check_tenant(tenant)
        if not 0 < len(name) <= NAME_MAX or not name.isprintable():
            raise InvalidName(f"a key's name has 1 to {NAME_MAX} printable characters, not {name!r:.200}")
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        async with self.database.write() as connection:
            now = await self._clock(connection)
            expires = None if days is None else now + round(days * DAY_MS)
            key = Key(key_id, tenant, role, name, digest_of(secret), now, expires, None)
            values = {field: getattr(key, field) for field in Key.__slots__}
            await connection.execute(insert(keys).values(values))
            until = "" if days is None else f", for {days:g} days"
            await record(connection, now, by, "keys.create", key_id, detail=f"{name!r} of tenant {tenant}, role {role}{until}")
        return key, f"rk_{key_id}_{secret}"

    @to_its_end
    async def revoke(self, by: Actor, key_id: str) -> Key:
        """Have a key be good for nothing from now on; one that was revoked stays so. Raises `KeyNotFound`."""
        async with self.database.write() as connection:
            now = await self._clock(connection)
            good = update(keys).where(keys.c.key_id == key_id, keys.c.revoked_ms.is_(None)).values(revoked_ms=now)
            changed = (await connection.execute(good)).rowcount
            row = (await connection.execute(select(keys).where(keys.c.key_id == key_id))).one_or_none()
            if row is None:
                raise KeyNotFound(f"there is no key {key_id!r}; `ramify keys list` lists those that there are")
            if changed:
                await record(connection, now, by, "keys.revoke", key_id, detail=f"{row.name!r} of tenant {row.tenant}")
        return _key(row)

    @to_its_end
    async def listed(self, tenant: str | None = None) -> list[Key]:
        """Every key, or those of a tenant, the oldest first; also those that are good no more."""
        query = select(keys).order_by(keys.c.created_ms, keys.c.key_id)
        async with self.database.read() as connection:
            rows = await connection.execute(query if tenant is None else query.where(keys.c.tenant == tenant))
            return [_key(row) for row in rows]

    async def known(self, key_ids: frozenset[str]) -> dict[str, Key]:
        """Up to `KEYS_A_CALL` keys by their ids, good or not; those that are not there are left out."""
        return await _known(self.database, key_ids)

    async def one(self, key_id: str) -> Key | None:
        """The key of an id, good or not; those who ask for it don't hold up those who ask for `known` ones."""
        return await _one(self.database, key_id)


@together(most=CALLS_A_READ)
async def _known(database: Database, wanted: Sequence[frozenset[str]]) -> list[dict[str, Key] | Exception]:
    found = await _read(database, frozenset().union(*wanted))
    return [{key_id: found[key_id] for key_id in some if key_id in found} for some in wanted]


@together(most=KEYS_A_CALL)
async def _one(database: Database, wanted: Sequence[str]) -> list[Key | Exception | None]:
    found = await _read(database, frozenset(wanted))
    return [found.get(key_id) for key_id in wanted]


async def _read(database: Database, key_ids: frozenset[str]) -> dict[str, Key]:
    async with database.read() as connection:
        rows = await connection.execute(select(keys).where(keys.c.key_id.in_(key_ids)))
        return {row.key_id: _key(row) for row in rows}


def parts_of(text: str) -> tuple[str, str] | None:
    """Id and secret of a key; None if it has not the form of one."""
    found = _FORM.fullmatch(text)
    return None if found is None else (found[1], found[2])


def digest_of(secret: str) -> bytes:
    """What the store keeps of a secret. It is 256 random bits, which no dictionary holds: so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


def _key(row: object) -> Key:
    values = {field: getattr(row, field) for field in Key.__slots__}
    return Key(**{**values, "role": Role(values["role"])})
