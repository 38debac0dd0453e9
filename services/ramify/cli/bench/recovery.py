"""`ramify bench recovery`: how soon another shard goes on where a killed one has left off, and what that costs.

A shard with so many live chains is killed (SIGKILL) in the middle of a job, and Ray is told not to start it again. Its slots are
another's at the end of their lease. What counts is the first step of one of its trees that is durable again. At the end of the
job the steps that the engines have sampled are held against those that are committed: the difference was paid for twice.
"""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import func, select

from ramify.cli.bench.simulated import BRANCHES, VERIFIER, engine, engine_stats, problems, search, shard_actor, shard_status
from ramify.cli.output import make_console
from ramify.client import Client
from ramify.local.system import LocalConfig, LocalSystem
from ramify.scheduler.actors.lanes import QUEUE_FACTOR
from ramify.scheduler.slots import in_slots
from ramify.store import segments as codec
from ramify.store.database import Database
from ramify.store.leases import shard_of
from ramify.store.schema import segments, slots, snapshots

SLOTS_OF_ENGINE = 4096
ENGINES = 2
STEPS_MAX = 24
LOOK_S = 0.05
WAIT_S_MAX = 900.0
READY = 0.85  # of the chains that are wanted
AGE_STEPS = 6  # steps of a chain, on average, before the kill: a recovery of a search that has only begun would be easy


@dataclass(frozen=True, slots=True)
class Kill:
    """The moment."""

    at_ms: int  # on the clock of this machine, which is the store's
    chains: int
    in_flight: int  # at most: what the engine may have been given
    uncommitted: int
    steps_per_s: float
    segment: int  # the last one before it
    slots: Sequence[int]  # of the victim
    lease_end_ms: int


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it."""

    first_step_ms: int
    bytes_read: int  # bodies of the snapshots and segments that a recovery of these slots has to read
    segments_read: int


async def look(url: str, victim: str) -> tuple[int, Sequence[int], int]:
    """The last segment, the victim's slots, and the end of their leases."""
    database = Database(url)
    try:
        async with database.read() as connection:
            rows = (await connection.execute(select(slots))).all()
            last = await connection.scalar(select(func.max(segments.c.segment_id)))
    finally:
        await database.close()
    mine = [row for row in rows if shard_of(row.owner) == victim]
    return int(last or 0), [row.slot for row in mine], max(row.expires_ms for row in mine)


async def first_step(url: str, kill: Kill, victim: str) -> Found:
    """Wait for the first step of one of the victim's trees that another shard has committed."""
    database, after, deadline = Database(url), kill.segment, time.monotonic() + WAIT_S_MAX
    try:
        while time.monotonic() < deadline:
            async with database.read() as connection:
                columns = (
                    segments.c.segment_id,
                    segments.c.owner,
                    segments.c.created_ms,
                    segments.c.trees,
                    segments.c.trees_checksum,
                )
                query = select(*columns).where(segments.c.segment_id > after).order_by(segments.c.segment_id)
                for row in (await connection.execute(query)).all():
                    after = row.segment_id
                    trees = codec.read_index(row.trees, row.trees_checksum)
                    if shard_of(row.owner) != victim and trees is not None and in_slots(trees, kill.slots).any():
                        return Found(row.created_ms, *await read_bytes(connection, kill))
            await asyncio.sleep(LOOK_S)
    finally:
        await database.close()
    raise RuntimeError(f"nobody has gone on with the victim's trees in {WAIT_S_MAX:.0f} s")


async def read_bytes(connection: Any, kill: Kill) -> tuple[int, int]:
    """Bytes and segments of the newest snapshots before the kill and of what came after them."""
    newest = select(snapshots.c.slot, func.max(snapshots.c.segment_id)).where(
        snapshots.c.slot.in_(kill.slots), snapshots.c.segment_id <= kill.segment
    )
    after = {row[0]: row[1] for row in await connection.execute(newest.group_by(snapshots.c.slot))}
    size = 0
    for slot, segment in after.items():
        one = snapshots.c.slot == slot, snapshots.c.segment_id == segment
        size += await connection.scalar(select(func.length(snapshots.c.body)).where(*one)) or 0
    oldest = min((after.get(slot, 0) for slot in kill.slots), default=0)
    bodies = func.length(segments.c.nodes) + func.length(segments.c.scores)
    tail = segments.c.segment_id > oldest, segments.c.segment_id <= kill.segment
    row = (await connection.execute(select(func.count(), func.sum(bodies)).where(*tail))).one()
    return size + int(row[1] or 0), int(row[0])


