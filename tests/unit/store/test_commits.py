"""Commits: on every kind of store they count once, results end problems and jobs, and every one of them is told."""

import pytest

from ramify.scheduler.commands import TreeResult
from ramify.scheduler.slots import SLOTS
from ramify.store.work import Claim
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    TTL_MS,
    Step,
    commit,
    delta,
    node_ids,
    result,
    rows,
    scores,
    snapshot,
    texts,
    tree_id,
)
from tests.unit.store.stores import Store


async def claimed(store: Store, owner: str = "shard:0@a") -> Claim:
    return await store.work.claim(owner, range(SLOTS), TTL_MS)


async def test_only_running_jobs_are_open_the_oldest_first(store: Store) -> None:
    running = [await store.submit(3, f"running {index}") for index in range(2)]
    cancelled = await store.submit(1, "cancelled")
    await store.cancel(cancelled.job_id)
    found = await store.work.open_jobs()
    assert [job.job_id for job in found] == [job.job_id for job in running]
    assert (found[0].spec, found[0].problems_total) == (running[0].spec, 3)
    assert found[0].started_ms == running[0].start_time.ToMilliseconds()


async def test_waiting_leaves_out_what_has_a_result(store: Store) -> None:
    job = await store.submit(6, "request")
    await store.work.commit(await claimed(store), commit(1, delta(job, result(job, 1), result(job, 4))), {})
    (opened,) = await store.work.open_jobs()
    every = range(SLOTS)
    assert [each.index for each in await store.work.waiting(opened, every, -1, 10)] == [0, 2, 3, 5]
    assert [each.index for each in await store.work.waiting(opened, every, -1, 3)] == [0, 2, 3]
    assert [each.index for each in await store.work.waiting(opened, every, 2, 10)] == [3, 5]
    assert await store.work.waiting(opened, every, 5, 10) == []
    assert await store.work.waiting(opened, [], -1, 10) == []
    slot = tree_id(job, 3) % SLOTS
    (found,) = [each for each in await store.work.waiting(opened, [slot], -1, 10) if each.index == 3]
    assert (found.prompt, found.reference) == ("prompt of p3", "answer to p3")


async def test_counters_add_up_and_the_last_result_ends_the_job(store: Store) -> None:
    job, other = await store.submit(4, "request"), await store.submit(1, "other")
    claim = await claimed(store)
    wrong = result(job, 1, verdict=job_pb2.VERDICT_WRONG, outcome=job_pb2.OUTCOME_BUDGET)
    failed = result(job, 2, verdict=0, outcome=job_pb2.OUTCOME_FAILED, steps=[])
    await store.work.commit(claim, commit(1, delta(job, steps=10, tokens=100, retries=3)), {})
    await store.work.commit(claim, commit(2, delta(job, result(job, 0), wrong, steps=1, tokens=7, retries=1), delta(other)), {})
    await store.work.commit(claim, commit(3, delta(job, failed, steps=0, tokens=0)), {})
    running = await store.job(job.job_id)
    assert running.state == job_pb2.JOB_STATE_RUNNING
    assert not running.HasField("finish_time")
    await store.work.commit(claim, commit(4, delta(job, result(job, 3), steps=2, tokens=1)), {})
    done = await store.job(job.job_id)
    assert done.state == job_pb2.JOB_STATE_DONE
    assert done.HasField("finish_time")
    assert done.progress == job_pb2.Progress(
        problems_total=4, problems_done=4, problems_solved=2, problems_failed=1, steps=13, tokens=108, retries=4
    )
    history = await store.history(job.job_id)
    assert [event.progress.problems_done for event in history] == [0, 0, 2, 3, 4]
    assert [event.progress.retries for event in history] == [0, 3, 4, 4, 4]
    assert [event.state for event in history] == [job_pb2.JOB_STATE_RUNNING] * 4 + [job_pb2.JOB_STATE_DONE]
    assert [event.cursor for event in history] == [1, 2, 3, 4, 5]
    assert history[-1].progress == done.progress
    assert (await store.job(other.job_id)).progress == job_pb2.Progress(problems_total=1, steps=1, tokens=5)


async def test_tokens_that_were_wasted_are_counted_once_a_problem_is_done(store: Store) -> None:
    job, claim = await store.submit(3, "request"), await claimed(store)
    first = delta(job, result(job, 0, wasted_tokens=4), result(job, 1, wasted_tokens=3))
    await store.work.commit(claim, commit(1, first), {})
    again = result(job, 1, wasted_tokens=100)  # the first result of a problem counts
    await store.work.commit(claim, commit(2, delta(job, again, result(job, 2, wasted_tokens=0))), {})
    assert (await store.job(job.job_id)).progress.wasted_tokens == 7
    assert [each.wasted_tokens for each in await store.results(job.job_id)] == [4, 3, 0]


