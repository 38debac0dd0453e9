"""Who calls, and what it may do: API keys, roles, and streams that end with their key."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice, takewhile
from types import MappingProxyType

from sqlalchemy.exc import SQLAlchemyError

from ramify.gateway.errors import Forbidden, TooManyKeys, Unauthenticated
from ramify.gateway.limits import GatewayLimits
from ramify.store.audit import Actor, Audit
from ramify.store.clock import now_ms
from ramify.store.database import Database
from ramify.store.keys import KEYS_A_CALL, Key, Keys, Role, parts_of

HEADER = "authorization"
SCHEME = "bearer "

KEYS_MAX = 4096  # that are remembered; and as many ids that no key has
LOOKUPS_MAX = 512  # of ids at once of which no key has been seen
REFUSAL_S = 60.0  # in which a caller is written down once for each thing that it may not do
REFUSALS_MAX = 256  # that are written down in that time at most, whoever comes from wherever

Reading = asyncio.Task[Mapping[str, Key]]

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "CreateJob": Role.SUBMIT,
        "CancelJob": Role.SUBMIT,
        "GetJob": Role.READ,
        "ListJobs": Role.READ,
        "WatchJob": Role.READ,
        "ListResults": Role.READ,
        "GetTree": Role.READ,
        "ListModels": Role.READ,
    }
)
"""The least role for each method; one that is not here takes the highest."""

_HOW = (
    "send it as metadata `authorization: Bearer rk_...`; the `ramify` command and the client take it from RAMIFY_API_KEY or "
    "RAMIFY_API_KEY_FILE; an operator makes one with `ramify keys create`"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls."""

    actor: Actor
    role: Role = Role.SUBMIT
    key: Key | None = None  # None: none is asked for


_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Who has made the call that this task answers."""
    return _CALLER.get()


class Access:
    """See the module. One for each gateway."""

    def __init__(self, database: Database, limits: GatewayLimits, *, keys: bool) -> None:
        """`keys`: every caller must have one; else all are the default tenant."""
        self._book = KeyBook(Keys(database), limits.key_fresh_s) if keys else None
        self._refusals = Refusals(Audit(database))
        self._recheck_s = limits.key_recheck_s
        self._streams: dict[asyncio.Timeout, str] = {}  # with the ids of their keys
        self._watch: asyncio.Task[None] | None = None

    async def admit(self, method: str, metadata: Sequence[tuple[str, str | bytes]], peer: str) -> Caller:
        """Who calls a method; from now on `caller` tells it in this task.

        Raises:
            Unauthenticated: no key, or none that is good.
            TooManyKeys: it has not been seen here, and too many others that have not either are looked up.
            Forbidden: the key's role does not reach.
        """
        found = await self._find(metadata, peer)
        _CALLER.set(found)
        if not found.role.reaches(needed := ROLES.get(method, Role.OPERATE)):
            raise Forbidden(
                f"{method} takes a key of role {needed}, and key {found.actor.name} of tenant {found.actor.tenant} has role "
                f"{found.role}: use another key, or have an operator make one with `ramify keys create`"
            )
        return found

    async def _find(self, metadata: Sequence[tuple[str, str | bytes]], peer: str) -> Caller:
        _CALLER.set(Caller(Actor("" if self._book else Actor().tenant, "", peer)))  # until it is known
        if self._book is None:
            return caller()
        given = [value for name, value in metadata if name == HEADER]
        if not given:
            raise Unauthenticated(f"this gateway takes calls with an API key alone: {_HOW}")
        text = given[0] if len(given) == 1 and isinstance(given[0], str) else ""
        parts = parts_of(text[len(SCHEME) :].strip()) if text.lower().startswith(SCHEME) else None
        if parts is None:
            raise Unauthenticated(f"what came as `{HEADER}` is no API key: {_HOW}")
        key = await self._book.find(parts[0])
        if key is None or not key.fits(parts[1]):
            raise Unauthenticated("there is no such API key: ask an operator for one, who makes it with `ramify keys create`")
        actor = Actor(key.tenant, key.key_id, peer, everywhere=key.role is Role.OPERATE)
        _CALLER.set(Caller(actor, key.role, key))
        if fault := key.fault(now_ms()):
            raise Unauthenticated(_faulty(key, fault))
        return caller()

    @asynccontextmanager
    async def while_good(self, found: Caller) -> AsyncIterator[None]:
        """A block that ends with `Unauthenticated` once the caller's key is good no more."""
        if found.key is None:
            yield
            return
        end = asyncio.timeout(None)
        try:
            async with end:
                self._streams[end] = found.key.key_id
                if self._watch is None or self._watch.done():
                    self._watch = asyncio.create_task(self._recheck(), name="keys of streams")
                yield
        except TimeoutError:
            if not end.expired():
                raise
            raise Unauthenticated(f"API key {found.key.key_id} is good no more: come again with another one") from None
        finally:
            self._streams.pop(end, None)

    async def _recheck(self) -> None:
        assert self._book is not None
        while self._streams:
            await asyncio.sleep(self._recheck_s)
            for key_id in set(self._streams.values()):
                with contextlib.suppress(SQLAlchemyError, TooManyKeys):  # nobody can tell now: the next look does
                    key = await self._book.find(key_id)
                    if key is None or key.fault(now_ms()):
                        self._end(key_id)

    def _end(self, key_id: str) -> None:
        now_s = asyncio.get_running_loop().time()
        for stream in [stream for stream, its in self._streams.items() if its == key_id]:
            del self._streams[stream]
            stream.reschedule(now_s)

    async def refused(self, method: str, subject: str, outcome: str, detail: str) -> None:
        """Write into the audit log that `caller` was refused something."""
        await self._refusals.tell(caller().actor, method, subject, outcome, detail)

    def stop(self) -> None:
        """Look after no stream any more."""
        if self._watch is not None:
            self._watch.cancel()


