"""Damage: bytes that are not what was written are found, named, and cost the trees alone of which they hold something."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from ramify.scheduler.slots import SLOTS
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.schema import metadata
from ramify.store.segments import NO_STEPS
from ramify.store.work import Claim, Recovered, Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    Step,
    all_slots,
    commit,
    count,
    delta,
    node_ids,
    part,
    result,
    rows,
    running_job,
    snapshot,
    tree_id,
)

TREES = 6
MANY = 1000


def flipped(body: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 0x10]) + body[middle + 1 :]


def truncated(body: bytes) -> bytes:
    return body[: len(body) * 2 // 3]


HOW = pytest.mark.parametrize("how", [flipped, truncated])
How = Callable[[bytes], bytes]


async def spoil(database: Database, table: str, column: str, how: How, **names: int) -> None:
    """Damage one value."""
    rows = metadata.tables[table]
    async with database.write() as connection:
        body = (await connection.execute(select(rows.c[column]).filter_by(**names))).scalar_one()
        assert how(body) != body
        await connection.execute(rows.update().filter_by(**names).values({column: how(body)}))


class Growth:
    """A job of `TREES` problems that grows: segment by segment a step more of some trees, each below the one before."""

    def __init__(self, database: Database, job: job_pb2.Job, claim: Claim) -> None:
        self.database, self.job, self.claim = database, job, claim
        self.work, self.jobs = Work(database), Jobs(database)
        self.segments: list[int] = []
        self.depth = [0] * TREES

    async def step(self, *trees: int, **rest: Any) -> int:
        """A commit; its segment."""
        steps = []
        for tree in trees:
            self.depth[tree] += 1
            at = self.depth[tree]
            steps.append(Step(tree_id(self.job, tree), 1 + at, at, depth=at, text=b"%d-%d" % (tree, at)))
        one = commit(len(self.segments) + 1, delta(self.job, steps=len(steps)), nodes=rows(*steps), **rest)
        self.segments.append(await self.work.commit(self.claim, one, {}))
        return self.segments[-1]

    async def recover(self) -> Recovered:
        """As the next owner, who goes on from there."""
        self.work = Work(self.database)
        self.claim = await all_slots(self.work)
        self.segments = []
        found = await self.work.recover(self.claim)
        for tree in range(TREES):
            self.depth[tree] = len(self.steps(found, tree))
        return found

    def steps(self, found: Recovered, tree: int) -> list[int]:
        mine = tree_id(self.job, tree)
        names = zip(found.steps.tree_id.tolist(), node_ids(found.steps), strict=True)
        return [node for of, node in names if of == mine]

    def snapshots(self, *trees: int) -> list[Any]:
        """Snapshots of the slots of some trees, as if they had their roots and what they have grown."""
        slots = {tree_id(self.job, tree) % SLOTS for tree in trees}
        assert len(slots) == len(trees), "each in a slot of its own"
        return [
            snapshot(tree_id(self.job, tree) % SLOTS, {self.job.job_id: part(self.job, tree, live=1 + self.depth[tree])})
            for tree in trees
        ]

    async def history(self) -> list[tuple[int, str]]:
        events = (await self.jobs.history(self.job.job_id, 0)).events
        return [(event.notice.kind, event.notice.text) for event in events if event.HasField("notice")]


@pytest.fixture
async def growth(database: Database) -> Growth:
    """Each tree in a slot of its own."""
    while True:
        job = await running_job(database, TREES, f"request {await count(database, 'jobs')}")
        if len({tree_id(job, index) % SLOTS for index in range(TREES)}) == TREES:
            break
        await Jobs(database).cancel(job.job_id)
    return Growth(database, job, await all_slots(Work(database)))


@HOW
@pytest.mark.parametrize("column", ["nodes", "scores"])
async def test_a_damaged_segment_costs_its_own_trees_what_they_have_from_there_on(
    growth: Growth, how: How, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    for trees in ((0, 1, 2), (0, 1, 2), (1, 3), (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)):
        await growth.step(*trees)
    damaged = growth.segments[2]
    await spoil(growth.database, "segments", column, how, segment_id=damaged)
    with caplog.at_level(logging.WARNING):
        found = await growth.recover()
    assert {(each.index, each.segment_id) for each in found.restarted} == {(1, damaged), (3, damaged)}
    assert all(each.job_id == growth.job.job_id and "checksum" in each.reason for each in found.restarted)
    assert [growth.steps(found, tree) for tree in range(TREES)] == [[2, 3, 4, 5], [2, 3], [2, 3, 4, 5], [], [2, 3], []]
    (told,) = [text for kind, text in await growth.history() if kind == job_pb2.NOTICE_KIND_RESTART]
    assert told.startswith(f"segment {damaged} is damaged (its checksum is ")
    assert told.endswith("): 2 trees go on from before it")
    assert told in caplog.text
    assert (await growth.jobs.get(growth.job.job_id)).progress.restarts == 2


async def test_what_was_lost_once_is_not_lost_again(growth: Growth) -> None:
    for _ in range(3):
        await growth.step(*range(TREES - 1))
    await spoil(growth.database, "segments", "nodes", flipped, segment_id=growth.segments[1])
    for _ in range(2):
        await growth.recover()
        await growth.step(*range(TREES))  # the last one begins only now
    found = await growth.recover()
    assert found.restarted == []
    assert growth.steps(found, 0) == [2, 3, 4]
    assert growth.steps(found, TREES - 1) == [2, 3]
    assert (await growth.jobs.get(growth.job.job_id)).progress.restarts == TREES - 1
    tree = await growth.jobs.tree(growth.job.job_id, 0)
    assert (node_ids(tree.nodes), tree.damage) == ([2, 3, 4], ""), "it is whole again"


async def test_a_tree_that_was_restarted_is_marked_for_ever(growth: Growth) -> None:
    await growth.step(0, 1)
    damaged = await growth.step(1)
    await spoil(growth.database, "segments", "nodes", truncated, segment_id=damaged)
    await growth.recover()
    await growth.step(1)
    done = commit(9, delta(growth.job, result(growth.job, 0), result(growth.job, 1)))
    await growth.work.commit(growth.claim, done, {})
    for _ in range(2):
        results, _ = await growth.jobs.results(growth.job.job_id, 10, -1)
        assert results[0].restarted == ""
        assert results[1].restarted.startswith(f"segment {damaged} is damaged (its checksum is ")
        found = await growth.jobs.tree(growth.job.job_id, 1)
        assert found.result == results[1]
        assert (node_ids(found.nodes), found.damage) == ([2, 3], "")
        assert await growth.work.archive(growth.claim, MANY) in (2, 0)  # the second look is at the archive


@HOW
async def test_a_damaged_index_costs_nothing(growth: Growth, how: How, caplog: pytest.LogCaptureFixture) -> None:
    _, damaged, _ = [await growth.step(*trees) for trees in ((0, 1), (1, 2), (0, 2))]
    await spoil(growth.database, "segments", "trees", how, segment_id=damaged)
    with caplog.at_level(logging.WARNING):
        found = await growth.recover()
    assert f"the index of segment {damaged} is damaged: its checksum is" in caplog.text
    assert [growth.steps(found, tree) for tree in range(3)] == [[2, 3], [2, 3], [2, 3]]
    assert found.restarted == []
    assert node_ids((await growth.jobs.tree(growth.job.job_id, 1)).nodes) == [2, 3]


async def test_with_its_index_a_damaged_segment_costs_every_open_tree(growth: Growth) -> None:
    """Nobody knows what it held. What begins later is not in it."""
    await growth.step(0, 1)
    damaged = await growth.step(1)
    await growth.step(0, 2)
    for column in ("nodes", "trees"):
        await spoil(growth.database, "segments", column, flipped, segment_id=damaged)
    found = await growth.recover()
    assert {(each.index, each.segment_id) for each in found.restarted} == {(0, damaged), (1, damaged), (2, damaged)}
    assert [growth.steps(found, tree) for tree in range(4)] == [[2], [2], [], []]
    await growth.step(0, 1, 2, 3)
    found = await growth.recover()
    assert found.restarted == []
    assert [growth.steps(found, tree) for tree in range(4)] == [[2, 3], [2, 3], [2], [2]]
    tree = await growth.jobs.tree(growth.job.job_id, 3)
    assert node_ids(tree.nodes) == [2]
    assert "steps that it held may be lost" in tree.damage


async def test_slots_of_two_owners_meet_the_damage_of_one_segment_each_for_itself(growth: Growth) -> None:
    await growth.step(*range(TREES))
    damaged = await growth.step(*range(TREES))
    for column in ("nodes", "trees"):
        await spoil(growth.database, "segments", column, flipped, segment_id=damaged)
    seen: dict[int, int] = {}
    for half in range(2):
        work = Work(growth.database)
        claim = await work.claim(f"shard:0@half{half}", range(half, SLOTS, 2), 1)
        found = await work.recover(claim)
        assert {tree_id(growth.job, each.index) % 2 for each in found.restarted} <= {half}
        seen |= {each.index: each.segment_id for each in found.restarted}
    assert seen == dict.fromkeys(range(TREES), damaged)
    assert (await growth.recover()).restarted == []


@HOW
async def test_a_damaged_snapshot_costs_time_alone(growth: Growth, how: How, caplog: pytest.LogCaptureFixture) -> None:
    await growth.step(0, 1)
    first = await growth.step(0, 1, snapshots=growth.snapshots(0, 1))
    await growth.step(0, 1)
    newest = await growth.step(0, 1, snapshots=growth.snapshots(0, 1))
    await growth.step(0, 1)
    slots = [tree_id(growth.job, tree) % SLOTS for tree in range(2)]
    await spoil(growth.database, "snapshots", "body", how, slot=slots[0], segment_id=newest)
    with caplog.at_level(logging.WARNING):
        found = await growth.recover()
    assert f"the snapshot of slot {slots[0]} at segment {newest} can't be read: its checksum is" in caplog.text
    lives = {int(each.trees["problem"][0]): len(each.nodes["node_id"]) for each in found.snapshots[growth.job.job_id]}
    assert lives == {0: 2, 1: 4}  # as they were before the commits that carried them
    assert [growth.steps(found, tree) for tree in range(2)] == [[4, 5, 6], [6]]
    assert found.restarted == []
    await spoil(growth.database, "snapshots", "body", how, slot=slots[0], segment_id=first)
    found = await growth.recover()
    assert [int(each.trees["problem"][0]) for each in found.snapshots[growth.job.job_id]] == [1]
    assert growth.steps(found, 0) == [2, 3, 4, 5, 6], "without any snapshot all of its steps are read"
    assert (await growth.jobs.get(growth.job.job_id)).progress.restarts == 0


async def test_damage_before_a_snapshot_costs_nothing(growth: Growth) -> None:
    damaged = await growth.step(0, 1)
    await growth.step(0, 1, snapshots=growth.snapshots(0, 1))
    await growth.step(0, 1)
    await spoil(growth.database, "segments", "nodes", flipped, segment_id=damaged)
    found = await growth.recover()
    assert found.restarted == []
    assert [growth.steps(found, tree) for tree in range(2)] == [[4], [4]]
    tree = await growth.jobs.tree(growth.job.job_id, 0)
    assert node_ids(tree.nodes) == [], "what can be seen has its ancestors"
    assert tree.damage.startswith(f"segment {damaged} is damaged (its checksum is")
    assert tree.damage.endswith("): steps that it held are lost")


async def test_a_snapshot_and_the_damage_behind_it(growth: Growth) -> None:
    """The tree goes on from its snapshot: its last good state."""
    await growth.step(0)
    await growth.step(0, 1, snapshots=growth.snapshots(0))
    await growth.step(0, 1)
    damaged = await growth.step(0)
    await growth.step(0, 1)
    await spoil(growth.database, "segments", "nodes", flipped, segment_id=damaged)
    found = await growth.recover()
    (kept,) = found.snapshots[growth.job.job_id]
    assert kept.trees["problem"].tolist() == [0]
    assert [growth.steps(found, tree) for tree in range(2)] == [[4], [2, 3, 4]]
    assert [(each.index, each.segment_id) for each in found.restarted] == [(0, damaged)]


async def test_damage_of_trees_that_have_ended_restarts_nothing(growth: Growth) -> None:
    await growth.step(0, 1)
    damaged = await growth.step(0)
    await growth.work.commit(growth.claim, commit(9, delta(growth.job, result(growth.job, 0))), {})
    await spoil(growth.database, "segments", "nodes", flipped, segment_id=damaged)
    found = await growth.recover()
    assert (found.restarted, growth.steps(found, 1)) == ([], [2])
    tree = await growth.jobs.tree(growth.job.job_id, 0)
    assert node_ids(tree.nodes) == [2]
    told = tree.damage
    assert f"segment {damaged} is damaged" in told
    assert await growth.work.archive(growth.claim, MANY) == 1
    tree = await growth.jobs.tree(growth.job.job_id, 0)
    assert (node_ids(tree.nodes), tree.damage) == ([2], told), "the archive remembers"
    assert tree.result is not None
    assert tree.result.restarted == ""


@HOW
async def test_a_damaged_archive_costs_its_own_trees(growth: Growth, how: How) -> None:
    await growth.step(*range(TREES))
    await growth.recover()
    for tree in (0, 1):
        await growth.work.commit(growth.claim, commit(10 + tree, delta(growth.job, result(growth.job, tree))), {})
        assert await growth.work.archive(growth.claim, MANY) == 1
    await spoil(growth.database, "archives", "body", how, archive_id=1)
    found = await growth.jobs.tree(growth.job.job_id, 0)
    assert node_ids(found.nodes) == node_ids(NO_STEPS)
    assert found.damage.startswith("archive 1 is damaged (its checksum is")
    assert found.result is not None
    assert found.result.answer == "two", "the answer lies elsewhere"
    found = await growth.jobs.tree(growth.job.job_id, 1)
    assert (node_ids(found.nodes), found.damage) == ([2], "")


async def test_an_archive_that_is_missing_is_named(growth: Growth) -> None:
    await growth.step(0)
    await growth.recover()
    await growth.work.commit(growth.claim, commit(10, delta(growth.job, result(growth.job, 0))), {})
    assert await growth.work.archive(growth.claim, MANY) == 1
    async with growth.database.write() as connection:
        await connection.execute(metadata.tables["archives"].delete())
    found = await growth.jobs.tree(growth.job.job_id, 0)
    assert (node_ids(found.nodes), found.damage) == ([], "archive 1 is missing: the tree's steps are lost")


async def test_a_segment_of_a_version_without_checksums_that_can_t_be_read(growth: Growth) -> None:
    await growth.step(0, 1)
    damaged = await growth.step(0)
    await spoil(growth.database, "segments", "nodes", truncated, segment_id=damaged)
    async with growth.database.write() as connection:
        segments = metadata.tables["segments"]
        await connection.execute(segments.update().values(checksum=None, trees=None, trees_checksum=None))
    found = await growth.recover()
    assert {(each.index, each.segment_id) for each in found.restarted} == {(0, damaged), (1, damaged)}
    assert "it is no Arrow stream" in found.restarted[0].reason
    assert [growth.steps(found, tree) for tree in range(2)] == [[2], [2]]