async def test_a_result_is_shown_as_it_came(store: Store) -> None:
    job, claim = await store.submit(2, "request"), await claimed(store)
    failed = result(job, 1, outcome=job_pb2.OUTCOME_FAILED, verdict=0, steps=[], score=float("nan"), message="why")
    await store.work.commit(claim, commit(1, delta(job, result(job, 0), failed)), {})
    one, other = await store.results(job.job_id)
    assert one == job_pb2.Result(
        problem_index=0,
        problem=job_pb2.Problem(text="p0", reference="answer to p0"),
        outcome=job_pb2.OUTCOME_ANSWERED,
        answer="two",
        steps=["one", "two"],
        score=0.75,
        verdict=job_pb2.VERDICT_CORRECT,
        step_count=2,
        tokens=10,
        answer_node_id=2,
    )
    assert (other.message, other.HasField("score"), list(other.steps), other.answer) == ("why", False, [], "")


async def test_a_commit_that_is_written_again_changes_nothing(store: Store) -> None:
    job, claim, first = await store.submit(2, "request"), await claimed(store), dict[int, int]()
    written = commit(1, delta(job, result(job, 0)), nodes=rows(Step(tree_id(job, 0), 2)))
    segment = await store.work.commit(claim, written, first)
    before = await store.job(job.job_id), await store.history(job.job_id), await store.results(job.job_id)
    assert await store.work.commit(claim, written, first) == segment
    assert (await store.job(job.job_id), await store.history(job.job_id), await store.results(job.job_id)) == before
    assert node_ids(await store.tree(job.job_id, 0)) == [2]
    assert first == {tree_id(job, 0): segment}


async def test_whoever_has_lost_its_slots_still_learns_that_its_commit_was_durable(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await claimed(store)
    written = commit(1, delta(job), nodes=rows(Step(tree_id(job, 0), 2)))
    segment = await store.work.commit(claim, written, {})
    await claimed(store, "shard:0@b")
    assert await store.work.commit(claim, written, {}) == segment
    assert (await store.job(job.job_id)).progress.steps == 1


async def test_commits_of_two_owners_with_one_sequence_are_two(store: Store) -> None:
    job = await store.submit(1, "request")
    segments = []
    for owner, node in (("shard:0@a", 2), ("shard:0@b", 3)):
        one = commit(1, delta(job), nodes=rows(Step(tree_id(job, 0), node)))
        segments.append(await store.work.commit(await claimed(store, owner), one, {}))
    assert segments[0] < segments[1]
    assert node_ids(await store.tree(job.job_id, 0)) == [2, 3]


async def test_first_segments_are_told_once_a_commit_is_durable(store: Store) -> None:
    job, claim, first = await store.submit(2, "request"), await claimed(store), dict[int, int]()
    one, other = tree_id(job, 0), tree_id(job, 1)
    start = await store.work.commit(claim, commit(1, delta(job), nodes=rows(Step(one, 2))), first)
    then = await store.work.commit(claim, commit(2, delta(job), nodes=rows(Step(one, 3), Step(other, 2))), first)
    assert start < then
    assert first == {one: start, other: then}


async def test_the_first_result_of_a_problem_counts(store: Store) -> None:
    job, claim = await store.submit(2, "request"), await claimed(store)
    await store.work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    again = result(job, 0, steps=["another"], verdict=job_pb2.VERDICT_WRONG)
    await store.work.commit(claim, commit(2, delta(job, again)), {})
    (found,) = await store.results(job.job_id)
    assert found.answer == "two"
    progress = (await store.job(job.job_id)).progress
    assert (progress.problems_done, progress.problems_solved, progress.steps) == (1, 1, 2)


async def test_results_of_a_cancelled_job_are_dropped_and_costs_are_counted(store: Store) -> None:
    job, claim = await store.submit(2, "request"), await claimed(store)
    await store.work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    await store.cancel(job.job_id)
    await store.work.commit(claim, commit(2, delta(job, result(job, 1), steps=3, tokens=9, retries=2)), {})
    cancelled = await store.job(job.job_id)
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    assert (cancelled.progress.problems_done, cancelled.progress.tokens, cancelled.progress.retries) == (1, 14, 2)
    assert [each.problem_index for each in await store.results(job.job_id)] == [0]
    history = await store.history(job.job_id)
    assert [event.state for event in history][-2:] == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED]
    assert history[-1].cursor == 3


