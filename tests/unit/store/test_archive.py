"""What has ended: on every kind of store its steps stay readable, and nothing is deleted that an open tree needs."""

from collections.abc import Sequence

import numpy as np
import pytest

from ramify.scheduler.slots import SLOTS
from ramify.store.errors import Fenced, JobNotFound
from ramify.store.work import Claim, Swept
from ramify.v1 import job_pb2
from tests.unit.store.helpers import TTL_MS, Step, commit, delta, incarnation, node_ids, result, rows, scores, tree_id
from tests.unit.store.stores import ShardStore, Store

MANY = 1000
HOUR_MS = 3_600_000  # longer than any grace


async def take(work: ShardStore, slots: Sequence[int] = range(SLOTS), shard: str = "shard:0") -> Claim:
    claim = await work.claim(incarnation(shard), slots, TTL_MS)
    await work.recover(claim)
    return claim


async def archive_all(work: ShardStore, claim: Claim, limit: int = MANY) -> list[int]:
    """The number of trees of each call until nothing is left."""
    moved = []
    while count := await work.archive(claim, limit):
        moved.append(count)
        assert len(moved) < 100, "it comes to no end"
    return moved


async def swept(store: Store) -> int:
    return (await store.work.sweep(None)).segments


async def grow(store: Store, claim: Claim, job: job_pb2.Job, indexes: Sequence[int], steps: int, start: int = 1) -> None:
    """A commit for each step; each scores the steps of the one before."""
    for sequence in range(start, start + steps):
        nodes = rows(
            *(Step(tree_id(job, index), 1 + sequence, sequence, depth=sequence, score=float("nan")) for index in indexes)
        )
        late = scores(*((tree_id(job, index), sequence, sequence / 64) for index in indexes))
        await store.work.commit(claim, commit(sequence, delta(job, steps=len(indexes)), nodes=nodes, late=late), {})


async def test_trees_with_a_result_move_and_can_be_read_as_before(store: Store) -> None:
    job, claim = await store.submit(4, "request"), await take(store.work)
    await grow(store, claim, job, range(4), 5)
    await store.work.commit(claim, commit(6, delta(job, *(result(job, index) for index in range(3)))), {})
    before = [await store.tree(job.job_id, index) for index in range(4)]
    assert await archive_all(store.work, claim) == [3]
    assert await swept(store) == 0, "an open tree needs them all"
    for index, tree in enumerate(before):
        found = await store.tree(job.job_id, index)
        assert node_ids(found) == node_ids(tree) == [2, 3, 4, 5, 6]
        np.testing.assert_array_equal(found.score, tree.score)
        np.testing.assert_array_equal(found.turn, tree.turn)
    await store.work.commit(claim, commit(7, delta(job, result(job, 3))), {})
    assert await archive_all(store.work, claim) == [1]
    assert await swept(store) == 7
    assert await swept(store) == 0
    for index, tree in enumerate(before):
        assert node_ids(await store.tree(job.job_id, index)) == node_ids(tree)
    assert (await store.job(job.job_id)).state == job_pb2.JOB_STATE_DONE


async def test_segments_before_the_first_step_of_any_open_tree_are_freed(store: Store) -> None:
    job, claim = await store.submit(3, "request"), await take(store.work)
    await grow(store, claim, job, [0], 4)
    await store.work.commit(claim, commit(5, delta(job, result(job, 0))), {})
    await grow(store, claim, job, [1], 3, start=6)
    await archive_all(store.work, claim)
    assert await swept(store) == 5
    work = store.other_work()
    later = await work.claim(incarnation(), range(SLOTS), TTL_MS)
    found = await work.recover(later)
    assert node_ids(found.steps) == [7, 8, 9]
    await work.commit(later, commit(1, delta(job, result(job, 1))), {})
    assert await archive_all(work, later) == [1]
    assert await swept(store) == 4
    assert node_ids(await store.tree(job.job_id, 0)) == [2, 3, 4, 5]
    assert node_ids(await store.tree(job.job_id, 1)) == [7, 8, 9]


async def test_new_segments_come_after_those_that_were_deleted(store: Store) -> None:
    job, claim = await store.submit(2, "request"), await take(store.work)
    last = await store.work.commit(claim, commit(1, delta(job, result(job, 0))), {})
    await archive_all(store.work, claim)
    assert await swept(store) == 1
    assert await store.work.commit(claim, commit(2, delta(job), nodes=rows(Step(tree_id(job, 1), 2))), {}) > last
    assert node_ids((await store.other_work().recover(await take(store.work))).steps) == [2]


