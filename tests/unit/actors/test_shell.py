"""Shells at work on one store: they share, move, drain, die and go on."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.events import StepsScored
from ramify.scheduler.slots import SLOTS
from ramify.store.errors import Fenced
from ramify.store.schema import slots as slots_table
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.actors.house import LEASE_MS, LIMITS, House, house


@pytest.fixture
async def home(sqlite_store: str) -> AsyncIterator[House]:
    async with house(sqlite_store) as found:
        yield found


async def owners(home: House) -> set[str]:
    async with home.database.read() as connection:
        return {row.owner for row in await connection.execute(slots_table.select())}


async def test_a_shell_solves_a_job_and_drains(home: House) -> None:
    job_id = await home.submit()
    shell = home.start()
    job = await home.done(job_id)
    assert job.progress.problems_done == 12
    assert job.progress.steps == sum(len(tree[0][0]) for tree in await home.outcome(job_id))
    assert job.progress.tokens == sum(tree[-1] for tree in await home.outcome(job_id))
    assert home.verifier.asked == {"7"}
    assert (job.pins.generator, job.pins.verifier, job.pins.checker) == ("1", "7", "7")
    await home.drain(shell)
    assert await owners(home) == {""}


async def test_a_drain_waits_for_what_is_being_given_up_already(home: House) -> None:
    shell = home.start()
    await home.until(partial(holds_all, shell))
    shell.keeper.leaving([3, 60])
    shell._give_up([3, 60])
    await home.drain(shell)
    assert await owners(home) == {""}


async def test_two_shells_share_the_trees(home: House) -> None:
    one, two = home.start(0), home.start(1)
    await home.until(lambda: len(one.keeper.slots) == len(two.keeper.slots) == SLOTS / 2)
    both = await home.submit(40, "both")
    await home.done(both)
    assert one.commits > 0 < two.commits
    await home.drain(two)
    await home.until(lambda: len(one.keeper.slots) == SLOTS)
    alone = await home.submit(40, "alone")
    await home.done(alone)
    assert await home.outcome(both) == await home.outcome(alone)
    assert (await home.job(both)).progress == (await home.job(alone)).progress


def holds_all(shell: Shell) -> bool:
    return len(shell.keeper.settled_claim.epochs) == SLOTS


async def undisturbed(home: House, problems: int = 12) -> tuple[list[Any], job_pb2.Progress]:
    """How a job ends that nothing happens to."""
    job_id = await home.submit(problems, "undisturbed")
    shell = home.start()
    progress = (await home.done(job_id)).progress
    await home.drain(shell)
    return await home.outcome(job_id), progress


def paid(progress: job_pb2.Progress) -> job_pb2.Progress:
    """What a job has cost and come to, without what has happened to it."""
    found = job_pb2.Progress()
    found.CopyFrom(progress)
    for name in ("retries", "takeovers"):
        found.ClearField(name)
    return found


async def half_way(home: House, job_id: str, steps: int) -> None:
    """Let a job come so far that so many of its steps are committed, and hold it there."""
    for engine in home.engines:
        engine.go_on(0)

    async def far() -> bool:
        written = all(shell.status.uncommitted_steps == 0 for shell in home.running)
        for engine in home.engines:
            if written and engine.batches_left <= 0:
                engine.go_on(1)
        return await home.steps(job_id) >= steps

    await home.until(far)


@pytest.mark.parametrize("snapshots_of", [1, 40, 1_000_000])
async def test_a_successor_goes_on_where_a_shell_was_killed(home: House, snapshots_of: int) -> None:
    """Whatever is restored from snapshots, and whatever is told from the journal."""
    limits = replace(LIMITS, shard=replace(LIMITS.shard, snapshot_steps_min=snapshots_of))
    wanted, progress = await undisturbed(home)
    job_id = await home.submit()
    home.engines[0].go_on(0)
    for part in (1, 2, 3):
        shell = home.start(0, limits)
        await home.until(partial(holds_all, shell))
        await half_way(home, job_id, progress.steps * part // 4)
        before, sampled = await home.steps(job_id), home.engines[0].sampled
        await home.crash(shell)
    home.start(0, limits)
    home.engines[0].go_on()
    job = await home.done(job_id)
    assert await home.outcome(job_id) == wanted
    assert paid(job.progress) == paid(progress), "nothing that was committed is paid for again"
    assert 2 <= job.progress.takeovers <= 3, "the last one may have come to the end"
    assert home.engines[0].sampled - sampled <= job.progress.steps - before, "nor sampled again"
    assert await home.notices(job_id) == ["shard:0 took over 64 slots from its predecessor"] * job.progress.takeovers


async def test_another_shard_takes_over_when_the_lease_ends(home: House) -> None:
    wanted, progress = await undisturbed(home)
    one, two = home.start(0), home.start(1)
    await home.until(lambda: len(one.keeper.slots) == len(two.keeper.slots) == SLOTS / 2)
    home.engines[0].go_on(0)  # else one of them may come to its end before the other begins
    job_id = await home.submit()
    await half_way(home, job_id, progress.steps // 2)
    await home.crash(one)
    home.now_ms += LEASE_MS
    home.engines[0].go_on()
    job = await home.done(job_id)
    assert len(two.keeper.slots) == SLOTS
    assert await home.outcome(job_id) == wanted
    assert paid(job.progress) == paid(progress)
    assert await home.notices(job_id) == ["shard:1 took over 32 slots from shard:0, whose lease had ended"]


async def test_slots_move_in_the_middle_of_a_job_and_nothing_is_lost(home: House) -> None:
    wanted, progress = await undisturbed(home, 30)
    one = home.start(0)
    await home.until(lambda: len(one.keeper.slots) == SLOTS)
    job_id = await home.submit(30)
    await half_way(home, job_id, progress.steps // 3)
    two = home.start(1)
    await home.until(lambda: len(two.keeper.settled_claim.epochs) == SLOTS / 2)
    await half_way(home, job_id, progress.steps * 2 // 3)
    await home.drain(one)
    await home.until(partial(holds_all, two))
    home.engines[0].go_on()
    job = await home.done(job_id)
    assert await home.outcome(job_id) == wanted
    assert paid(job.progress) == paid(progress)
    assert job.progress.takeovers == 0
    assert {text.partition(" ")[2] for text in await home.notices(job_id)} == {"slots moved from shard:0 to shard:1"}
    assert two.commits > 0


async def test_who_has_lost_a_slot_ends_and_writes_nothing_more(home: House) -> None:
    """A zombie: it was paused, its slots were taken, and it goes on as if nothing had been."""
    job_id = await home.submit()
    shell = home.start(0)
    await half_way(home, job_id, 20)
    await Work(home.database).claim("shard:0@heir", [*range(SLOTS)], 600_000)
    steps = await home.steps(job_id)
    home.engines[0].go_on()
    error = await home.ended(shell)
    assert isinstance(error, Fenced)
    assert await home.steps(job_id) == steps


async def test_a_shell_that_takes_an_illegal_event_ends_and_the_next_one_goes_on(
    home: House, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, progress = await undisturbed(home)
    job_id = await home.submit()
    shell = home.start(0)
    await half_way(home, job_id, progress.steps // 2)
    nothing = np.empty(0, np.uint64)
    shell.post(StepsScored(nothing.astype(np.int64), nothing, nothing, np.empty(3, np.float32), nothing.astype(np.int32)))
    assert isinstance(await home.ended(shell), IllegalEvent)
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "CRITICAL")
    assert said.startswith(f"{shell.keeper.owner} ends by an illegal event: an event's counts do not add up to its values")
    assert "StepsScored(0)" in said
    home.start(0)
    home.engines[0].go_on()
    job = await home.done(job_id)
    assert await home.outcome(job_id) == wanted
    assert paid(job.progress) == paid(progress)


async def test_a_job_that_is_cancelled_leaves_nothing(home: House) -> None:
    job_id = await home.submit()
    shell = home.start(0)
    await half_way(home, job_id, 20)
    await home.jobs.cancel(job_id)
    await home.until(lambda: shell.shard.live_trees == 0)
    assert shell._first_segment == {}
    assert shell.status.waits == ()
    await home.crash(shell)
    heir = home.start(0)
    await home.until(partial(holds_all, heir))
    assert heir.shard.live_trees == 0
