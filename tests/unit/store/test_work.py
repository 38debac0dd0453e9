"""Work on a database, looked at row by row; test_leases.py and others hold it to what every kind of store does."""

import pytest

from ramify.store.database import Database
from ramify.store.errors import Fenced
from ramify.store.uploads import Uploads
from ramify.store.work import Report, Work
from tests.unit.store.helpers import (
    FILLED,
    SPEC,
    TTL_MS,
    Step,
    all_slots,
    chunk,
    commit,
    contents,
    count,
    delta,
    part,
    result,
    rows,
    running_job,
    snapshot,
    tree_id,
)


@pytest.fixture
def work(database: Database) -> Work:
    return Work(database)


async def test_what_is_still_being_uploaded_is_not_open(work: Work) -> None:
    await Uploads(work.database).create("uploading", SPEC, FILLED, chunk(0, "p0"), "a")
    assert await work.open_jobs() == []


async def test_a_commit_that_is_written_again_changes_no_row(work: Work) -> None:
    job = await running_job(work.database)
    claim, first = await all_slots(work), dict[int, int]()
    slot = tree_id(job, 0) % 64
    copies = [snapshot(slot, {job.job_id: part(job, 0)})]
    written = commit(
        1, delta(job, result(job, 1)), nodes=rows(Step(tree_id(job, 0), 2)), snapshots=copies, released=((slot + 1) % 64,)
    )
    segment = await work.commit(claim, written, first)
    before = await contents(work.database)
    assert await work.commit(claim, written, first) == segment
    assert await Work(work.database).commit(claim, written, {}) == segment
    assert await contents(work.database) == before


async def test_a_zombie_changes_no_row(work: Work) -> None:
    job, zombie = await running_job(work.database), await all_slots(work)
    await all_slots(work)
    before = await contents(work.database)
    nodes = rows(Step(tree_id(job, 0), 2))
    with pytest.raises(Fenced):
        await work.commit(zombie, commit(1, delta(job, result(job, 0)), nodes=nodes, released=(3,)), {})
    with pytest.raises(Fenced):
        await work.pin(zombie, job.job_id, "g", "v", "c")
    with pytest.raises(Fenced):
        await work.recover(zombie)
    await work.release(zombie, range(64))
    assert await contents(work.database) == before


async def test_a_tree_is_whole_though_the_answer_to_its_first_commit_was_lost(work: Work) -> None:
    job = await running_job(work.database, 1)
    claim, tree = await all_slots(work), tree_id(job, 0)
    written = commit(1, delta(job), nodes=rows(Step(tree, 2)))
    segment = await work.commit(claim, written, {})
    again = Work(work.database)  # which has learnt nothing of the first try
    await again.commit(claim, written, {})
    await again.commit(claim, commit(2, delta(job, result(job, 0)), nodes=rows(Step(tree, 3, 2, depth=2))), {})
    ((_, _, _, first, last, _),) = (await contents(work.database, ["results"]))["results"]
    assert first <= segment < last


async def test_a_commit_that_can_not_be_written_leaves_no_row(work: Work) -> None:
    job, claim = await running_job(work.database, 2), await all_slots(work)
    broken = commit(1, delta(job, result(job, 0, score=float("nan"), message="\ud800")), nodes=rows(Step(tree_id(job, 0), 2)))
    before = await contents(work.database)
    with pytest.raises(UnicodeEncodeError):
        await work.commit(claim, broken, {})
    assert await contents(work.database) == before


async def test_the_newest_two_snapshots_of_a_slot_are_kept(work: Work) -> None:
    job, claim = await running_job(work.database), await all_slots(work)
    kept = []
    for sequence in range(5):
        copies = [snapshot(slot) for slot in range(sequence, 5)]
        kept.append(await work.commit(claim, commit(sequence, delta(job), snapshots=copies), {}))
    found = (await contents(work.database, ["snapshots"]))["snapshots"]
    assert [(slot, segment) for slot, segment, *_ in found] == [
        (0, kept[0]),
        *((slot, kept[sequence]) for slot in range(1, 5) for sequence in (slot - 1, slot)),
    ]


async def test_shards_that_nobody_has_heard_of_are_forgotten(work: Work) -> None:
    now = 1_000_000

    async def clock(_: object) -> int:
        return now

    work = Work(work.database, clock)
    await work.beat("shard:0@a", TTL_MS, Report())
    now += 10 * TTL_MS
    await work.beat("shard:1@b", TTL_MS, Report())
    assert await count(work.database, "shards") == 2
    now += 1
    await work.beat("shard:1@b", TTL_MS, Report())
    assert await count(work.database, "shards") == 1
