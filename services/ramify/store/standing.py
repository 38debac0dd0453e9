"""Who is to be waited for: shards that hold slots and tell nothing any more, which they can't tell themselves."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.store.clock import db_now_ms
from ramify.store.database import Database
from ramify.store.leases import Clock, shard_of
from ramify.store.rows import timestamp
from ramify.store.schema import shards, slots
from ramify.store.together import CALLS_A_READ, together
from ramify.v1 import job_pb2


class Standing:
    """See the module."""

    def __init__(self, database: Database, clock: Clock = db_now_ms) -> None:
        """`clock`: the time by which leases are judged, in milliseconds; for tests."""
        self.database = database
        self._clock = clock

    async def silent(self) -> Sequence[job_pb2.Wait]:
        """What every job that runs waits for: shards not heard of for longer than their lease, whose slots nobody has taken over.

        Read with its time, each of them is a sentence: `shard:1 has not been heard of for 20 s`.
        """
        return await _all_silent(self.database, None, self._clock)


@together(most=CALLS_A_READ)
async def _all_silent(database: Database, asked: Sequence[None], clock: Clock) -> list[list[job_pb2.Wait] | Exception]:
    async with database.read() as connection:
        return [await silent(connection, await clock(connection))] * len(asked)


async def silent(connection: AsyncConnection, now_ms: int) -> list[job_pb2.Wait]:
    """See `Standing.silent`."""
    told = (await connection.execute(select(shards).order_by(shards.c.owner))).all()
    held = (await connection.execute(select(slots.c.owner, slots.c.expires_ms).where(slots.c.owner != ""))).all()
    owners = {row.owner for row in held}
    found = [_silent(row) for row in told if row.expires_ms <= now_ms and row.owner in owners]
    if found or any(row.expires_ms > now_ms for row in held):
        return found
    return [job_pb2.Wait(what="every slot", reason="is without a shard")]


def _silent(row: Any) -> job_pb2.Wait:
    shard = shard_of(row.owner)
    return job_pb2.Wait(what=shard, reason="has not been heard of", since_time=timestamp(row.seen_ms), shard=shard)
