"""Recovery: on every kind of store a new owner gets exactly what was committed of the trees that are open."""

from collections.abc import Sequence

import numpy as np
import pytest

from ramify.scheduler.forest.parts import Part
from ramify.scheduler.slots import SLOTS, slot_of
from ramify.store.errors import Fenced
from ramify.store.work import Claim, Recovered
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    TTL_MS,
    Step,
    commit,
    delta,
    incarnation,
    node_ids,
    part,
    result,
    rows,
    scores,
    snapshot,
    texts,
    tree_id,
)
from tests.unit.store.stores import ShardStore, Store

NAN = float("nan")


async def take(work: ShardStore, slots: Sequence[int] = range(SLOTS), shard: str = "shard:0") -> Claim:
    claim = await work.claim(incarnation(shard), slots, TTL_MS)
    assert claim.slots == tuple(sorted(slots))
    return claim


async def recover(store: Store) -> Recovered:
    """As a new process does that takes over every slot."""
    work = store.other_work()
    return await work.recover(await take(work))


def slot_in(job: job_pb2.Job, index: int) -> int:
    return tree_id(job, index) % SLOTS


def same_parts(found: Part, wanted: Part) -> None:
    for name in wanted.trees:
        np.testing.assert_array_equal(found.trees[name], wanted.trees[name], err_msg=name)
        assert found.trees[name].dtype == wanted.trees[name].dtype, name
    for name in wanted.nodes:
        np.testing.assert_array_equal(found.nodes[name], wanted.nodes[name], err_msg=name)
        assert found.nodes[name].dtype == wanted.nodes[name].dtype, name
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.text, wanted.text)
    assert found.messages == wanted.messages
    assert {*found.trees} == {*wanted.trees}
    assert {*found.nodes} == {*wanted.nodes}


async def test_nothing_was_committed(store: Store) -> None:
    found = await recover(store)
    assert (found.snapshots, node_ids(found.steps), found.first_segment, found.restarted) == ({}, [], {}, [])
    await store.submit(3, "request")
    found = await recover(store)
    assert (found.snapshots, node_ids(found.steps), found.first_segment, found.restarted) == ({}, [], {}, [])


async def test_a_claim_of_no_slots_recovers_nothing(store: Store) -> None:
    job = await store.submit(1, "request")
    await store.work.commit(await take(store.work), commit(1, delta(job), nodes=rows(Step(tree_id(job, 0), 2))), {})
    assert node_ids((await store.work.recover(Claim("shard:1@b", {}))).steps) == []


async def test_whoever_has_lost_a_slot_recovers_nothing(store: Store) -> None:
    claim = await take(store.work)
    await take(store.work, [5])
    with pytest.raises(Fenced) as caught:
        await store.work.recover(claim)
    assert caught.value.slots == (5,)


async def test_steps_come_in_the_order_of_their_commits_with_what_came_later(store: Store) -> None:
    job, claim, first = await store.submit(3, "request"), await take(store.work), dict[int, int]()
    trees = [tree_id(job, index) for index in range(3)]
    for sequence in range(8):
        nodes = rows(*(Step(tree, 10 * index + sequence + 2, score=NAN) for index, tree in enumerate(trees)))
        late = scores((trees[0], sequence + 1, 0.25), (trees[1], sequence + 1, 0.75)) if sequence else None
        await store.work.commit(claim, commit(sequence, delta(job), nodes=nodes, **({"late": late} if late else {})), first)
    await store.work.commit(claim, commit(8, delta(job, result(job, 1)), late=scores((trees[2], 22, NAN), turn=5)), first)
    found = await recover(store)
    assert node_ids(found.steps) == [node for sequence in range(8) for node in (sequence + 2, 20 + sequence + 2)]
    assert found.steps.tokens.tolist() == node_ids(found.steps)
    of_first = found.steps.tree_id == np.uint64(trees[0])
    assert found.steps.score[of_first][:7].tolist() == [0.25] * 7, "scores that came later"
    assert np.isnan(found.steps.score[of_first][7]), "not scored yet"
    assert found.steps.turn[of_first].tolist() == [2] * 7 + [1], "a score that came later brings its turn"
    assert found.steps.finish[~of_first].tolist() == [job_pb2.FINISH_ERROR] + [job_pb2.FINISH_STEP] * 7
    assert found.first_segment == {tree: first[tree] for tree in (trees[0], trees[2])}
    assert (found.snapshots, found.restarted) == ({}, [])


