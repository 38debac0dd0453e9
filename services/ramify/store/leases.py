"""Leases: who holds which slot, on the database's clock, and what shards tell of themselves with every beat."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from typing import Any

from sqlalchemy import Row, case, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.slots import SlotView
from ramify.store.clock import Clock as Clock
from ramify.store.database import insert_new
from ramify.store.errors import Fenced
from ramify.store.rows import tell
from ramify.store.schema import jobs, shards, slots
from ramify.store.wakeup import Channel, notify
from ramify.v1 import job_pb2

log = logging.getLogger(__name__)

FORGET_TTLS = 10  # a shard that was not seen for so many leases is forgotten


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on some slots: good for each of them until another claim takes it, whenever that is."""

    owner: str  # e.g. shard:0@9f2c04d1: what stands before the @ is the shard's name, the rest its incarnation
    epochs: Mapping[int, int]  # of each slot: rises with every claim of it
    taken_over: int = field(default=0, compare=False)  # of them, those that their last owner had not given up

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots, rising."""
        return tuple(sorted(self.epochs))


@dataclass(frozen=True, slots=True)
class Wait:
    """Chains of one job that wait for something."""

    job_id: str
    what: str  # e.g. verifier
    reason: str  # e.g. unavailable: connection refused
    count: int  # chains
    since_ms: int  # on the store's clock


@dataclass(frozen=True, slots=True)
class Report:
    """What a shard tells of itself."""

    draining: bool = False  # it takes no more slots, and gives up those that it has
    loads: Mapping[int, int] = field(default_factory=dict)  # live chains of its slots; of a slot that is left out: as before
    waits: Sequence[Wait] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """How things stand after a beat, as the whole system sees it."""

    now_ms: int  # on the store's clock
    held: Mapping[int, int]  # the owner's slots, and the epoch of each
    slots: list[SlotView]  # every slot by its number, to be assigned: an owner whose lease has ended is "", a predecessor of the
    # same shard's name is its successor
    shards: list[str]  # owners that are alive and not draining, the newest of each shard's name


class Hold(Enum):
    """What others may do with slots until the transaction ends."""

    NONE = auto()  # all
    SHARED = auto()  # nobody else can claim them
    ALONE = auto()  # nor does anybody write to them, their owner included


def shard_of(owner: str) -> str:
    """The name of an owner's shard."""
    return owner.partition("@")[0]


async def beat(connection: AsyncConnection, clock: Clock, owner: str, ttl_ms: int, report: Report) -> Beat:
    """See `Work.beat`."""
    now = await clock(connection)
    await connection.execute(
        insert_new(connection, shards).values(
            owner=owner, started_ms=now, seen_ms=now, expires_ms=now, draining=report.draining, waits="[]"
        )
    )
    before = (await connection.execute(select(shards).where(shards.c.owner == owner).with_for_update())).one()
    waits = json.dumps([asdict(wait) for wait in report.waits])
    values = {"seen_ms": now, "expires_ms": now + ttl_ms, "draining": report.draining, "waits": waits}
    await connection.execute(update(shards).where(shards.c.owner == owner).values(values))
    await connection.execute(shards.delete().where(shards.c.seen_ms < now - FORGET_TTLS * ttl_ms))
    # In this order, as everybody locks them.
    await connection.execute(
        select(slots.c.slot).where(slots.c.owner == owner).order_by(slots.c.slot).with_for_update(key_share=True)
    )
    load = case(dict(report.loads), value=slots.c.slot, else_=slots.c.load) if report.loads else slots.c.load
    await connection.execute(update(slots).where(slots.c.owner == owner).values(expires_ms=now + ttl_ms, load=load))
    if before.seen_ms == before.started_ms == now:
        await notify(connection, Channel.SLOTS)
    await _tell_waits(connection, clock, owner, read_waits(before.waits), report.waits)
    held = (await connection.execute(select(slots).order_by(slots.c.slot))).all()
    alive = (await connection.execute(select(shards).where(shards.c.expires_ms > now).order_by(shards.c.owner))).all()
    return _beat(owner, now, held, alive)


def _beat(owner: str, now_ms: int, held: Sequence[Row[Any]], alive: Sequence[Row[Any]]) -> Beat:
    newest = {shard_of(row.owner): row for row in sorted(alive, key=lambda row: (row.started_ms, row.owner))}

    def holder(row: Row[Any]) -> str:
        if row.expires_ms <= now_ms:
            return ""
        successor = newest.get(shard_of(row.owner))
        return str(successor.owner if successor else row.owner)

    return Beat(
        now_ms=now_ms,
        held={row.slot: row.epoch for row in held if row.owner == owner},
        slots=[SlotView(row.slot, holder(row), row.load) for row in held],
        shards=sorted(row.owner for row in newest.values() if not row.draining),
    )


