"""The guarantees of docs/guarantees.md, as far as a store alone can show them."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import numpy as np
import pytest

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.slots import SLOTS
from ramify.store.database import Database
from ramify.store.errors import Conflict, Fenced
from ramify.store.jobs import Jobs
from ramify.store.uploads import Uploads
from ramify.store.work import Claim, Pins, Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    FILLED,
    SPEC,
    TTL_MS,
    Step,
    all_slots,
    chunk,
    commit,
    contents,
    delta,
    incarnation,
    node_ids,
    part,
    result,
    rows,
    running_job,
    scores,
    snapshot,
    texts,
    tree_id,
)
from tests.unit.store.stores import ShardStore, Store

NAN = float("nan")


@pytest.fixture
async def works(database: Database) -> AsyncIterator[list[Work]]:
    """The store as four processes see it."""
    databases = [Database(database.url) for _ in range(4)]
    yield [Work(each) for each in databases]
    for each in databases:
        await each.close()


async def take_over(work: ShardStore, shard: str = "shard:0") -> Claim:
    return await work.claim(incarnation(shard), range(SLOTS), TTL_MS)


def is_prefix_closed(nodes: NodeRows, root: int = 1) -> bool:
    known = {(tree, root) for tree in nodes.tree_id.tolist()}
    for tree, node, parent in zip(nodes.tree_id.tolist(), node_ids(nodes), nodes.parent_id.tolist(), strict=True):
        if (tree, parent) not in known:
            return False
        known.add((tree, node))
    return True


async def test_guarantee_01_what_is_acknowledged_is_there_for_everyone_from_then_on(store: Store) -> None:
    job, claim = await store.submit(3, "request"), await take_over(store.work)
    for index in range(3):
        one = commit(index, delta(job, result(job, index)), nodes=rows(Step(tree_id(job, index), 2)))
        await store.work.commit(claim, one, {})
        assert [each.problem_index for each in await store.results(job.job_id)] == [*range(index + 1)]
        assert node_ids(await store.tree(job.job_id, index)) == [2]
        assert (await store.history(job.job_id))[-1].progress.problems_done == index + 1


async def test_guarantee_01_nothing_is_shown_before_its_commit_is_durable(database: Database, works: list[Work]) -> None:
    """Until a transaction has ended, everyone sees all as it was: no step without its counters, no event without its result."""
    job, work, jobs = await running_job(database, 2), works[0], Jobs(works[1].database)
    claim = await all_slots(work)
    looks = list[tuple[int, int, int, int]]()
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            seen = await jobs.get(job.job_id)
            history = await jobs.history(job.job_id, 0)
            results, _ = await jobs.results(job.job_id, 10, -1)
            looks.append((seen.progress.problems_done, history.events[-1].progress.problems_done, history.cursor, len(results)))

    async def write() -> None:
        for index in range(2):
            await work.commit(claim, commit(index, delta(job, result(job, index)), nodes=rows(Step(tree_id(job, index), 2))), {})
        done.set()

    await asyncio.gather(look(), write())
    for counted, told, cursor, shown in looks:  # read one after the other: what is read later may be newer, never older
        assert counted <= told == cursor - 1
        assert told <= shown


async def test_guarantee_02_whatever_is_read_has_its_ancestors(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await take_over(store.work)
    tree = tree_id(job, 0)
    chain = [
        Step(tree, 2),
        Step(tree, 3, 2, depth=2),
        Step(tree, 4, 1, child=1),
        Step(tree, 5, 4, depth=2),
        Step(tree, 6, 3, depth=3),
    ]
    for sequence, some in enumerate((chain[:2], chain[2:4], chain[4:])):
        await store.work.commit(claim, commit(sequence, delta(job), nodes=rows(*some)), {})
        assert is_prefix_closed(await store.tree(job.job_id, 0))
        found = await store.other_work().recover(claim)
        assert is_prefix_closed(found.steps)
        assert node_ids(found.steps) == node_ids(await store.tree(job.job_id, 0))


async def test_guarantee_02_damage_takes_along_what_grows_on_it(database: Database) -> None:
    job, work = await running_job(database, 1), Work(database)
    claim, tree = await all_slots(work), tree_id(job, 0)
    segments = [
        await work.commit(claim, commit(sequence, delta(job), nodes=rows(*some)), {})
        for sequence, some in enumerate(
            (
                [Step(tree, 2), Step(tree, 3, child=1)],
                [Step(tree, 4, 2, depth=2)],
                [Step(tree, 5, 4, depth=3), Step(tree, 6, 3, depth=2)],
            )
        )
    ]
    async with database.write() as connection:
        await connection.exec_driver_sql(f"UPDATE segments SET checksum = checksum + 1 WHERE segment_id = {segments[1]}")
    found = await Jobs(database).tree(job.job_id, 0)
    assert node_ids(found.nodes) == [2, 3, 6]
    assert is_prefix_closed(found.nodes)
    recovered = await Work(database).recover(claim)
    assert is_prefix_closed(recovered.steps)


async def test_guarantee_03_a_step_counts_once_however_often_it_comes(store: Store) -> None:
    job = await store.submit(1, "request")
    tree = tree_id(job, 0)
    first = await take_over(store.work)
    once = commit(1, delta(job, steps=1), nodes=rows(Step(tree, 2, text=b"as it was first")))
    for work in (store.work, store.work, store.other_work()):
        await work.commit(first, once, {})
    assert (await store.job(job.job_id)).progress.steps == 1
    second = await take_over(store.work)
    again = commit(1, delta(job, steps=1), nodes=rows(Step(tree, 2, text=b"sampled once more")))
    await store.work.commit(second, again, {})
    assert texts(await store.tree(job.job_id, 0)) == [b"as it was first"]
    assert texts((await store.work.recover(second)).steps) == [b"as it was first"]


async def test_guarantee_04_one_writer_per_slot(store: Store) -> None:
    job = await store.submit(1, "request")
    tree = tree_id(job, 0)
    zombies: list[tuple[ShardStore, Claim]] = []
    for number in range(4):
        work = store.other_work()
        claim = await work.claim(f"shard:{number}@a", range(SLOTS), TTL_MS)
        assert len(claim.slots) == SLOTS
        await work.commit(claim, commit(1, delta(job), nodes=rows(Step(tree, 2 + number))), {})
        for zombie, their in zombies:
            with pytest.raises(Fenced):
                await zombie.commit(their, commit(2, delta(job), nodes=rows(Step(tree, 100 + number))), {})
        zombies.append((work, claim))
        store.advance(TTL_MS)
    assert node_ids(await store.tree(job.job_id, 0)) == [2, 3, 4, 5]
    assert (await store.job(job.job_id)).progress.steps == 4


async def test_guarantee_04_of_those_who_claim_at_once_one_has_each_slot(database: Database, works: list[Work]) -> None:
    job = await running_job(database, 64)
    for _ in range(3):
        claims = await asyncio.gather(
            *(work.claim(incarnation(f"shard:{at}"), range(SLOTS), TTL_MS) for at, work in enumerate(works))
        )
        held = [slot for claim in claims for slot in claim.slots]
        assert len(held) == len(set(held))
        trees = {tree_id(job, index) for index in range(64)}
        for work, claim in zip(works, claims, strict=True):
            mine = rows(*(Step(tree, 2) for tree in trees if tree % SLOTS in claim.epochs))
            others = [tree for tree in trees if tree % SLOTS not in claim.epochs]
            await work.commit(claim, commit(1, delta(job), nodes=mine), {})
            if others:
                with pytest.raises(Fenced):
                    await work.commit(claim, commit(2, delta(job), nodes=rows(Step(others[0], 9))), {})
            await work.release(claim, claim.slots)


async def test_guarantee_05_what_is_said_to_be_spent_is_the_sum_of_what_is_committed(store: Store) -> None:
    job = await store.submit(2, "request")
    spent = {"steps": 0, "tokens": 0, "retries": 0}
    dead: list[Claim] = []
    for round_ in range(4):
        claim = await take_over(store.work)
        for sequence in range(3):
            cost = {"steps": 1 + sequence, "tokens": 10 * round_ + sequence, "retries": sequence}
            one = commit(sequence, delta(job, **cost), nodes=rows(Step(tree_id(job, 0), 10 * round_ + sequence + 2)))
            await store.work.commit(claim, one, {})
            await store.work.commit(claim, one, {})
            spent = {name: total + cost[name] for name, total in spent.items()}
        for zombie in dead:
            with pytest.raises(Fenced):
                await store.work.commit(zombie, commit(9, delta(job, steps=1000)), {})
        dead.append(claim)
        progress = (await store.job(job.job_id)).progress
        assert {name: getattr(progress, name) for name in spent} == spent
    assert (await store.job(job.job_id)).progress.takeovers == 3


async def test_guarantee_06_all_that_was_acknowledged_is_recovered(store: Store) -> None:
    """So what a crash can cost is what was not committed."""
    job, first = await store.submit(40, "request"), dict[int, int]()
    trees, committed = [tree_id(job, index) for index in range(40)], set[tuple[int, int]]()
    for round_ in range(3):
        claim = await take_over(store.work)
        for sequence in range(4):
            node = 2 + 4 * round_ + sequence
            await store.work.commit(claim, commit(sequence, delta(job), nodes=rows(*(Step(tree, node) for tree in trees))), first)
            committed |= {(tree, node) for tree in trees}
        found = await store.other_work().recover(await take_over(store.work))
        assert {*zip(found.steps.tree_id.tolist(), node_ids(found.steps), strict=True)} == committed


async def test_guarantee_07_what_is_committed_comes_back_with_all_that_a_decision_may_use(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await take_over(store.work)
    tree = tree_id(job, 0)
    await store.work.commit(
        claim, commit(1, delta(job), nodes=rows(Step(tree, 2, turn=3), Step(tree, 3, child=1, score=NAN, turn=0))), {}
    )
    await store.work.commit(claim, commit(2, delta(job), late=scores((tree, 3, 0.125), turn=7)), {})
    found = (await store.other_work().recover(await take_over(store.work))).steps
    seen = await store.tree(job.job_id, 0)
    assert (found.turn.tolist(), found.score.tolist()) == ([3, 7], [0.5, 0.125])
    for name in NodeRows.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(seen, name), err_msg=name)


async def test_guarantee_07_a_snapshot_comes_back_as_it_was(store: Store) -> None:
    job, claim = await store.submit(1, "request"), await take_over(store.work)
    copy = part(job, 0, live=9)
    slot = tree_id(job, 0) % SLOTS
    nodes = rows(*(Step(tree_id(job, 0), 2 + at) for at in range(8)))
    await store.work.commit(claim, commit(1, delta(job), nodes=nodes, snapshots=[snapshot(slot, {job.job_id: copy})]), {})
    ((found,),) = (await store.other_work().recover(await take_over(store.work))).snapshots.values()
    for name, column in {**copy.trees, **copy.nodes}.items():
        np.testing.assert_array_equal({**found.trees, **found.nodes}[name], column, err_msg=name)
    assert (found.tokens.tolist(), found.text.tobytes()) == (copy.tokens.tolist(), copy.text.tobytes())
    assert found.messages == copy.messages


async def test_guarantee_08_a_job_keeps_to_the_first_models_that_it_was_given(store: Store) -> None:
    job = await store.submit(1, "request")
    for revision in ("1", "2", "3"):
        claim = await take_over(store.work)
        pins = await store.work.pin(claim, job.job_id, f"g{revision}", f"v{revision}", f"c{revision}")
        assert pins == Pins("g1", "v1", "c1")
    (opened,) = await store.work.open_jobs()
    assert opened.pins == Pins("g1", "v1", "c1")


async def test_guarantee_08_of_those_who_pin_at_once_all_are_told_the_same(database: Database, works: list[Work]) -> None:
    job = await running_job(database, 1)
    claims = [await work.claim(f"shard:{at}@a", range(at, SLOTS, 4), TTL_MS) for at, work in enumerate(works)]
    pins = await asyncio.gather(
        *(work.pin(claim, job.job_id, f"g{claim.owner}", "", "") for work, claim in zip(works, claims, strict=True))
    )
    assert len({*pins}) == 1


async def test_guarantee_09_a_history_goes_on_across_takeovers_without_gap_or_duplicate(store: Store) -> None:
    job = await store.submit(8, "request")
    for index in range(4):
        claim = await take_over(store.work)
        one = commit(1, delta(job, result(job, 2 * index)))
        await store.work.commit(claim, one, {})
        await store.work.commit(claim, one, {})  # its answer was lost
        last = commit(2, delta(job, result(job, 2 * index + 1)), released=claim.slots)
        await store.work.commit(claim, last, {})
        await store.work.commit(claim, last, {})
        await take_over(store.work, "shard:1")
        store.advance(TTL_MS)
    history = await store.history(job.job_id)
    assert [event.cursor for event in history] == [*range(1, len(history) + 1)]
    done = [event.progress.problems_done for event in history]
    assert sorted({*done}) == [*range(9)]
    assert all(before <= after for before, after in itertools.pairwise(done))
    assert [event.state for event in history][-1] == job_pb2.JOB_STATE_DONE


async def test_guarantee_10_the_same_request_is_the_same_job(database: Database) -> None:
    uploads = Uploads(database)
    first = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", last=True), "a")
    before = await contents(database)
    again = await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "p1", last=True), "b")
    assert again == first
    with pytest.raises(Conflict):
        await uploads.create("request", job_pb2.JobSpec(name="another"), FILLED, chunk(0, "p0", "p1", last=True), "c")
    with pytest.raises(Conflict):
        await uploads.create("request", SPEC, FILLED, chunk(0, "p0", "another", last=True), "c")
    assert await contents(database) == before
