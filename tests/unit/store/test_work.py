"""Work as a shard knows it: claims, fencing, commits that count once, journals."""

import pytest

from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.uploads import Uploads
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    FILLED,
    SPEC,
    Step,
    all_slots,
    chunk,
    commit,
    contents,
    count,
    delta,
    node_ids,
    open_job,
    result,
    rows,
    running_job,
    tree_id,
)


@pytest.fixture
def work(database: Database) -> Work:
    return Work(database)


async def job_of(work: Work, job: job_pb2.Job) -> job_pb2.Job:
    return await Jobs(work.database).get(job.job_id)


async def test_only_running_jobs_are_open_the_oldest_first(work: Work) -> None:
    uploads, jobs = Uploads(work.database), Jobs(work.database)
    await uploads.create("uploading", SPEC, FILLED, chunk(0, "p0"), "a")
    running = [await running_job(work.database, 3, f"running {index}") for index in range(2)]
    cancelled = await running_job(work.database, 1, "cancelled")
    await jobs.cancel(cancelled.job_id)
    found = await work.open_jobs()
    assert [job.job_id for job in found] == [job.job_id for job in running]
    assert (found[0].spec, found[0].problems_total) == (FILLED, 3)
    assert found[0].started_ms == running[0].start_time.ToMilliseconds()


async def test_waiting_leaves_out_what_has_a_result(work: Work) -> None:
    job = await running_job(work.database, 6)
    claim = await all_slots(work)
    await work.commit(claim, commit(1, delta(job, result(job, 1), result(job, 4))), {})
    opened = await open_job(work)
    assert [each.index for each in await work.waiting(opened, claim.slots, -1, 10)] == [0, 2, 3, 5]
    assert [each.index for each in await work.waiting(opened, claim.slots, -1, 3)] == [0, 2, 3]
    assert [each.index for each in await work.waiting(opened, claim.slots, 2, 10)] == [3, 5]
    assert await work.waiting(opened, claim.slots, 5, 10) == []
    assert await work.waiting(opened, [], -1, 10) == []


async def test_counters_add_up_and_the_last_result_ends_the_job(work: Work) -> None:
    job, other = await running_job(work.database, 4), await running_job(work.database, 1, "other")
    claim = await all_slots(work)
    wrong = result(job, 1, verdict=job_pb2.VERDICT_WRONG, outcome=job_pb2.OUTCOME_BUDGET)
    failed = result(job, 2, verdict=0, outcome=job_pb2.OUTCOME_FAILED, steps=[])
    await work.commit(claim, commit(1, delta(job, steps=10, tokens=100)), {})
    await work.commit(claim, commit(2, delta(job, result(job, 0), wrong, steps=1, tokens=7), delta(other)), {})
    await work.commit(claim, commit(3, delta(job, failed, steps=0, tokens=0)), {})
    running = await job_of(work, job)
    assert running.state == job_pb2.JOB_STATE_RUNNING
    assert not running.HasField("finish_time")
    await work.commit(claim, commit(4, delta(job, result(job, 3), steps=2, tokens=1)), {})
    done = await job_of(work, job)
    assert done.state == job_pb2.JOB_STATE_DONE
    assert done.HasField("finish_time")
    assert done.progress == job_pb2.Progress(
        problems_total=4, problems_done=4, problems_solved=2, problems_failed=1, steps=13, tokens=108
    )
    history = await Jobs(work.database).history(job.job_id, 0)
    assert [event.progress.problems_done for event in history.events] == [0, 0, 2, 3, 4]
    assert [event.state for event in history.events] == [job_pb2.JOB_STATE_RUNNING] * 4 + [job_pb2.JOB_STATE_DONE]
    assert history.events[-1].progress == done.progress
    assert (await job_of(work, other)).progress == job_pb2.Progress(problems_total=1, steps=1, tokens=5)


async def test_tokens_that_were_wasted_are_counted_once_a_problem_is_done(work: Work) -> None:
    job, claim = await running_job(work.database, 3), await all_slots(work)
    await work.commit(claim, commit(1, delta(job, result(job, 0, wasted_tokens=4), result(job, 1, wasted_tokens=3))), {})
    again = result(job, 1, wasted_tokens=100)  # the first result of a problem counts
    await work.commit(claim, commit(2, delta(job, again, result(job, 2, wasted_tokens=0))), {})
    assert (await job_of(work, job)).progress.wasted_tokens == 7
    found, _ = await Jobs(work.database).results(job.job_id, 10, -1)
    assert sorted((each.problem_index, each.wasted_tokens) for each in found) == [(0, 4), (1, 3), (2, 0)]
    history = await Jobs(work.database).history(job.job_id, 0)
    assert [event.progress.wasted_tokens for event in history.events][-2:] == [7, 7]