async def claim(connection: AsyncConnection, clock: Clock, owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
    """See `Work.claim`."""
    query = select(slots).where(slots.c.slot.in_(wanted)).order_by(slots.c.slot)
    rows = (await connection.execute(query.with_for_update(skip_locked=True))).all()
    now = await clock(connection)
    mine = shard_of(owner)
    taken = [row for row in rows if not row.owner or row.expires_ms <= now or shard_of(row.owner) == mine]
    lost = [row for row in taken if row.owner not in ("", owner)]
    if not taken:
        return Claim(owner, {})
    values = {"epoch": slots.c.epoch + 1, "owner": owner, "expires_ms": now + ttl_ms, "former": ""}
    await connection.execute(update(slots).where(slots.c.slot.in_([row.slot for row in taken])).values(values))
    await _tell_claim(connection, clock, owner, taken, lost)
    return Claim(owner, {row.slot: row.epoch + 1 for row in taken}, taken_over=len(lost))


async def _tell_claim(
    connection: AsyncConnection, clock: Clock, owner: str, taken: Sequence[Row[Any]], lost: Sequence[Row[Any]]
) -> None:
    """One notice for every job that runs, if slots came from somebody else."""
    mine = shard_of(owner)
    moved = [row for row in taken if not row.owner and row.former and shard_of(row.former) != mine]
    if lost:
        text = f"{mine} took over {_count(len(lost), 'slot')} from {_former_owners(mine, lost)}"
        notice = job_pb2.Notice(kind=job_pb2.NOTICE_KIND_TAKEOVER, text=text)
        log.warning("%s", text)
        await tell(connection, clock, true(), notice, takeovers=jobs.c.takeovers + 1)
    elif moved:
        givers = " and ".join(sorted({shard_of(row.former) for row in moved}))
        notice = job_pb2.Notice(kind=job_pb2.NOTICE_KIND_MOVE, text=f"{_count(len(moved), 'slot')} moved from {givers} to {mine}")
        await tell(connection, clock, true(), notice)


def _former_owners(mine: str, lost: Sequence[Row[Any]]) -> str:
    others = sorted({shard_of(row.owner) for row in lost} - {mine})
    told = (
        [" and ".join(others) + (", whose lease had ended" if len(others) == 1 else ", whose leases had ended")] if others else []
    )
    if any(shard_of(row.owner) == mine for row in lost):
        told.insert(0, "its predecessor")
    return " and from ".join(told)


async def release(connection: AsyncConnection, claim: Claim, wanted: Sequence[int]) -> None:
    """Free those of some slots that the claim holds."""
    mine = select(slots.c.slot, slots.c.epoch).where(slots.c.slot.in_(wanted), slots.c.owner == claim.owner)
    rows = (await connection.execute(mine.order_by(slots.c.slot).with_for_update())).all()
    held = [row.slot for row in rows if row.epoch == claim.epochs.get(row.slot)]
    if held:
        values = {"owner": "", "expires_ms": 0, "former": claim.owner}
        await connection.execute(update(slots).where(slots.c.slot.in_(held)).values(values))
        await notify(connection, Channel.SLOTS)


async def leave(connection: AsyncConnection, owner: str) -> None:
    """See `Work.leave`."""
    await connection.execute(shards.delete().where(shards.c.owner == owner))
    await notify(connection, Channel.SLOTS)


async def check(connection: AsyncConnection, claim: Claim, wanted: Collection[int], hold: Hold) -> None:
    """Raise `Fenced` unless the claim holds all of some slots; `hold` says what may become of them in this transaction's time."""
    mine = select(slots.c.slot, slots.c.epoch).where(slots.c.slot.in_(wanted), slots.c.owner == claim.owner)
    mine = mine.order_by(slots.c.slot)
    match hold:
        case Hold.SHARED:  # the weakest lock that a claim has to wait for: beats need not, nor does it wait for beats
            mine = mine.with_for_update(read=True, key_share=True)
        case Hold.ALONE:
            mine = mine.with_for_update()
        case Hold.NONE:
            pass
    held = {row.slot: row.epoch for row in await connection.execute(mine)}
    if lost := [slot for slot in sorted(wanted) if slot not in held or held[slot] != claim.epochs.get(slot)]:
        raise Fenced(claim.owner, lost)


def read_waits(body: str) -> list[Wait]:
    """What a row of `shards` tells."""
    return [Wait(**wait) for wait in json.loads(body)]


async def _tell_waits(
    connection: AsyncConnection, clock: Clock, owner: str, before: Sequence[Wait], after: Sequence[Wait]
) -> None:
    known = {(wait.job_id, wait.what) for wait in before}
    waits = {(wait.job_id, wait.what): wait for wait in after}
    shard = shard_of(owner)
    for name, wait in sorted(waits.items()):
        if name not in known:
            verb = "waits" if wait.count == 1 else "wait"
            text = f"{_count(wait.count, 'chain')} of {shard} {verb} for the {wait.what}: {wait.reason}"
            notice = job_pb2.Notice(kind=job_pb2.NOTICE_KIND_WAIT, text=text)
            await tell(connection, clock, jobs.c.job_id == wait.job_id, notice)
    for job_id, what in sorted(known - waits.keys()):
        text = f"no chain of {shard} waits for the {what} any more"
        notice = job_pb2.Notice(kind=job_pb2.NOTICE_KIND_RESUMED, text=text)
        await tell(connection, clock, jobs.c.job_id == job_id, notice)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