def strike(url: str, chains: int, say: Any) -> tuple[Kill, str]:
    """Wait until a shard has so many chains that have come so far, and kill it."""
    import ray

    victim = "shard:1"
    actor = shard_actor(1)
    began, deadline, first = 0.0, time.monotonic() + WAIT_S_MAX, 0
    while True:
        status = shard_status(actor)
        shell = status.shell
        if shell is not None and shell.chains >= READY * chains:
            if not began:
                began, first = time.monotonic(), shell.committed_steps
                say(f"{victim} has {shell.chains:,} live chains")
            if shell.committed_steps >= AGE_STEPS * chains:
                break
        if time.monotonic() > deadline:
            raise typer.BadParameter(f"{victim} has not come to {chains:,} chains in {WAIT_S_MAX:.0f} s: give fewer")
        time.sleep(LOOK_S)
    rate = (shell.committed_steps - first) / max(LOOK_S, time.monotonic() - began)
    os.kill(status.pid, signal.SIGKILL)
    at_ms = time.time_ns() // 1_000_000
    ray.kill(actor, no_restart=True)
    segment, mine, end_ms = asyncio.run(look(url, victim))
    return Kill(
        at_ms, shell.chains, ENGINES * QUEUE_FACTOR * SLOTS_OF_ENGINE, shell.uncommitted_steps, rate, segment, mine, end_ms
    ), victim


def recovery(
    chains: Annotated[int, typer.Option(min=64, help="Live chains of the shard that is killed.")] = 100_000,
    lease_s: Annotated[float, typer.Option(min=6, help="Length of a lease.")] = 6.0,
) -> None:
    """Kill a shard; seconds from the end of its lease to the first new step, bytes read, steps paid for twice."""
    console = make_console()
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as folder:
        url = f"sqlite+aiosqlite:///{folder}/state.db"
        config = LocalConfig(
            Path(folder),
            listen="127.0.0.1:0",
            store_url=url,
            engines=(engine(SLOTS_OF_ENGINE),) * ENGINES,
            verifier_models=(VERIFIER,),
            shards=2,
            dashboard=False,
            lease_s=lease_s,
            trees_max=-(-chains // BRANCHES),
        )
        with LocalSystem(config) as system, Client(system.address) as client:
            job = client.submit(problems(2 * chains), **search(STEPS_MAX))  # the other shard has as many
            kill, victim = strike(url, chains, console.print)
            found = asyncio.run(first_step(url, kill, victim))
            console.print(
                f"its trees grow again {(found.first_step_ms - kill.at_ms) / 1000:.1f} s after the kill; waiting for the end"
            )
            for _ in client.watch(job.job_id):
                pass
            job = client.job(job.job_id)
            sampled = sum(engine_stats(index).rows_sampled for index in range(ENGINES))
    twice = sampled - job.progress.steps
    window = round(kill.steps_per_s * 0.1)
    bound = kill.in_flight + kill.uncommitted + window
    figures = {
        "chains": kill.chains,
        "takeover_s": round((found.first_step_ms - max(kill.lease_end_ms, kill.at_ms)) / 1000, 2),
        "lease_s": lease_s,
        "from_kill_s": round((found.first_step_ms - kill.at_ms) / 1000, 2),
        "mib_read": round(found.bytes_read / 2**20, 1),
        "segments_read": found.segments_read,
        "steps": job.progress.steps,
        "steps_paid_twice": twice,
        "steps_lost_bound": bound,
        "excess_steps": max(0, twice - bound),
        "problems_done": job.progress.problems_done,
        "problems": job.progress.problems_total,
    }
    for name, value in figures.items():
        console.print(f"  {name:18} {value:,}")
    print(json.dumps(figures))
