"""Writers that meet: whatever the order in which their statements run, what is there in the end is one after the other's."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import insert, make_url, text

from ramify.store.audit import Actor
from ramify.store.clock import now_ms
from ramify.store.database import POOL_OVERFLOW, POOL_SIZE, TRIES_MAX, Database, to_its_end
from ramify.store.errors import Contention, JobNotFound, QuotaExceeded, StoreError, UploadEnded
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.rows import job_row
from ramify.store.schema import jobs as jobs_table
from ramify.store.submissions import KEPT_MS
from ramify.store.tenants import Tenant, Tenants, hold
from ramify.store.turns import TURNS_A_TENANT
from ramify.store.uploads import Uploads
from ramify.v1 import job_pb2
from tests.unit.store.helpers import EMPTY, FILLED, SPEC, chunk, contents, count, running_job

PATIENCE_S = 60  # how long a test waits for what must come
POLL_S = 0.01
CALLS = 8
ROUNDS = 10

CREATOR = """
import asyncio, json, sys
from ramify.store.database import Database
from ramify.store.uploads import Uploads
from tests.unit.store.helpers import FILLED, SPEC, chunk

async def main(url, rounds):
    database = Database(url)
    sys.stdin.readline()
    uploads, some = Uploads(database), chunk(0, "p0", "p1", last=True)
    made = [uploads.create(f"request {number}", SPEC, FILLED, some, "call") for number in range(rounds)]
    print(json.dumps([job.job_id for job in await asyncio.gather(*made)]))
    await database.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture
async def concurrent(postgres_store: str) -> AsyncIterator[Database]:
    """A database whose writers run at once."""
    database = Database(postgres_store)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
async def patient(postgres_store: str) -> AsyncIterator[Database]:
    """One like it, where whoever stands still keeps its locks for as long as a test lasts, and who waits for them goes on to."""
    bounds = f"-cidle_in_transaction_session_timeout={PATIENCE_S}s -clock_timeout={PATIENCE_S}s"
    url = make_url(postgres_store).update_query_dict({"options": bounds})
    database = Database(url.render_as_string(hide_password=False))
    await database.migrate()
    yield database
    await database.close()


