"""Uploads: safe to repeat, whole or not at all, and undone only by whoever may."""

import asyncio

import pytest

from ramify.store.database import Database
from ramify.store.errors import Conflict, JobNotFound, UploadEnded, UploadError
from ramify.store.jobs import Jobs
from ramify.store.schema import SLOTS
from ramify.store.submissions import KEPT_MS, Chunk, NewProblem
from ramify.store.uploads import Uploads
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import EMPTY, FILLED, LAST, SPEC, TTL_MS, chunk, contents, count, open_job, problem

OTHER_SPEC = job_pb2.JobSpec(name="other")


@pytest.fixture
def uploads(database: Database) -> Uploads:
    return Uploads(database)


async def test_an_upload_in_chunks(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, EMPTY, "a")
    assert (job.request_id, job.spec, job.state) == ("request", FILLED, job_pb2.JOB_STATE_UPLOADING)
    assert job.HasField("create_time")
    assert not job.HasField("start_time")
    job = await uploads.append(job.job_id, chunk(0, "p0", "p1"), "a")
    assert (job.progress.problems_total, job.state) == (2, job_pb2.JOB_STATE_UPLOADING)
    job = await uploads.append(job.job_id, chunk(2, "p2", last=True), "a")
    assert (job.progress.problems_total, job.state) == (3, job_pb2.JOB_STATE_RUNNING)
    assert job.HasField("start_time")
    assert await Jobs(uploads.database).get(job.job_id) == job
    work = Work(uploads.database)
    waiting = await work.waiting(await open_job(work), range(SLOTS), -1, 10)
    assert [(each.index, each.prompt, each.reference) for each in waiting] == [
        (index, f"prompt of p{index}", f"answer to p{index}") for index in range(3)
    ]


@pytest.mark.parametrize("first", [EMPTY, chunk(0, "p0"), chunk(0, "p0", last=True)])
async def test_a_request_makes_one_job(uploads: Uploads, first: Chunk) -> None:
    assert await uploads.find("request", SPEC) is None
    job = await uploads.create("request", SPEC, FILLED, first, "a")
    before = await contents(uploads.database, ["problems", "events"])
    again = await uploads.create("request", SPEC, job_pb2.JobSpec(name="defaults of another day"), first, "b")
    assert again == job == await uploads.find("request", SPEC)
    assert await contents(uploads.database, ["problems", "events"]) == before
    assert (await uploads.create("request 2", SPEC, FILLED, first, "a")).job_id != job.job_id


async def test_a_request_with_another_spec_conflicts(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, EMPTY, "a")
    with pytest.raises(Conflict, match=f"'request' was used for job {job.job_id} with another spec"):
        await uploads.find("request", OTHER_SPEC)
    with pytest.raises(Conflict, match="with another spec"):
        await uploads.create("request", OTHER_SPEC, FILLED, chunk(0, "p0"), "b")
    assert (await Jobs(uploads.database).get(job.job_id)).progress.problems_total == 0


