"""Jobs as their submitters see them: listings, histories, results, trees, models."""

import asyncio
import itertools

import pytest

from ramify.store import jobs as jobs_module
from ramify.store import looks, reading
from ramify.store.database import Database
from ramify.store.errors import JobNotFound, ProblemNotFound
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.looks import History, Place
from ramify.store.schema import SLOTS
from ramify.store.submissions import Chunk
from ramify.store.uploads import Uploads
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    EMPTY,
    FILLED,
    SPEC,
    TTL_MS,
    Step,
    all_slots,
    chunk,
    commit,
    count,
    delta,
    node_ids,
    problem,
    result,
    rows,
    running_job,
    scores,
    tree_id,
)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


async def test_unknown_jobs(jobs: Jobs) -> None:
    for call in (jobs.get("x"), jobs.cancel("x"), jobs.history("x", 0), jobs.results("x", 10, -1), jobs.tree("x", 0)):
        with pytest.raises(JobNotFound, match="there is no job 'x'; `ramify jobs` lists"):
            await call


@pytest.mark.parametrize("size", [1, 2, 3, 10])
async def test_pages_of_jobs_the_newest_first(jobs: Jobs, size: int) -> None:
    uploads = Uploads(jobs.database)
    made = [(await uploads.create(f"r{index}", SPEC, FILLED, EMPTY, "a")).job_id for index in range(6)]
    await jobs.cancel(made[2])
    for state, wanted in ((0, made[::-1]), (job_pb2.JOB_STATE_UPLOADING, [*made[:2], *made[3:]][::-1])):
        seen, after = [], None
        while True:
            page, following = await jobs.page(size, after, state)
            assert len(page) <= size
            seen += [job.job_id for job in page]
            if following is None:
                break
            after = following
        assert seen == wanted


async def test_cancel_ends_a_job_once(jobs: Jobs) -> None:
    job = await running_job(jobs.database)
    cancelled = await jobs.cancel(job.job_id)
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    assert cancelled.HasField("finish_time")
    assert await jobs.cancel(job.job_id) == cancelled == await jobs.get(job.job_id)
    history = await jobs.history(job.job_id, 0)
    assert [event.state for event in history.events] == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED]
    assert (history.cursor, history.state) == (2, job_pb2.JOB_STATE_CANCELLED)


async def test_cancel_leaves_a_job_that_is_done(jobs: Jobs) -> None:
    job = await running_job(jobs.database, 1)
    work = Work(jobs.database)
    await work.commit(await all_slots(work), commit(1, delta(job, result(job, 0))), {})
    done = await jobs.get(job.job_id)
    assert done.state == job_pb2.JOB_STATE_DONE
    assert await jobs.cancel(job.job_id) == done