async def test_the_history_of_a_job_that_is_done_has_ended(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await claimed(store)
    await store.work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    await store.work.commit(claim, commit(2, delta(job, steps=1, tokens=2)), {})  # was in flight
    assert (await store.job(job.job_id)).progress.tokens == 7
    states = [event.state for event in await store.history(job.job_id)]
    assert states == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_DONE]


async def test_what_is_of_a_job_that_is_gone_is_dropped(store: Store) -> None:
    job, claim = await store.submit(2, "request"), await claimed(store)
    gone = job_pb2.Job(job_id="gone")
    await store.work.commit(claim, commit(1, delta(gone, result(gone, 0)), delta(job, steps=2)), {})
    assert (await store.job(job.job_id)).progress.steps == 2


async def test_a_problem_that_was_lost_again_and_again_is_set_aside(store: Store) -> None:
    job, claim = await store.submit(4, "request"), await claimed(store)
    reason = "lost 5 times: the engine died"

    def failed(index: int, message: str) -> TreeResult:
        return result(job, index, outcome=job_pb2.OUTCOME_FAILED, verdict=0, steps=[], message=message)

    await store.work.commit(claim, commit(1, delta(job, failed(0, "no chain came to an end by itself"))), {})
    await store.work.commit(claim, commit(2, delta(job, failed(1, reason))), {})
    await store.work.commit(claim, commit(3, delta(job, failed(1, reason), failed(2, reason), failed(3, reason))), {})
    history = await store.history(job.job_id)
    assert [(event.notice.kind, event.notice.text) for event in history if event.HasField("notice")] == [
        (job_pb2.NOTICE_KIND_SET_ASIDE, f"problem 1 was set aside: {reason}"),
        (job_pb2.NOTICE_KIND_SET_ASIDE, f"problem 2 was set aside, and 1 more: {reason}"),
    ]
    assert history[-1].state == job_pb2.JOB_STATE_DONE, "the job goes on, and ends"


async def test_a_commit_with_everything_at_once(store: Store) -> None:
    job, claim = await store.submit(1000, "request"), await claimed(store)
    tree, nan = tree_id(job, 0), float("nan")
    slot = tree % SLOTS
    nodes = rows(Step(tree, 2, text=b"", score=nan), Step(tree, 3, 2, depth=2, text="ä".encode()))
    many = [result(job, index) for index in range(1, 1000)]
    one = commit(1, delta(job, *many), nodes=nodes, late=scores((tree, 2, 0.25)), snapshots=[snapshot(slot)], released=(slot,))
    await store.work.commit(claim, one, {})
    found = await store.tree(job.job_id, 0)
    assert (node_ids(found), texts(found), found.score.tolist()) == ([2, 3], [b"", "ä".encode()], [0.25, 0.5])
    assert len(await store.results(job.job_id)) == 999
    assert (await store.work.claim("shard:1@b", range(SLOTS), TTL_MS)).slots == (slot,)


async def test_a_step_that_was_committed_twice_counts_as_it_was_first(store: Store) -> None:
    job = await store.submit(1, "request")
    tree = tree_id(job, 0)
    for owner, text in (("shard:0@a", b"first"), ("shard:0@b", b"second, and longer")):
        nodes = rows(Step(tree, 2, text=text), Step(tree, 3 + len(text), text=b"x"))
        await store.work.commit(await claimed(store, owner), commit(1, delta(job), nodes=nodes), {})
    found = await store.tree(job.job_id, 0)
    assert (node_ids(found), texts(found)) == ([2, 8, 21], [b"first", b"x", b"x"])


async def test_a_step_that_could_not_be_scored_is_an_error(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await claimed(store)
    tree, nan = tree_id(job, 0), float("nan")
    await store.work.commit(claim, commit(1, delta(job), nodes=rows(Step(tree, 2, score=nan), Step(tree, 3, score=nan))), {})
    await store.work.commit(claim, commit(2, delta(job), late=scores((tree, 3, nan))), {})
    found = await store.tree(job.job_id, 0)
    assert found.finish.tolist() == [job_pb2.FINISH_STEP, job_pb2.FINISH_ERROR]


async def test_a_commit_that_can_not_be_written_leaves_nothing(store: Store) -> None:
    job, claim, first = await store.submit(2, "request"), await claimed(store), dict[int, int]()
    broken = commit(1, delta(job, result(job, 0, step_count=-1)), nodes=rows(Step(tree_id(job, 0), 2)))
    with pytest.raises(ValueError, match=r"(?i)out of range"):
        await store.work.commit(claim, broken, first)
    assert first == {}
    assert node_ids(await store.tree(job.job_id, 0)) == []
