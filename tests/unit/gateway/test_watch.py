"""WatchJob over real gRPC, with commits as a shard makes them."""

import asyncio
import contextlib
from typing import Any

import grpc
import pytest
from sqlalchemy import text

from ramify.store import wakeup
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from tests.postgres import Postgres
from tests.unit.gateway.system import LIMITS, PUZZLES, System, failure, first, running

RUNNING, DONE, CANCELLED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED


def watch(system: System, job_id: str, cursor: int = 0) -> Any:
    return system.stub.WatchJob(pb.WatchJobRequest(job_id=job_id, cursor=cursor))


async def rest(call: Any) -> list[tuple[int, int, int]]:
    """Cursor, state and results of each event up to the end."""
    events = []
    while isinstance(response := await call.read(), pb.WatchJobResponse):
        events.append(seen(response))
    return events


def seen(response: pb.WatchJobResponse) -> tuple[int, int, int]:
    return response.event.cursor, response.event.state, response.event.progress.problems_done


async def test_the_whole_history_live_to_the_end(system: System) -> None:
    job = await system.running_job()
    call = watch(system, job.job_id)
    assert seen(await call.read()) == (1, RUNNING, 0)
    await system.finish(job, 1)
    assert seen(await call.read()) == (2, RUNNING, 1)
    await system.finish(job)
    assert seen(await call.read()) == (3, RUNNING, 1)
    await system.finish(job, 0, 2)
    assert seen(await call.read()) == (4, DONE, 3)
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("cursor", range(5))
async def test_from_any_cursor_of_a_job_that_has_ended(system: System, cursor: int) -> None:
    job = await system.running_job()
    await system.finish(job, 0)
    await system.finish(job, 1)
    await system.finish(job, 2)
    history = [(1, RUNNING, 0), (2, RUNNING, 1), (3, RUNNING, 2), (4, DONE, 3)]
    assert await rest(watch(system, job.job_id, cursor)) == history[cursor:]


async def test_from_the_last_cursor_of_a_job_that_runs(system: System) -> None:
    job = await system.running_job()
    await system.finish(job, 0)
    call = watch(system, job.job_id, 2)
    read = asyncio.create_task(call.read())
    await system.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))
    assert not read.done()
    await system.jobs.cancel(job.job_id)
    assert seen(await read) == (3, CANCELLED, 1)
    assert await call.read() is grpc.aio.EOF


async def test_a_watch_begins_with_the_upload(system: System) -> None:
    upload = system.upload()
    job = (await upload.send(first(some=PUZZLES[:1]))).job
    call = watch(system, job.job_id)
    await upload.send(pb.CreateJobRequest(last=True))
    assert seen(await call.read()) == (1, RUNNING, 0)
    await system.jobs.cancel(job.job_id)
    assert await rest(call) == [(2, CANCELLED, 0)]


async def test_a_long_history_is_whole(system: System) -> None:
    job = await system.running_job()
    for _ in range(20):
        await system.finish(job)
    call = watch(system, job.job_id)
    cursors = [seen(await call.read())[0] for _ in range(21)]
    await system.finish(job, 0, 1, 2)
    assert [*cursors, *(cursor for cursor, _, _ in await rest(call))] == list(range(1, 23))


async def test_a_job_that_is_unknown_or_undone(system: System) -> None:
    code, message = await failure(watch(system, "x").read())
    assert code is grpc.StatusCode.NOT_FOUND
    assert "no job 'x'" in message
    upload = system.upload()
    job = (await upload.send(first(some=PUZZLES[:1]))).job
    call = watch(system, job.job_id)
    await failure(upload.send(pb.CreateJobRequest(offset=7, problems=PUZZLES)))
    code, _ = await failure(call.read())
    assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("cursor", [2, 2**64 - 1])
async def test_a_cursor_that_nobody_can_have_seen(system: System, cursor: int) -> None:
    job = await system.running_job()
    code, message = await failure(watch(system, job.job_id, cursor).read())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"cursor is {cursor}, but the history of job {job.job_id} ends at 1" in message


async def test_more_watches_than_the_gateway_bears_and_one_that_leaves(system: System, caplog: pytest.LogCaptureFixture) -> None:
    job = await system.running_job()
    calls = [watch(system, job.job_id) for _ in range(3)]
    for call in calls:
        await call.read()
    code, message = await failure(watch(system, job.job_id).read())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "holds 3 open watches, which is its bound: try again later" in message
    calls[0].cancel()
    while True:  # until the gateway has heard of it
        call = watch(system, job.job_id)
        with contextlib.suppress(grpc.aio.AioRpcError):
            assert seen(await call.read()) == (1, RUNNING, 0)
            break
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not caplog.records, "to leave is no error"


async def test_many_watch_many_jobs(system: System) -> None:
    jobs = [await system.running_job(f"request {index}") for index in range(3)]
    calls = [watch(system, job.job_id) for job in jobs]
    for call in calls:
        await call.read()
    await system.finish(jobs[1], 0)
    assert seen(await calls[1].read()) == (2, RUNNING, 1)
    for job in jobs:
        await system.jobs.cancel(job.job_id)
    assert [await rest(call) for call in calls] == [[(2, CANCELLED, 0)], [(3, CANCELLED, 1)], [(2, CANCELLED, 0)]]


async def test_a_gateway_that_stops_ends_watches(system: System) -> None:
    job = await system.running_job()
    call = watch(system, job.job_id)
    await call.read()
    await system.gateway.stop(60)
    code, message = await failure(call.read())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "stopping: watch again with the last cursor that you saw" in message


async def test_a_store_that_fails_ends_watches(system: System) -> None:
    job = await system.running_job()
    call = watch(system, job.job_id)
    await call.read()
    async with system.database.write() as connection:
        await connection.execute(text("ALTER TABLE jobs RENAME TO gone"))
    code, message = await failure(call.read())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the store does not answer" in message


async def hears(system: System) -> None:
    """Until the gateway is told of what is committed."""
    listens = text("SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN ramify_events' AND state = 'idle'")
    while True:
        async with system.database.read() as connection:
            if await connection.scalar(listens):
                return


async def test_a_watch_is_woken_by_what_is_committed(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakeup, "FALLBACK_S", 3600)  # nothing else wakes it
    async with running(postgres.url, LIMITS) as system:
        await system.jobs.put_models(system.MODELS)
        job = await system.running_job()
        call = watch(system, job.job_id)
        await call.read()
        await hears(system)
        for _ in range(20):
            await system.finish(job)
            await call.read()
        await system.jobs.cancel(job.job_id)
        assert await rest(call) == [(22, CANCELLED, 0)]


async def test_a_watch_over_a_restart_of_the_server_is_whole(postgres: Postgres) -> None:
    async with running(postgres.url, LIMITS) as system:
        await system.jobs.put_models(system.MODELS)
        job = await system.running_job()
        call = watch(system, job.job_id)
        await call.read()
        await hears(system)
        await system.finish(job, 0)
        assert seen(await call.read()) == (2, RUNNING, 1)
        await asyncio.to_thread(postgres.stop, "immediate")
        code, message = await failure(call.read())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "the store's database does not answer: try again" in message
        code, _ = await failure(watch(system, job.job_id, 2).read())
        assert code is grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(postgres.start)
        call = watch(system, job.job_id, 2)
        await system.finish(job, 1)
        assert seen(await call.read()) == (3, RUNNING, 2)
        await system.finish(job, 2)
        assert await rest(call) == [(4, DONE, 3)]