async def test_a_call_moves_so_many_trees_and_the_next_one_goes_on(store: Store) -> None:
    job, claim = await store.submit(10, "request"), await take(store.work)
    await grow(store, claim, job, range(10), 2)
    await store.work.commit(claim, commit(3, delta(job, *(result(job, index) for index in range(10)))), {})
    assert await archive_all(store.work, claim, limit=4) == [4, 4, 2]
    assert await swept(store) == 3
    for index in range(10):
        assert node_ids(await store.tree(job.job_id, index)) == [2, 3]


async def test_slots_that_were_not_recovered_are_left_alone(store: Store) -> None:
    """Nobody knows yet which trees are open in them."""
    job, claim = await store.submit(2, "request"), await take(store.work)
    await grow(store, claim, job, range(2), 2)
    await store.work.commit(claim, commit(3, delta(job, result(job, 0))), {})
    work = store.other_work()
    later = await work.claim(incarnation(), range(SLOTS), TTL_MS)
    assert await work.archive(later, MANY) == 0
    assert await swept(store) == 0
    await work.recover(later)
    assert await archive_all(work, later) == [1]
    assert await swept(store) == 0
    assert node_ids((await store.other_work().recover(later)).steps) == [2, 3]


async def test_another_s_slots_keep_what_they_need(store: Store) -> None:
    job = await store.submit(300, "request")
    mine = await take(store.work, range(32), "shard:0")
    other = store.other_work()
    others = await take(other, range(32, SLOTS), "shard:1")
    trees = {claim.owner: [i for i in range(300) if tree_id(job, i) % SLOTS in claim.epochs] for claim in (mine, others)}
    await other.commit(others, commit(1, delta(job), nodes=rows(*(Step(tree_id(job, i), 2) for i in trees[others.owner]))), {})
    nodes = rows(*(Step(tree_id(job, index), 2) for index in trees[mine.owner]))
    await store.work.commit(mine, commit(1, delta(job, *(result(job, i) for i in trees[mine.owner])), nodes=nodes), {})
    assert await archive_all(store.work, mine) == [len(trees[mine.owner])]
    assert await swept(store) == 0
    for index in (trees[mine.owner][0], trees[others.owner][0]):
        assert node_ids(await store.tree(job.job_id, index)) == [2]
    await other.commit(others, commit(2, delta(job, *(result(job, i) for i in trees[others.owner]))), {})
    assert await archive_all(other, others) == [len(trees[others.owner])]
    await archive_all(store.work, mine)
    assert await swept(store) == 3


async def test_a_zombie_archives_nothing(store: Store) -> None:
    job, zombie = await store.submit(1, "request"), await take(store.work)
    await store.work.commit(zombie, commit(1, delta(job, result(job, 0)), nodes=rows(Step(tree_id(job, 0), 2))), {})
    await store.other_work().claim(incarnation(), [5], TTL_MS)
    with pytest.raises(Fenced):
        await store.work.archive(zombie, MANY)
    assert node_ids(await store.tree(job.job_id, 0)) == [2]


async def test_trees_of_a_cancelled_job_move_once_nobody_writes_to_them_any_more(store: Store) -> None:
    job, other = await store.submit(100, "request"), await store.submit(1, "other")
    claim = await take(store.work)
    await grow(store, claim, job, range(50), 3)
    await store.work.commit(claim, commit(4, delta(job, result(job, 0))), {})
    await store.cancel(job.job_id)
    straggler = commit(5, delta(job), nodes=rows(Step(tree_id(job, 1), 9, depth=1)))
    await store.work.commit(claim, straggler, {})
    assert await archive_all(store.work, claim) == [1]
    assert await swept(store) == 0, "what was in flight may still come"
    store.advance(HOUR_MS)
    assert await archive_all(store.work, claim) == [49]
    await store.work.commit(claim, commit(6, delta(other), nodes=rows(Step(tree_id(other, 0), 2))), {})
    await archive_all(store.work, claim)
    assert await swept(store) == 5
    for index, wanted in ((0, [2, 3, 4]), (1, [2, 3, 4, 9]), (49, [2, 3, 4]), (50, [])):
        assert node_ids(await store.tree(job.job_id, index)) == wanted
    assert node_ids(await store.tree(other.job_id, 0)) == [2]


