"""Stores in which something has happened, and ways to spoil them."""

from dataclasses import replace
from typing import Any

from sqlalchemy import insert, select, update

from ramify.cli.doctor.subject import Subject
from ramify.store.clock import db_now_ms
from ramify.store.database import Database
from ramify.store.schema import SLOTS, shards, slots
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import Step, all_slots, commit, delta, result, rows, running_job, scores, tree_id

OWNER = "shard:0@1f"


def deep(subject: Subject) -> Subject:
    return replace(subject, deep=True)


async def a_job(database: Database, *, finished: bool = True) -> job_pb2.Job:
    """Three problems: 0 has two steps and a result, 1 one step, 2 none; or, not finished, nobody has a result."""
    job = await running_job(database, problems=3)
    work = Work(database)
    claim = await all_slots(work, OWNER)
    done, grows = tree_id(job, 0), tree_id(job, 1)
    first = rows(Step(done, 2, finish=1), Step(grows, 3))
    first_segment: dict[int, int] = {}
    await work.commit(claim, commit(1, delta(job, steps=2, tokens=2), nodes=first), first_segment)
    last = rows(Step(done, 4, parent=2, depth=2))
    results = [result(job, 0, step_count=2, tokens=2)] if finished else []
    late = scores((done, 2, 0.75))
    await work.commit(claim, commit(2, delta(job, *results, steps=1, tokens=1), nodes=last, late=late), first_segment)
    return job


async def spoil(database: Database, column: Any, where: Any, *, bit: int = 0) -> None:
    """Flip a bit in the middle of a body."""
    async with database.write() as connection:
        body = bytearray((await connection.execute(select(column).where(where))).scalar_one())
        body[len(body) // 2] ^= 1 << bit
        await connection.execute(update(column.table).where(where).values({column: bytes(body)}))


async def execute(database: Database, statement: Any) -> None:
    async with database.write() as connection:
        await connection.execute(statement)


async def put_shard(database: Database, owner: str, *, ends_in_s: float, waits: str = "[]", held: range = range(SLOTS)) -> None:
    """A shard with its slots whose lease of 15 s ends in so many seconds."""
    async with database.write() as connection:
        now = await db_now_ms(connection)
        expires = now + int(ends_in_s * 1000)
        values = {"owner": owner, "started_ms": now - 60_000, "seen_ms": expires - 15_000, "expires_ms": expires}
        await connection.execute(insert(shards).values(draining=False, waits=waits, **values))
        mine = slots.c.slot.in_(held)
        await connection.execute(
            update(slots).where(mine).values(owner=owner, expires_ms=expires, load=3, epoch=slots.c.epoch + 1)
        )