async def test_only_open_trees_of_jobs_that_run(store: Store) -> None:
    runs, cancelled, done = [await store.submit(2, name) for name in ("runs", "cancelled", "done")]
    claim, first = await take(store.work), dict[int, int]()
    jobs = (runs, cancelled, done)
    nodes = rows(*(Step(tree_id(job, index), 2 + which) for which, job in enumerate(jobs) for index in range(2)))
    await store.work.commit(claim, commit(1, *(delta(job) for job in jobs), nodes=nodes), first)
    await store.work.commit(claim, commit(2, delta(runs, result(runs, 0)), delta(done, result(done, 0), result(done, 1))), first)
    await store.cancel(cancelled.job_id)
    found = await recover(store)
    assert found.steps.tree_id.tolist() == [tree_id(runs, 1)]
    assert {*found.first_segment} == {tree_id(runs, 1)}


async def test_only_the_claim_s_slots(store: Store) -> None:
    job, claim = await store.submit(50, "request"), await take(store.work)
    trees = [tree_id(job, index) for index in range(50)]
    await store.work.commit(claim, commit(1, delta(job), nodes=rows(*(Step(tree, 2) for tree in trees))), {})
    for mine in (range(0, SLOTS, 2), range(1, SLOTS, 2)):
        work = store.other_work()
        found = await work.recover(await take(work, mine))
        assert found.steps.tree_id.tolist() == [tree for tree in trees if tree % SLOTS in mine]
        assert {*found.first_segment} == {*found.steps.tree_id.tolist()}


async def test_a_snapshot_and_what_came_after_it(store: Store) -> None:
    job, claim, first = await store.submit(2, "request"), await take(store.work), dict[int, int]()
    tree, other = tree_id(job, 0), tree_id(job, 1)
    copy = part(job, 0, live=4)
    before = rows(*(Step(tree, node) for node in (2, 3, 4)), Step(tree, 5, 2, depth=2, score=NAN), Step(other, 2))
    await store.work.commit(claim, commit(1, delta(job), nodes=before), first)
    told = rows(Step(tree, 5, 2, depth=2, score=NAN))  # is with the verifier, and still to be told
    taken = snapshot(slot_in(job, 0), {job.job_id: copy} if slot_in(job, 0) != slot_in(job, 1) else {}, told)
    if not taken.parts:  # both trees in one slot
        taken = snapshot(slot_in(job, 0), {job.job_id: part(job, 0, 1, live=4)}, told)
    at = await store.work.commit(claim, commit(2, delta(job), nodes=rows(Step(tree, 6)), snapshots=[taken]), first)
    after = rows(Step(tree, 7, 6, depth=2), Step(other, 3))
    late = scores((tree, 5, 0.25), (tree, 6, 0.75))
    await store.work.commit(claim, commit(3, delta(job), nodes=after, late=late), first)
    found = await recover(store)
    (parts,) = found.snapshots.values()
    same_parts(parts[0], taken.parts[job.job_id])
    mine = found.steps.tree_id == np.uint64(tree)
    steps = dict(zip(np.array(node_ids(found.steps))[mine].tolist(), found.steps.score[mine].tolist(), strict=True))
    assert steps == {5: 0.25, 7: 0.5}, "what the snapshot brings along, with its score, and what came later"
    assert found.first_segment == first
    assert first[tree] < at