async def test_a_commit_that_is_written_again_changes_nothing(work: Work) -> None:
    job = await running_job(work.database)
    claim, first = await all_slots(work), dict[int, int]()
    written = commit(1, delta(job, result(job, 0)), nodes=rows(Step(tree_id(job, 0), 2)))
    segment = await work.commit(claim, written, first)
    before = await contents(work.database)
    assert await work.commit(claim, written, first) == segment
    assert await contents(work.database) == before
    assert first == {tree_id(job, 0): segment}


async def test_a_tree_is_whole_though_the_answer_to_its_first_commit_was_lost(work: Work) -> None:
    job = await running_job(work.database, 1)
    claim, tree = await all_slots(work), tree_id(job, 0)
    written = commit(1, delta(job), nodes=rows(Step(tree, 2)))
    await work.commit(claim, written, {})  # what it has learnt of first segments is lost with the answer
    first: dict[int, int] = {}
    await work.commit(claim, written, first)
    await work.commit(claim, commit(2, delta(job, result(job, 0)), nodes=rows(Step(tree, 3, 2, depth=2))), first)
    assert node_ids((await Jobs(work.database).tree(job.job_id, 0)).nodes) == [2, 3]


async def test_first_segments_are_those_of_durable_commits(work: Work) -> None:
    job = await running_job(work.database, 2)
    claim, first, tree = await all_slots(work), dict[int, int](), tree_id(job, 0)
    broken = commit(1, delta(job, result(job, 0, step_count=-1)), nodes=rows(Step(tree, 2)))
    with pytest.raises(ValueError, match=r"(?i)out of range"):
        await work.commit(claim, broken, first)
    assert (first, await count(work.database, "segments")) == ({}, 0)


async def test_the_first_result_of_a_problem_counts(work: Work) -> None:
    job, claim = await running_job(work.database), await all_slots(work)
    await work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    again = result(job, 0, steps=["another"], verdict=job_pb2.VERDICT_WRONG)
    await work.commit(claim, commit(2, delta(job, again)), {})
    ((found,), _) = await Jobs(work.database).results(job.job_id, 10, -1)
    assert found.answer == "two"
    progress = (await job_of(work, job)).progress
    assert (progress.problems_done, progress.problems_solved, progress.steps) == (1, 1, 2)


async def test_results_of_a_cancelled_job_are_dropped_and_costs_are_counted(work: Work) -> None:
    job, claim, jobs = await running_job(work.database), await all_slots(work), Jobs(work.database)
    await work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    await jobs.cancel(job.job_id)
    await work.commit(claim, commit(2, delta(job, result(job, 1), steps=3, tokens=9)), {})
    cancelled = await job_of(work, job)
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    assert (cancelled.progress.problems_done, cancelled.progress.tokens) == (1, 14)
    assert [each.problem_index for each in (await jobs.results(job.job_id, 10, -1))[0]] == [0]
    history = await jobs.history(job.job_id, 0)
    assert history.events[-1].state == job_pb2.JOB_STATE_CANCELLED
    assert history.events[-1].cursor == history.cursor == 3


async def test_the_history_of_a_job_that_is_done_has_ended(work: Work) -> None:
    job, claim, jobs = await running_job(work.database, 1), await all_slots(work), Jobs(work.database)
    await work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    await work.commit(claim, commit(2, delta(job, steps=1, tokens=2)), {})  # was in flight
    assert (await job_of(work, job)).progress.tokens == 7
    history = await jobs.history(job.job_id, 0)
    assert [event.state for event in history.events] == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_DONE]


async def test_what_is_of_a_job_that_is_gone_is_dropped(work: Work) -> None:
    job, claim = await running_job(work.database), await all_slots(work)
    gone = job_pb2.Job(job_id="gone")
    await work.commit(claim, commit(1, delta(gone, result(gone, 0)), delta(job, steps=2)), {})
    assert (await job_of(work, job)).progress.steps == 2
    assert await count(work.database, "results") == 0


async def test_a_commit_of_many_results(work: Work) -> None:
    job, claim = await running_job(work.database, 3_000), await all_slots(work)
    await work.commit(claim, commit(1, delta(job, *(result(job, index) for index in range(3_000)))), {})
    assert (await job_of(work, job)).state == job_pb2.JOB_STATE_DONE