@dataclass(slots=True)
class KeyBook:
    """Keys as the store had them `fresh_s` seconds ago at most: for so long one that was revoked may still be taken.

    All that are in use are read again together. Ids that no key was seen with are looked up apart, and are remembered
    apart: whoever makes ids up holds up those alone who come with a key for the first time.
    """

    keys: Keys
    fresh_s: float
    _seen: dict[str, None] = field(default_factory=dict)  # ids of keys that there are; those in use last
    _strange: dict[str, tuple[float, asyncio.Task[Key | None]]] = field(default_factory=dict)  # other ids, as `_known`
    _lookups: int = 0  # of these, under way
    _known: dict[str, tuple[float, Reading]] = field(default_factory=dict)  # until when; the oldest first
    _used: set[str] = field(default_factory=set)  # of those, since they were read

    async def find(self, key_id: str) -> Key | None:
        """The key of an id, good or not; all who ask at once wait for one read. Raises `StoreOutage`, `TooManyKeys`."""
        now_s = asyncio.get_running_loop().time()
        if key_id not in self._seen:
            return await self._look_up(key_id, now_s)
        self._seen[key_id] = self._seen.pop(key_id)
        until_s, reading = self._known.get(key_id, (0.0, None))
        if reading is None or until_s <= now_s:
            reading = self._renew(key_id, now_s)
        self._used.add(key_id)
        return (await asyncio.shield(reading)).get(key_id)

    async def _look_up(self, key_id: str, now_s: float) -> Key | None:
        until_s, lookup = self._strange.get(key_id, (0.0, None))
        if lookup is None or (until_s <= now_s and lookup.done()):
            if self._lookups >= LOOKUPS_MAX:
                raise TooManyKeys("too many keys that this gateway has not seen yet are looked up: try again")
            self._lookups += 1
            self._strange.pop(key_id, None)
            lookup = asyncio.create_task(self._meet(key_id), name="a key")
            self._strange[key_id] = now_s + self.fresh_s, lookup
            while len(self._strange) > KEYS_MAX:
                del self._strange[next(iter(self._strange))]
        return await asyncio.shield(lookup)

    async def _meet(self, key_id: str) -> Key | None:
        key = None
        try:
            key = await self.keys.one(key_id)
        except BaseException:
            self._strange.pop(key_id, None)  # the next one asks again
            raise
        finally:
            self._lookups -= 1
        if key is not None:
            self._strange.pop(key_id, None)
            self._seen[key_id] = None
            while len(self._seen) > KEYS_MAX:
                del self._seen[next(iter(self._seen))]
        return key

    def _renew(self, key_id: str, now_s: float) -> Reading:
        stale = [*takewhile(lambda each: self._known[each][0] <= now_s, islice(self._known, KEYS_A_CALL - 1))]
        wanted = frozenset((key_id, *self._used.intersection(stale)))
        reading = asyncio.create_task(self._read(wanted), name="keys")
        for each in (key_id, *stale):
            self._forget(each)
        self._known.update(dict.fromkeys(wanted, (now_s + self.fresh_s, reading)))
        while len(self._known) > KEYS_MAX:
            self._forget(next(iter(self._known)))
        return reading

    async def _read(self, key_ids: frozenset[str]) -> Mapping[str, Key]:
        try:
            return await self.keys.known(key_ids)
        except BaseException:
            for key_id in key_ids:
                self._forget(key_id)  # the next one asks again
            raise

    def _forget(self, key_id: str) -> None:
        self._known.pop(key_id, None)
        self._used.discard(key_id)


@dataclass(slots=True)
class Refusals:
    """What was refused, each once in a while: whoever is refused all the time must not fill the log."""

    audit: Audit
    _told: dict[tuple[str, str, str], float] = field(default_factory=dict)  # until when it need not be told again

    async def tell(self, actor: Actor, method: str, subject: str, outcome: str, detail: str) -> None:
        """Write it down, unless the same caller was written down for the same within `REFUSAL_S`."""
        now_s = asyncio.get_running_loop().time()
        who = actor.name or actor.peer.rpartition(":")[0]  # less the port, which every connection has another of
        if self._told.get((who, method, outcome), 0.0) > now_s:
            return
        if len(self._told) >= REFUSALS_MAX:
            self._told = {key: until_s for key, until_s in self._told.items() if until_s > now_s}
        if len(self._told) >= REFUSALS_MAX:
            return
        self._told[who, method, outcome] = now_s + REFUSAL_S
        # The caller is to be told why it was refused, and not why that can't be written down.
        with contextlib.suppress(SQLAlchemyError):
            await self.audit.refused(actor, method, subject, outcome, detail)


def _faulty(key: Key, fault: str) -> str:
    return f"API key {key.key_id} of tenant {key.tenant} {fault}: ask an operator for another one"