async def test_the_newest_snapshot_of_each_slot(store: Store) -> None:
    job, claim, first = await store.submit(1000, "request"), await take(store.work), dict[int, int]()
    slots = slot_of(np.array([tree_id(job, index) for index in range(1000)], np.uint64))
    one, other = (np.flatnonzero(slots == slot)[:2].tolist() for slot in (3, 9))
    for sequence in range(6):
        nodes = rows(*(Step(tree_id(job, index), 10 + sequence) for index in (*one, *other)))
        mine = one if sequence % 2 else other
        copy = snapshot(int(slots[mine[0]]), {job.job_id: part(job, *mine, live=2 + sequence)})
        await store.work.commit(claim, commit(sequence, delta(job), nodes=nodes, snapshots=[copy]), first)
    found = await recover(store)
    lives = {int(each.trees["problem"][0]): len(each.nodes["node_id"]) // 2 for each in found.snapshots[job.job_id]}
    assert lives == {one[0]: 7, other[0]: 6}
    assert {*zip(found.steps.tree_id.tolist(), node_ids(found.steps), strict=True)} == {(tree_id(job, i), 15) for i in other}
    assert found.first_segment == first


async def test_of_a_snapshot_only_the_trees_that_are_open(store: Store) -> None:
    job, gone = await store.submit(1000, "request"), await store.submit(1000, "gone")
    claim, first = await take(store.work), dict[int, int]()
    slots = slot_of(np.array([tree_id(job, index) for index in range(1000)], np.uint64))
    theirs = slot_of(np.array([tree_id(gone, index) for index in range(1000)], np.uint64))
    mine, others = np.flatnonzero(slots == 3)[:3].tolist(), np.flatnonzero(theirs == 3)[:2].tolist()
    copy = part(job, *mine)
    steps = rows(*(Step(tree_id(job, index), 3) for index in mine), Step(tree_id(gone, others[0]), 3))
    taken = snapshot(3, {job.job_id: copy, gone.job_id: part(gone, *others)}, steps)
    await store.work.commit(claim, commit(1, delta(job), nodes=steps, snapshots=[taken]), first)
    await store.work.commit(claim, commit(2, delta(job, result(job, mine[1]))), first)
    await store.cancel(gone.job_id)
    found = await recover(store)
    ((kept,),) = found.snapshots.values()
    assert kept.trees["problem"].tolist() == [mine[0], mine[2]]
    assert kept.nodes["tree"].tolist() == [0, 0, 0, 1, 1, 1]
    assert [*found.snapshots] == [job.job_id]
    assert found.steps.tree_id.tolist() == [tree_id(job, mine[0]), tree_id(job, mine[2])]


async def test_slots_that_come_from_two_owners(store: Store) -> None:
    """Their segments lie among each other, and each had snapshots of its own slots."""
    job, first = await store.submit(300, "request"), dict[int, int]()
    halves = [await take(store.work, range(0, 32), "shard:0"), await take(store.work, range(32, SLOTS), "shard:1")]
    trees = [tree_id(job, index) for index in range(300)]
    for sequence in range(4):
        for claim in halves:
            mine = [tree for tree in trees if tree % SLOTS in claim.epochs]
            nodes = rows(*(Step(tree, 2 + sequence) for tree in mine))
            copies = [snapshot(slot) for slot in claim.slots] if sequence == 1 else []
            await store.work.commit(claim, commit(sequence, delta(job), nodes=nodes, snapshots=copies), first)
    store.advance(TTL_MS)
    work = store.other_work()
    found = await work.recover(await take(work, range(16, 48), "shard:2"))
    wanted = {(tree, node) for tree in trees if 16 <= tree % SLOTS < 48 for node in (4, 5)}
    names = [*zip(found.steps.tree_id.tolist(), node_ids(found.steps), strict=True)]
    assert len(names) == len(wanted), "the snapshots say that the trees had nothing before them"
    assert {*names} == wanted


async def test_what_is_recovered_can_be_recovered_again_and_again(store: Store) -> None:
    job, first = await store.submit(1, "request"), dict[int, int]()
    tree = tree_id(job, 0)
    for sequence in range(5):
        claim = await take(store.work)
        found = await store.work.recover(claim)
        assert node_ids(found.steps) == [*range(2, 2 + sequence)]
        await store.work.commit(claim, commit(1, delta(job), nodes=rows(Step(tree, 2 + sequence, text=b"%d" % sequence))), first)
    assert texts(await store.tree(job.job_id, 0)) == [b"0", b"1", b"2", b"3", b"4"]
    assert (await recover(store)).first_segment == first