async def test_one_request_at_once_from_many_calls_makes_one_job(uploads: Uploads) -> None:
    made = await asyncio.gather(
        *(uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", last=True), f"call {index}") for index in range(8))
    )
    assert len({job.job_id for job in made}) == 1
    assert await count(uploads.database, "problems") == 2


async def test_problems_that_are_sent_again(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", "p2"), "a")
    assert (await uploads.append(job.job_id, chunk(0, "p0", "p1"), "b")).progress.problems_total == 3
    assert (await uploads.append(job.job_id, chunk(1, "p1", "p2", "p3", "p4"), "b")).progress.problems_total == 5
    done = await uploads.append(job.job_id, chunk(3, "p3", "p4", last=True), "b")
    # The answer was lost: all of it once more.
    again = await uploads.append(job.job_id, chunk(0, "p0", "p1", "p2"), "c")
    assert again == done == await uploads.append(job.job_id, chunk(3, "p3", "p4", last=True), "c")
    assert again == await uploads.append(job.job_id, LAST, "c")
    assert await count(uploads.database, "problems") == 5
    assert await count(uploads.database, "events") == 1


@pytest.mark.parametrize(
    "other",
    [
        NewProblem(job_pb2.Problem(text="q1", reference="answer to p1"), ""),
        NewProblem(job_pb2.Problem(text="p1", reference="another"), ""),
        NewProblem(job_pb2.Problem(text="p1", reference="answer to p1", id="named"), ""),
    ],
)
@pytest.mark.parametrize("last", [False, True])
async def test_another_problem_at_a_place_conflicts(uploads: Uploads, other: NewProblem, last: bool) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", last=last), "a")
    before = await contents(uploads.database)
    with pytest.raises(Conflict, match=f"problem 1 of job {job.job_id} was uploaded before with another content"):
        await uploads.append(job.job_id, Chunk(0, [problem("p0"), other, problem("p2")], False), "b")
    assert await contents(uploads.database) == before


async def test_a_started_job_takes_no_more_and_no_fewer(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", last=True), "a")
    with pytest.raises(Conflict, match="complete with 2 problems"):
        await uploads.append(job.job_id, chunk(1, "p1", "p2"), "a")
    with pytest.raises(Conflict, match=r"ends after problem 0, but job .* has 2 problems"):
        await uploads.append(job.job_id, chunk(0, "p0", last=True), "a")


async def test_an_upload_that_ends_before_what_is_there_conflicts(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", "p2"), "a")
    with pytest.raises(Conflict, match=r"ends after problem 1, but job .* has 3 problems"):
        await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", last=True), "b")
    assert (await Jobs(uploads.database).get(job.job_id)).state == job_pb2.JOB_STATE_UPLOADING


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (chunk(2, "p2"), "starts at problem 2, but only 1 are there"),
        (chunk(2**64 - 1, "p2"), "starts at problem 18446744073709551615, but only 1 are there"),
        (Chunk(1, [problem("p1", "x"), problem("p2", "x")], True), "two problems have the id 'x'"),
        (Chunk(1, [problem("p1", "first")], True), "two problems have the id 'first'"),
        (Chunk(1, [*(problem(f"p{i}", f"n{i}") for i in range(1500)), problem("p", "first")], True), "have the id 'first'"),
    ],
)
async def test_a_chunk_that_does_not_fit_changes_nothing(uploads: Uploads, bad: Chunk, says: str) -> None:
    job = await uploads.create("request", SPEC, FILLED, Chunk(0, [problem("p0", "first")], False), "a")
    before = await contents(uploads.database)
    with pytest.raises(UploadError, match=says):
        await uploads.append(job.job_id, bad, "a")
    assert await contents(uploads.database) == before


@pytest.mark.parametrize("bad", [LAST, chunk(1, "p1"), Chunk(0, [problem("p0", "x"), problem("p1", "x")], False)])
async def test_a_first_chunk_that_does_not_fit_makes_no_job(uploads: Uploads, bad: Chunk) -> None:
    with pytest.raises(UploadError):
        await uploads.create("request", SPEC, FILLED, bad, "a")
    assert await count(uploads.database, "jobs") == 0


async def test_an_empty_last_chunk_starts_the_job_whatever_its_offset(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a")
    assert (await uploads.append(job.job_id, Chunk(9, [], True), "a")).state == job_pb2.JOB_STATE_RUNNING


async def test_ids_are_unique_within_a_job_only(uploads: Uploads) -> None:
    named = Chunk(0, [problem("p0", "x"), problem("p1"), problem("p2")], True)
    await uploads.create("request", SPEC, FILLED, named, "a")
    await uploads.create("request 2", SPEC, FILLED, named, "a")
    assert await count(uploads.database, "problems") == 6


async def test_ten_thousand_problems(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, EMPTY, "a")
    for start in range(0, 10_000, 2_500):
        problems = [problem(f"p{index}", f"id{index}") for index in range(start, start + 2_500)]
        job = await uploads.append(job.job_id, Chunk(start, problems, start == 7_500), "a")
    assert (job.progress.problems_total, job.state) == (10_000, job_pb2.JOB_STATE_RUNNING)
    work = Work(uploads.database)
    claims = [await work.claim(f"shard:{index}", range(index, SLOTS, 2), TTL_MS) for index in range(2)]
    held = [await work.waiting(await open_job(work), claim.slots, -1, 20_000) for claim in claims]
    assert sorted(each.index for shard in held for each in shard) == list(range(10_000))
    assert all(len(shard) > 4_000 for shard in held), "the slots are used evenly"


async def test_discard_undoes_an_upload_of_ones_own(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a")
    await uploads.discard(job.job_id, "a")
    await uploads.discard(job.job_id, "a")
    assert await count(uploads.database, "jobs") == await count(uploads.database, "problems") == 0
    with pytest.raises(JobNotFound):
        await Jobs(uploads.database).get(job.job_id)
    with pytest.raises(UploadEnded, match=f"upload of job {job.job_id} was undone by another call .*: start again"):
        await uploads.append(job.job_id, chunk(1, "p1"), "b")
    assert (await uploads.create("request", SPEC, FILLED, EMPTY, "b")).state == job_pb2.JOB_STATE_UPLOADING


async def test_discard_leaves_what_others_upload(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a")
    await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "b")  # nothing new
    await uploads.discard(job.job_id, "b")
    assert await count(uploads.database, "jobs") == 1
    await uploads.append(job.job_id, chunk(0, "p0", "p1"), "b")  # now the upload is b's
    await uploads.discard(job.job_id, "a")
    assert await count(uploads.database, "jobs") == 1
    await uploads.discard(job.job_id, "b")
    assert await count(uploads.database, "jobs") == 0


async def test_discard_leaves_jobs_that_have_started_or_ended(uploads: Uploads) -> None:
    running = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", last=True), "a")
    cancelled = await uploads.create("request 2", SPEC, FILLED, chunk(0, "p0"), "a")
    await Jobs(uploads.database).cancel(cancelled.job_id)
    for job in (running, cancelled):
        await uploads.discard(job.job_id, "a")
    assert await count(uploads.database, "jobs") == 2


async def test_an_upload_that_is_cancelled_takes_no_more(uploads: Uploads) -> None:
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a")
    cancelled = await Jobs(uploads.database).cancel(job.job_id)
    with pytest.raises(UploadEnded, match="was cancelled"):
        await uploads.append(job.job_id, chunk(1, "p1", last=True), "a")
    assert await uploads.append(job.job_id, chunk(0, "p0", last=True), "a") == cancelled


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


async def test_uploads_that_nobody_goes_on_with_expire(database: Database) -> None:
    clock = Clock()
    uploads, jobs = Uploads(database, clock), Jobs(database)
    stale = [await uploads.create(f"stale {index}", SPEC, FILLED, chunk(0, "p0"), "a") for index in range(2)]
    touched = await uploads.create("touched", SPEC, FILLED, chunk(0, "p0"), "a")
    started = await uploads.create("started", SPEC, FILLED, chunk(0, "p0", last=True), "a")
    cancelled = await uploads.create("cancelled", SPEC, FILLED, chunk(0, "p0"), "a")
    await jobs.cancel(cancelled.job_id)
    clock.now_ms += KEPT_MS // 2
    await uploads.append(touched.job_id, chunk(0, "p0"), "a")  # brings nothing new, and is a sign of life all the same
    clock.now_ms += KEPT_MS // 2
    await uploads.create("at the bound", SPEC, FILLED, EMPTY, "a")
    assert await count(database, "jobs") == 6
    clock.now_ms += 1
    for index in range(3):  # one for each new job
        await uploads.create(f"new {index}", SPEC, FILLED, EMPTY, "a")
    left = {job.job_id for job in (await jobs.page(100, None, 0))[0]}
    assert not left & {job.job_id for job in stale}
    assert left >= {touched.job_id, started.job_id, cancelled.job_id}
    assert len(left) == 7


async def test_a_repeated_request_expires_nothing(database: Database) -> None:
    clock = Clock()
    uploads = Uploads(database, clock)
    job = await uploads.create("request", SPEC, FILLED, chunk(0, "p0"), "a")
    clock.now_ms += 2 * KEPT_MS
    assert (await uploads.create("request", SPEC, FILLED, EMPTY, "a")).job_id == job.job_id