async def test_a_history_has_no_gap_and_no_duplicate(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards and a cancel at once; a reader looks on all the while, and another one now and then."""
    monkeypatch.setattr(looks, "EVENTS_A_READ", 3)
    monkeypatch.setattr(looks, "NEAR", 2)
    job = await running_job(jobs.database, 80)
    other = Database(jobs.database.url)
    works = [Work(jobs.database), Work(other)]
    claims = [await work.claim(f"shard:{index}", range(index, SLOTS, 2), TTL_MS) for index, work in enumerate(works)]

    async def write(which: int) -> None:
        mine = [index for index in range(80) if tree_id(job, index) % 2 == which][:10]
        for sequence, index in enumerate(mine):
            await works[which].commit(claims[which], commit(sequence, delta(job, result(job, index))), {})

    async def read() -> list[job_pb2.JobEvent]:
        seen: list[job_pb2.JobEvent] = []
        while True:
            history = await jobs.history(job.job_id, len(seen))
            assert len(history.events) <= 3
            seen += history.events
            assert [event.cursor for event in seen] == list(range(1, len(seen) + 1))
            if history.state == job_pb2.JOB_STATE_CANCELLED and len(seen) == history.cursor:
                return seen

    async def write_and_cancel() -> None:
        await asyncio.gather(write(0), write(1))
        await jobs.cancel(job.job_id)

    seen, _ = await asyncio.gather(read(), write_and_cancel())
    await other.close()
    assert len(seen) == 22
    assert [event.progress.problems_done for event in seen] == [*range(21), 20]
    for before, after in itertools.pairwise(seen):
        assert before.time.ToMilliseconds() <= after.time.ToMilliseconds()
        assert before.progress.steps <= after.progress.steps


async def test_histories_of_many_places(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "NEAR", 2)
    monkeypatch.setattr(looks, "EVENTS_A_READ", 6)
    work = Work(jobs.database)
    claim = await all_slots(work)
    first, second, third = [await running_job(jobs.database, request_id=name) for name in ("a", "b", "c")]
    for sequence in range(8):
        deltas = [delta(first), delta(second)] if sequence < 6 else [delta(second)]
        await work.commit(claim, commit(sequence, *deltas), {})
    await jobs.cancel(third.job_id)
    wanted = {
        (first.job_id, 0): [1, 2],  # a third of what is read at once, for it is one of three that catch up
        (first.job_id, 4): [5, 6],
        (first.job_id, 5): [6, 7],
        (first.job_id, 6): [7],
        (first.job_id, 7): [],
        (second.job_id, 5): [6, 7],
        (second.job_id, 8): [9],
        (third.job_id, 0): [1, 2],
        (third.job_id, 9): [],
    }
    places = [Place(*place) for place in wanted]
    found = await jobs.histories([*places, Place("nobody"), Place("\0")])
    histories = [each for each in found if isinstance(each, History)]
    assert [[event.cursor for event in each.events] for each in histories] == [*wanted.values()]
    assert [each.cursor for each in histories] == [7] * 5 + [9] * 2 + [2] * 2
    assert {each.state for each in histories[-2:]} == {job_pb2.JOB_STATE_CANCELLED}
    assert [type(each) for each in found[-2:]] == [JobNotFound] * 2


@pytest.mark.parametrize("size", [1, 2, 5, 100])
async def test_pages_of_results_by_index(jobs: Jobs, size: int) -> None:
    job, work = await running_job(jobs.database, 8), Work(jobs.database)
    claim = await all_slots(work)
    for sequence, index in enumerate((6, 0, 3, 1, 4)):
        await work.commit(claim, commit(sequence, delta(job, result(job, index))), {})
    seen, after = [], -1
    while True:
        page, following = await jobs.results(job.job_id, size, after)
        assert len(page) <= size
        seen += page
        if following is None:
            break
        after = following
    assert [each.problem_index for each in seen] == [0, 1, 3, 4, 6]
    first = seen[0]
    assert (first.answer, list(first.steps), first.score, first.answer_node_id) == ("two", ["one", "two"], 0.75, 2)
    assert (first.outcome, first.verdict) == (job_pb2.OUTCOME_ANSWERED, job_pb2.VERDICT_CORRECT)
    assert (first.step_count, first.tokens, first.message) == (2, 10, "")
    assert first.problem == job_pb2.Problem(text="p0", reference="answer to p0")


async def test_a_failure_has_no_answer_and_no_score(jobs: Jobs) -> None:
    job, work = await running_job(jobs.database, 1), Work(jobs.database)
    failed = result(job, 0, outcome=job_pb2.OUTCOME_FAILED, verdict=0, steps=[], score=float("nan"), message="why")
    await work.commit(await all_slots(work), commit(1, delta(job, failed)), {})
    ((found,), _) = await jobs.results(job.job_id, 10, -1)
    assert (found.answer, list(found.steps), found.message) == ("", [], "why")
    assert not found.HasField("score")


async def test_a_page_of_long_results_ends_early(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "RESULT_BYTES_A_PAGE", 2_500)
    long = Chunk(0, [problem(f"{index}" * 1_000) for index in range(5)], True)
    job = await Uploads(jobs.database).create("request", SPEC, FILLED, long, "a")
    work = Work(jobs.database)
    await work.commit(await all_slots(work), commit(1, delta(job, *(result(job, index) for index in range(5)))), {})
    page, following = await jobs.results(job.job_id, 100, -1)
    assert [each.problem_index for each in page] == [0, 1]
    assert following == 1


async def test_results_may_come_between_two_pages(jobs: Jobs) -> None:
    job, work = await running_job(jobs.database, 4), Work(jobs.database)
    claim = await all_slots(work)
    await work.commit(claim, commit(1, delta(job, result(job, 1), result(job, 3))), {})
    (page, following) = await jobs.results(job.job_id, 1, -1)
    await work.commit(claim, commit(2, delta(job, result(job, 0), result(job, 2))), {})
    assert following == 1
    (rest, _) = await jobs.results(job.job_id, 10, following)
    assert [each.problem_index for each in page + rest] == [1, 2, 3]


async def test_a_tree_is_read_from_its_own_segments(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INDEXES_A_READ", "BODIES_A_READ"):
        monkeypatch.setattr(reading, name, 2)
    before = await running_job(jobs.database, 1, "before")
    work = Work(jobs.database)
    claim, first = await all_slots(work), dict[int, int]()
    noise = iter(range(1000, 2000))

    def other() -> Step:
        return Step(tree_id(before, 0), next(noise))

    await work.commit(claim, commit(0, delta(before), nodes=rows(other())), first)
    job = await running_job(jobs.database, 2)
    tree, sibling = tree_id(job, 0), tree_id(job, 1)
    nan = float("nan")
    batches = [
        (rows(Step(tree, 2), other(), Step(sibling, 2)), None),
        (rows(Step(tree, 3, 2, depth=2, score=nan), Step(tree, 4, 2, child=1, depth=2, score=nan)), None),
        (rows(Step(sibling, 9), Step(tree, 5, 3, depth=3)), scores((tree, 3, 0.9), (sibling, 2, 0.1), (tree, 4, nan))),
        (rows(other()), None),
    ]
    for sequence, (nodes, late) in enumerate(batches, 1):
        extra = {} if late is None else {"late": late}
        await work.commit(claim, commit(sequence, delta(job), nodes=nodes, **extra), first)
        growing = await jobs.tree(job.job_id, 0)
        assert growing.result is None
    await work.commit(claim, commit(9, delta(job, result(job, 0)), nodes=rows(Step(tree, 6, 5, depth=4))), first)
    await work.commit(claim, commit(10, delta(job), nodes=rows(Step(sibling, 11))), first)
    found = await jobs.tree(job.job_id, 0)
    assert (found.job.job_id, found.problem.text) == (job.job_id, "p0")
    assert found.result is not None
    assert found.result.problem_index == 0
    assert node_ids(found.nodes) == [2, 3, 4, 5, 6]
    assert found.nodes.score[:2].tolist() == [0.5, pytest.approx(0.9)]
    assert found.nodes.finish.tolist() == [1, 1, job_pb2.FINISH_ERROR, 1, 1]
    assert node_ids((await jobs.tree(job.job_id, 1)).nodes) == [2, 9, 11]


async def test_problems_that_are_not_there(jobs: Jobs) -> None:
    job = await running_job(jobs.database, 2)
    for index in (2, 2**64 - 1):
        with pytest.raises(ProblemNotFound, match=f"has no problem {index}: it has 2, counted from 0"):
            await jobs.tree(job.job_id, index)
    assert node_ids((await jobs.tree(job.job_id, 1)).nodes) == []


async def test_models_are_replaced_as_a_whole(jobs: Jobs) -> None:
    assert await jobs.models() == []
    verifier = ModelRow("verifier", "tiny24-prm", "1", "", "")
    generator = ModelRow("generator", "tiny24", "1", "\n", "countdown")
    await jobs.put_models([verifier, generator])
    assert await jobs.models() == [generator, verifier]
    await jobs.put_models([verifier])
    assert await jobs.models() == [verifier]
    await jobs.put_models([])
    assert await jobs.models() == []


async def test_nothing_is_left_of_a_failed_call(jobs: Jobs) -> None:
    await jobs.put_models([ModelRow("verifier", "one", "1", "", "")])
    twice = [ModelRow("verifier", "two", "1", "", "")] * 2
    with pytest.raises(Exception, match=r"(?i)unique"):
        await jobs.put_models(twice)
    assert [model.name for model in await jobs.models()] == ["one"]
    assert await count(jobs.database, "jobs") == 0
    await Uploads(jobs.database).create("request", SPEC, FILLED, chunk(0, "p0"), "a")  # the database goes on
