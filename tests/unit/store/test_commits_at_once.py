"""Shards that commit at once: every result counts once, a job ends once, and its history has no gap."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.schema import SLOTS
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import TTL_MS, Step, commit, count, delta, result, rows, running_job, tree_id

PATIENCE_S = 60  # how long a test waits for what must come
SHARDS = 8
PROBLEMS = 120


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def shard(
    database: Database, number: int, jobs: list[job_pb2.Job], together: asyncio.Barrier, results_a_commit: int
) -> None:
    """Commit a step and a result of each problem of all jobs that falls to one of `SHARDS`: slot i to shard i % SHARDS."""
    work = Work(database)
    claim = await work.claim(f"shard:{number}", range(number, SLOTS, SHARDS), TTL_MS)
    mine = [[index for index in range(PROBLEMS) if tree_id(job, index) % SHARDS == number] for job in jobs]
    await together.wait()
    for start in range(0, max(map(len, mine)), results_a_commit):
        parts = [(job, some[start : start + results_a_commit]) for job, some in zip(jobs, mine, strict=True)]
        deltas = [
            delta(job, *(result(job, index, wasted_tokens=1) for index in part), steps=len(part), tokens=2 * len(part))
            for job, part in parts
        ]
        if number % 2:  # shards number jobs each in its own way
            deltas.reverse()
        nodes = rows(*(Step(tree_id(job, index), 2) for job, part in parts for index in part))
        await work.commit(claim, commit(start + 1, *deltas, nodes=nodes), {})


async def work_at_once(database: Database, jobs: list[job_pb2.Job], results_a_commit: int) -> None:
    """As many shards as `SHARDS`, each with connections of its own."""
    together = asyncio.Barrier(SHARDS)
    theirs = [Database(database.url) for _ in range(SHARDS)]
    try:
        async with asyncio.TaskGroup() as group:
            for number, each in enumerate(theirs):
                group.create_task(shard(each, number, jobs, together, results_a_commit))
    finally:
        for each in theirs:
            await each.close()


@pytest.mark.parametrize("results_a_commit", [3, PROBLEMS])
async def test_what_many_commit_at_once_adds_up(database: Database, results_a_commit: int) -> None:
    made = [await running_job(database, PROBLEMS, f"request {number}") for number in range(3)]
    await work_at_once(database, made, results_a_commit)
    for job in made:
        done = await Jobs(database).get(job.job_id)
        assert done.state == job_pb2.JOB_STATE_DONE
        progress = done.progress
        assert (progress.problems_done, progress.problems_solved, progress.wasted_tokens) == (PROBLEMS, PROBLEMS, PROBLEMS)
        assert (progress.steps, progress.tokens) == (PROBLEMS, 2 * PROBLEMS)
        history = (await Jobs(database).history(job.job_id, 0)).events
        assert [event.cursor for event in history] == list(range(1, len(history) + 1))
        assert [event.state for event in history][:-1] == [job_pb2.JOB_STATE_RUNNING] * (len(history) - 1)
        assert history[-1].state == job_pb2.JOB_STATE_DONE
        counted = [event.progress.problems_done for event in history]
        assert counted == sorted(counted)
    assert await count(database, "results") == len(made) * PROBLEMS


async def test_a_job_that_is_cancelled_while_many_commit(database: Database) -> None:
    jobs = Jobs(database)
    job = await running_job(database, PROBLEMS)

    async def cancel_meanwhile() -> job_pb2.Job:
        while (await jobs.get(job.job_id)).progress.problems_done < PROBLEMS // 4:
            pass
        return await jobs.cancel(job.job_id)

    cancelled, _ = await asyncio.gather(cancel_meanwhile(), work_at_once(database, [job], 1))
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    after = await jobs.get(job.job_id)
    assert after.progress.problems_done == cancelled.progress.problems_done == await count(database, "results") < PROBLEMS
    assert after.progress.steps == PROBLEMS, "what was in flight is paid for"
    history = (await jobs.history(job.job_id, 0)).events
    assert [event.cursor for event in history] == list(range(1, len(history) + 1))
    assert [event.state for event in history].index(job_pb2.JOB_STATE_CANCELLED) == len(history) - 1