async def test_a_cancelled_job_is_settled_by_those_who_have_its_slots_then(store: Store) -> None:
    job, claim = await store.submit(300, "request"), await take(store.work)
    await grow(store, claim, job, range(300), 2)
    await store.cancel(job.job_id)
    store.advance(HOUR_MS)
    halves = [(store.other_work(), range(32), "shard:0"), (store.other_work(), range(32, SLOTS), "shard:1")]
    claims = [(work, await take(work, slots, shard)) for work, slots, shard in halves]
    moved = [sum(await archive_all(work, each)) for work, each in claims]
    assert sum(moved) == 300
    assert all(moved)
    for work, each in claims:
        await archive_all(work, each)
    assert await swept(store) == 2
    for index in (0, 100, 299):
        assert node_ids(await store.tree(job.job_id, index)) == [2, 3]


async def test_jobs_are_deleted_that_ended_longer_ago_than_they_are_kept(store: Store) -> None:
    done, cancelled, runs = [await store.submit(2, name) for name in ("done", "cancelled", "runs")]
    claim = await take(store.work)
    nodes = rows(*(Step(tree_id(job, 0), 2) for job in (done, cancelled, runs)))
    await store.work.commit(claim, commit(1, delta(done, result(done, 0), result(done, 1)), nodes=nodes), {})
    await store.cancel(cancelled.job_id)
    store.advance(HOUR_MS)
    await archive_all(store.work, claim)
    assert (await store.work.sweep(None)).jobs == 0
    assert (await store.work.sweep(2 * HOUR_MS)).jobs == 0
    store.advance(2 * HOUR_MS)
    assert (await store.work.sweep(2 * HOUR_MS)).jobs == 2
    for job in (done, cancelled):
        with pytest.raises(JobNotFound):
            await store.job(job.job_id)
    assert (await store.job(runs.job_id)).state == job_pb2.JOB_STATE_RUNNING
    assert node_ids((await store.other_work().recover(await take(store.work))).steps) == [2]


async def test_a_cancelled_job_is_kept_until_its_steps_are_archived(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await take(store.work)
    await grow(store, claim, job, [0], 2)
    await store.cancel(job.job_id)
    store.advance(2 * HOUR_MS)
    assert (await store.work.sweep(HOUR_MS)).jobs == 0
    assert await archive_all(store.work, claim) == [1]
    assert await store.work.sweep(HOUR_MS) == Swept(segments=2, jobs=1)


async def test_cancelled_jobs_without_steps_hold_up_nothing(store: Store) -> None:
    empty, full = [await store.submit(1, name) for name in ("empty", "full")]
    claim = await take(store.work)
    await store.work.commit(claim, commit(1, delta(empty, steps=0), delta(full, steps=0)), {})
    await grow(store, claim, full, [0], 2, start=2)
    for job in (empty, full):
        await store.cancel(job.job_id)
    store.advance(2 * HOUR_MS)
    assert await archive_all(store.work, claim) == [1]
    assert (await store.work.sweep(HOUR_MS)).jobs == 2


async def test_an_idle_shard_does_not_hold_up_the_others(store: Store) -> None:
    job = await store.submit(300, "request")
    idle, work = store.other_work(), store.work
    nobody = await take(idle, range(32, SLOTS), "shard:1")
    mine = await take(work, range(32))
    indexes = [index for index in range(300) if tree_id(job, index) % SLOTS < 32]
    await work.commit(mine, commit(1, delta(job, *(result(job, i) for i in indexes)), nodes=rows()), {})
    await archive_all(work, mine)
    assert await swept(store) == 0
    await archive_all(idle, nobody)
    assert await swept(store) == 1


async def test_slots_that_are_released_and_come_back(store: Store) -> None:
    job, claim = await store.submit(MANY, "request"), await take(store.work)
    index = next(index for index in range(MANY) if tree_id(job, index) % SLOTS == 7)
    await grow(store, claim, job, [index], 2)
    await store.work.commit(claim, commit(3, delta(job), released=(7,)), {})
    await archive_all(store.work, claim)
    assert await swept(store) == 0, "whoever gets the slot next needs them"
    later = await store.work.claim(claim.owner, [7], TTL_MS)
    assert node_ids((await store.work.recover(later)).steps) == [2, 3]
    both = Claim(claim.owner, {**claim.epochs, **later.epochs})
    await archive_all(store.work, both)
    assert await swept(store) == 0
    await store.work.commit(both, commit(4, delta(job, result(job, index))), {})
    await archive_all(store.work, both)
    assert await swept(store) == 4
    assert node_ids(await store.tree(job.job_id, index)) == [2, 3]