async def somebody_waits(database: Database) -> None:
    """Until a transaction waits for another one's lock; on SQLite they all do."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    while database.tells:
        async with database.read() as connection:
            if await connection.scalar(waiting):
                return
        await asyncio.sleep(POLL_S)


async def cursors(database: Database, job_id: str) -> list[int]:
    return [event.cursor for event in (await Jobs(database).history(job_id, 0)).events]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_request_that_another_call_is_just_making(database: Database, fails: bool) -> None:
    values = {
        "job_id": "theirs",
        "request_id": "request",
        "spec": FILLED.SerializeToString(deterministic=True),
        "spec_asked": SPEC.SerializeToString(deterministic=True),
        "state": job_pb2.JOB_STATE_UPLOADING,
        "uploader": "they",
        "touched_ms": now_ms(),
        "created_ms": now_ms(),
    }

    inserted = asyncio.Event()

    async def us() -> job_pb2.Job:
        await inserted.wait()
        return await Uploads(database).create("request", SPEC, FILLED, chunk(0, "p0"), "us")

    ours = asyncio.create_task(us())
    with contextlib.suppress(ZeroDivisionError):
        async with database.write() as connection:
            await connection.execute(insert(jobs_table).values(values))
            inserted.set()
            await somebody_waits(database)
            assert not ours.done()
            if fails:
                raise ZeroDivisionError
    job = await ours
    assert (job.job_id == "theirs") is not fails
    assert job.progress.problems_total == await count(database, "jobs") == 1


async def test_processes_that_make_the_same_jobs_at_once(database: Database) -> None:
    command = (sys.executable, "-c", CREATOR, database.url, str(ROUNDS))
    processes = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(2)]
    (first, _), (second, _) = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert json.loads(first) == json.loads(second)
    assert len(set(json.loads(first))) == await count(database, "jobs") == ROUNDS
    assert await count(database, "problems") == 2 * ROUNDS
    assert await count(database, "events") == ROUNDS


async def test_calls_that_go_on_with_one_upload_at_once(database: Database) -> None:
    uploads = Uploads(database)
    job = await uploads.create("request", SPEC, FILLED, EMPTY, "a")
    names = [f"p{index}" for index in range(20)]
    parts = [(chunk(start, *names[start : start + 4], last=start == 16), start) for start in range(0, 20, 4)]
    for part, start in parts:
        answers = await asyncio.gather(*(uploads.append(job.job_id, part, f"call {call}") for call in range(CALLS)))
        assert {answer.progress.problems_total for answer in answers} == {start + 4}
    assert await count(database, "problems") == 20
    assert await cursors(database, job.job_id) == [1]


async def test_cancelled_by_many_at_once(database: Database) -> None:
    job = await running_job(database)
    ended = await asyncio.gather(*(Jobs(database).cancel(job.job_id) for _ in range(CALLS)))
    assert all(each == ended[0] for each in ended)
    history = await Jobs(database).history(job.job_id, 0)
    assert [event.state for event in history.events] == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED]


async def test_started_and_cancelled_and_undone_at_once(database: Database) -> None:
    uploads, jobs = Uploads(database), Jobs(database)
    running, cancelled = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED
    seen = set()
    for number in range(ROUNDS):
        job = await uploads.create(f"request {number}", SPEC, FILLED, chunk(0, "p0"), "a")
        calls = [
            uploads.append(job.job_id, chunk(1, "p1", last=True), "a"),
            jobs.cancel(job.job_id),
            uploads.discard(job.job_id, "a"),
        ]
        order = calls[number % 3 :] + calls[: number % 3]
        outcomes = await asyncio.gather(*order, return_exceptions=True)
        assert all(isinstance(error, StoreError) for error in outcomes if isinstance(error, BaseException))
        try:
            found = await jobs.get(job.job_id)
        except StoreError:
            seen.add(0)
            continue
        seen.add(found.state)
        states = [event.state for event in (await jobs.history(job.job_id, 0)).events]
        assert states in ([cancelled], [running, cancelled])
        assert found.progress.problems_total == len(states)
    assert len(seen) > 1, "the calls never met"


async def test_models_are_those_of_one_call(database: Database) -> None:
    sets = [[ModelRow("generator", f"model {name}", "1", "", "") for name in (call, call + 1, 0)] for call in range(1, CALLS)]
    for _ in range(ROUNDS):
        await asyncio.gather(*(Jobs(database).put_models(some) for some in sets))
        found = await Jobs(database).models()
        assert found in [sorted(some, key=lambda model: model.name) for some in sets]


async def test_uploads_expire_one_by_one_whoever_makes_jobs(database: Database) -> None:
    now = 1_000_000
    uploads = Uploads(database, lambda: now)
    for index in range(CALLS + 2):
        await uploads.create(f"stale {index}", SPEC, FILLED, chunk(0, "p0"), "a")
    now += KEPT_MS + 1
    await asyncio.gather(*(uploads.create(f"new {index}", SPEC, FILLED, EMPTY, "a") for index in range(CALLS)))
    left = [row[4] for row in (await contents(database, ["jobs"]))["jobs"]]
    assert sorted(left) == sorted([*(f"new {index}" for index in range(CALLS)), f"stale {CALLS}", f"stale {CALLS + 1}"])


async def test_an_upload_that_somebody_is_at_does_not_expire(concurrent: Database) -> None:
    now = 1_000_000
    uploads = Uploads(concurrent, lambda: now)
    stale = await uploads.create("stale", SPEC, FILLED, chunk(0, "p0"), "a")
    now += KEPT_MS + 1
    async with concurrent.write() as connection:
        await job_row(connection, stale.job_id, None, lock=True)
        await uploads.create("new", SPEC, FILLED, EMPTY, "a")  # does not wait for it, either
    await uploads.append(stale.job_id, chunk(1, "p1"), "a")


async def test_an_append_that_waits_for_an_undo_is_told(database: Database) -> None:
    uploads = Uploads(database)
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a")
    async with database.write() as connection:
        await connection.execute(jobs_table.delete().where(jobs_table.c.job_id == job.job_id))
        append = asyncio.create_task(uploads.append(job.job_id, chunk(1, "p1"), "b"))
        await somebody_waits(database)
    with pytest.raises(UploadEnded):
        await append


@pytest.mark.parametrize("whole", [True, False])
async def test_two_gateways_can_t_both_give_a_tenant_its_last_job(database: Database, whole: bool) -> None:
    await Tenants(database).put(Tenant("acme", jobs_max=1))
    elsewhere = Database(database.url)
    late = Uploads(elsewhere, by=Actor("acme"))
    async with database.write() as connection:
        await hold(connection, {"acme"}, 0)
        making = asyncio.create_task(late.create("late", SPEC, FILLED, chunk(0, "p0", last=whole), "a"))
        await somebody_waits(database)
        new = {"job_id": "first", "request_id": "first", "tenant": "acme", "state": job_pb2.JOB_STATE_RUNNING, "uploader": "b"}
        body = {"spec": b"", "spec_asked": b"", "touched_ms": 0, "created_ms": 0}
        await connection.execute(jobs_table.insert().values(**new, **body))
    with pytest.raises(QuotaExceeded, match="tenant acme has 1 open jobs"):
        await making
    await elsewhere.close()


def bulk(database: Database, tenant: str, uploads: int) -> list[asyncio.Task[job_pb2.Job]]:
    """Uploads at once of a tenant."""
    by = Uploads(database, by=Actor(tenant))
    return [asyncio.create_task(by.create(f"bulk {number}", SPEC, FILLED, chunk(0, "p0"), "a")) for number in range(uploads)]


async def test_a_tenant_that_waits_has_others_wait_for_nothing(patient: Database) -> None:
    await Tenants(patient).put(Tenant("acme", jobs_max=99))
    acme, other = (Uploads(patient, by=Actor(tenant)) for tenant in ("acme", "other"))
    async with patient.write() as connection:
        await hold(connection, {"acme"}, 0)
        whole = asyncio.create_task(acme.create("whole", SPEC, FILLED, chunk(0, "p0", last=True), "a"))
        uploads = bulk(patient, "acme", POOL_SIZE + POOL_OVERFLOW)
        await somebody_waits(patient)
        submitted = [other.create(name, SPEC, FILLED, chunk(0, "p0", last=True), "a") for name in ("x", "y")]
        for job in (*await asyncio.gather(*submitted), *await asyncio.gather(*bulk(patient, "other", 2))):
            assert (await Jobs(patient).get(job.job_id)).tenant == "other"
        left = uploads.pop()
        left.cancel()
        await asyncio.wait({left})  # it has begun nothing that would have to end
        assert not any(each.done() for each in (whole, *uploads))
    await asyncio.gather(whole, *uploads)
    assert await count(patient, "jobs") == 4 + 1 + len(uploads)


async def test_uploads_of_all_leave_connections_for_who_reads(patient: Database) -> None:
    names = [f"tenant-{number}" for number in range((POOL_SIZE + POOL_OVERFLOW) // TURNS_A_TENANT)]
    for name in names:
        await Tenants(patient).put(Tenant(name))
    elsewhere = Database(patient.url)
    async with elsewhere.write() as connection:
        await hold(connection, names, 0)
        uploads = [upload for name in names for upload in bulk(patient, name, TURNS_A_TENANT)]
        await somebody_waits(patient)
        with pytest.raises(JobNotFound):
            await Jobs(patient).get("nobody's")
    await asyncio.gather(*uploads)
    await elsewhere.close()


class Crossing:
    """Locks two jobs in an order that it is told."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.meet: asyncio.Barrier | None = asyncio.Barrier(2)
        self.tries = 0

    @to_its_end
    async def lock(self, first: str, second: str) -> None:
        self.tries += 1
        async with self.database.write() as connection:
            await job_row(connection, first, None, lock=True)
            if self.meet is not None:
                await self.meet.wait()
                self.meet = None
            await job_row(connection, second, None, lock=True)

    @to_its_end
    async def contend(self) -> None:
        self.tries += 1
        raise Contention("again")


async def test_of_two_that_wait_for_each_other_one_starts_again(concurrent: Database) -> None:
    one, other = [await running_job(concurrent, request_id=name) for name in ("one", "other")]
    crossing = Crossing(concurrent)
    await asyncio.gather(crossing.lock(one.job_id, other.job_id), crossing.lock(other.job_id, one.job_id))
    assert crossing.tries == 3


async def test_it_does_not_start_again_for_ever(database: Database) -> None:
    crossing = Crossing(database)
    with pytest.raises(Contention, match="again"):
        await crossing.contend()
    assert crossing.tries == TRIES_MAX
