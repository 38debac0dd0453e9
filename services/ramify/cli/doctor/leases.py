"""Checks of shards, of the slots that they hold, and of the clock that leases go by."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from ramify.cli.doctor.findings import Finding, Level, listed, ranges
from ramify.cli.doctor.subject import Subject
from ramify.cli.output import counted, duration
from ramify.store.clock import db_now_ms
from ramify.store.leases import shard_of
from ramify.store.schema import SLOTS, shards, slots

SKEW_S_MAX = 1.0

_START = "start the system: `ramify up`; if one runs, look at its shards in the Ray dashboard and at their logs"


@dataclass(frozen=True, slots=True)
class Shards:
    """Who holds what, at one moment."""

    now_ms: int  # by the database's clock
    running: int  # jobs
    shards: Sequence[Row[Any]]
    slots: Sequence[Row[Any]]

    @property
    def alive(self) -> list[Row[Any]]:
        """Shards that are taken for alive."""
        return [row for row in self.shards if row.expires_ms > self.now_ms]

    @property
    def unheld(self) -> list[int]:
        """Slots that nobody holds."""
        held = {row.slot for row in self.slots if row.owner and row.expires_ms > self.now_ms}
        return [slot for slot in range(SLOTS) if slot not in held]


async def look(subject: Subject) -> Shards:
    """Read it."""
    running = await subject.running_jobs()
    async with subject.database.read() as connection:
        rows = (await connection.execute(select(shards).order_by(shards.c.owner))).all()
        held = (await connection.execute(select(slots).order_by(slots.c.slot))).all()
        return Shards(await db_now_ms(connection), running, rows, held)


async def shards_are_heard_of(subject: Subject) -> Finding:
    """Whether the shards that there are have told of themselves of late, and whether there is one where jobs run."""
    found = await look(subject)
    silent = [row for row in found.shards if row.expires_ms <= found.now_ms]
    lines = [_told(row, found) for row in found.shards]
    if found.running and not found.alive and subject.stopped:
        return Finding(
            "shards",
            Level.WARN,
            f"{counted(found.running, 'job')} run{'s' if found.running == 1 else ''}, and no system does",
            why="all that is committed is kept, and goes on from there with the next start",
            remedy="`ramify up`",
        )
    if found.running and not found.alive:
        return Finding(
            "shards",
            Level.BAD,
            f"{counted(found.running, 'job')} run{'s' if found.running == 1 else ''}, and no shard is alive",
            listed(lines),
            why="nothing is sampled; all that is committed is kept, and a shard that comes goes on from there",
            remedy=_START,
        )
    if silent:
        return Finding(
            "shards",
            Level.WARN,
            f"{counted(len(silent), 'shard')} of {len(found.shards)} not heard of",
            listed(lines),
            why="the others take its slots over; should it only have been paused, it ends itself when it goes on",
            remedy="look at its log, and at the load and the memory of its host; its entry goes away by itself",
        )
    alive = f"{counted(len(found.alive), 'shard')} alive" if found.alive else "none"
    return Finding("shards", Level.OK, alive if found.running else f"{alive}, and no job runs", listed(lines))


def _told(row: Row[Any], found: Shards) -> str:
    mine = [slot for slot in found.slots if slot.owner == row.owner]
    parts = [f"{len(mine)} slots", f"{sum(slot.load for slot in mine):,} live chains"]
    silent = row.expires_ms <= found.now_ms
    seen = duration((found.now_ms - row.seen_ms) / 1000)
    parts.append(f"not heard of for {seen}" if silent else f"heard of {seen} ago")
    if row.draining:
        parts.append("gives its slots up")
    return f"{row.owner}: {', '.join(parts)}"


async def slots_are_held(subject: Subject) -> Finding:
    """Whether every slot is held by a shard while jobs run."""
    found = await look(subject)
    if missing := sorted(set(range(SLOTS)) - {row.slot for row in found.slots}):
        return Finding(
            "slots",
            Level.BAD,
            f"the rows of slots {ranges(missing)} are not there",
            why="nobody can claim them: their problems wait for ever",
            remedy=f"INSERT INTO slots (slot, epoch, owner) VALUES ({missing[0]}, 0, ''), and so on",
        )
    unheld = found.unheld
    if found.running and not found.alive:
        return Finding("slots", Level.SKIPPED, f"{SLOTS - len(unheld)} of {SLOTS} are held, and no shard is there to hold them")
    if not found.running:
        return Finding("slots", Level.OK, f"{SLOTS - len(unheld)} of {SLOTS} are held, and no job runs")
    if not unheld:
        return Finding("slots", Level.OK, f"all {SLOTS} are held")
    lapsed = [row for row in found.slots if row.slot in set(unheld) and row.owner]
    owners = sorted({row.owner for row in lapsed})
    lines = [
        f"{owner}: the lease of {ranges([row.slot for row in lapsed if row.owner == owner])} ended "
        f"{duration((found.now_ms - max(row.expires_ms for row in lapsed if row.owner == owner)) / 1000)} ago"
        for owner in owners
    ]
    if free := [slot for slot in unheld if not found.slots[slot].owner]:
        lines.append(f"free: {ranges(free)}")
    names = {shard_of(row.owner) for row in found.alive}
    return Finding(
        "slots",
        Level.WARN,
        f"{len(unheld)} of {SLOTS} slots are held by nobody while jobs run",
        listed(lines),
        why=f"problems of these slots wait: about {len(unheld) / SLOTS:.0%} of every job",
        remedy=f"look again in some seconds: {', '.join(sorted(names))} should claim them with the next beat"
        if names
        else _START,
    )


async def clock(subject: Subject) -> Finding:
    """How far this host's clock is from the database's."""
    async with subject.database.read() as connection:
        await db_now_ms(connection)  # what comes first takes longer
        before_ns = time.time_ns()
        theirs_ms = await db_now_ms(connection)
        after_ns = time.time_ns()
    return skew(((before_ns + after_ns) / 2e6 - theirs_ms) / 1000)


def skew(ahead_s: float) -> Finding:
    """What it means that this host's clock is so many seconds ahead of the database's."""
    if abs(ahead_s) <= SKEW_S_MAX:
        return Finding("clock", Level.OK, f"within {max(1, round(abs(ahead_s) * 1000))} ms of the database's")
    return Finding(
        "clock",
        Level.WARN,
        f"this host's clock is {abs(ahead_s):,.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's",
        why="leases go by the database's clock alone and are safe, but times in histories and logs don't fit together",
        remedy="let NTP set the clocks of both hosts (`timedatectl`)",
    )
