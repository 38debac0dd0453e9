"""Damage of any bytes at any place: nothing is recovered that was not committed, and who was not hit loses nothing."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from ramify.scheduler.slots import SLOTS
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.schema import metadata
from ramify.store.work import Recovered, Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import Step, all_slots, commit, delta, node_ids, rows, running_job, snapshot, tree_id
from tests.unit.store.machine import ROOT, part_of

TREES = 5
FLIP, CUT = "flip", "cut"

trees = st.sets(st.integers(0, TREES - 1))
flushes = st.lists(st.tuples(trees.filter(bool), trees), min_size=1, max_size=6)  # which grow, and of whose slots there is a copy
places = st.tuples(
    st.sampled_from(["nodes", "scores", "trees", "body"]), st.integers(0, 5), st.sampled_from([FLIP, CUT]), st.floats(0, 0.99)
)


@dataclass
class Grown:
    """A job's trees as they were committed."""

    job: job_pb2.Job
    steps: dict[int, list[tuple[int, int, int]]] = field(default_factory=lambda: {tree: [] for tree in range(TREES)})
    segments: list[int] = field(default_factory=list)

    def before(self, tree: int, segment: int | None) -> set[int]:
        """Nodes of a tree in segments before one; None: all."""
        return {node for node, _, at in self.steps[tree] if segment is None or at < segment}

    def is_prefix_closed(self, tree: int, nodes: set[int]) -> bool:
        return all(parent in {ROOT, *nodes} for node, parent, _ in self.steps[tree] if node in nodes)


async def grow(database: Database, name: str, found: list[tuple[set[int], set[int]]]) -> Grown:
    """Each step is a child of its tree's last one, or of its root."""
    grown, work = Grown(await running_job(database, TREES, name)), Work(database)
    claim = await all_slots(work)
    for sequence, (growing, copied) in enumerate(found, 1):
        new = dict[int, Step]()
        for tree in sorted(growing):
            mine = grown.steps[tree]
            parent = mine[-1][0] if mine and len(mine) % 3 else ROOT
            depth = 1 + (len(mine) % 3 if parent != ROOT else 0)
            new[tree] = Step(tree_id(grown.job, tree), 2 + len(mine), parent, depth=depth)
        slots = {tree_id(grown.job, tree) % SLOTS for tree in copied}
        copies = []
        for slot in sorted(slots):
            inside = [tree for tree in range(TREES) if tree_id(grown.job, tree) % SLOTS == slot]
            nodes = {
                tree: [ROOT, *(node for node, _, _ in grown.steps[tree]), *([new[tree].node] if tree in new else [])]
                for tree in inside
            }
            copies.append(snapshot(slot, {grown.job.job_id: part_of(grown.job, nodes)}))
        one = commit(sequence, delta(grown.job), nodes=rows(*new.values()), snapshots=copies)
        segment = await work.commit(claim, one, {})
        grown.segments.append(segment)
        for tree, step in new.items():
            grown.steps[tree].append((step.node, step.parent, segment))
    return grown


async def spoil(database: Database, grown: Grown, place: tuple[str, int, str, float]) -> None:
    column, which, how, share = place
    segment = grown.segments[which % len(grown.segments)]
    table = metadata.tables["snapshots" if column == "body" else "segments"]
    async with database.write() as connection:
        for body in (await connection.scalars(select(table.c[column]).where(table.c.segment_id == segment))).all():
            at = int(share * len(body))
            other = body[:at] if how == CUT or not body else body[:at] + bytes([body[at] ^ 0x40]) + body[at + 1 :]
            await connection.execute(
                table.update().where(table.c.segment_id == segment, table.c[column] == body).values({column: other})
            )


def by_tree(grown: Grown, found: Recovered) -> dict[int, set[int]]:
    known: dict[int, set[int]] = {}
    for part in found.snapshots.get(grown.job.job_id, ()):
        for tree, node in zip(part.trees["tree_id"][part.nodes["tree"]].tolist(), part.nodes["node_id"].tolist(), strict=True):
            known.setdefault(tree, set()).add(node)
    for tree, node in zip(found.steps.tree_id.tolist(), node_ids(found.steps), strict=True):
        assert node not in known.setdefault(tree, set())
        known[tree].add(node)
    return {index: known.get(tree_id(grown.job, index), set()) - {ROOT} for index in range(TREES)}


async def damages(database: Database) -> list[int]:
    async with database.read() as connection:
        return [*(await connection.scalars(select(metadata.tables["damages"].c.segment_id))).all()]


async def check(database: Database, grown: Grown, spoilt: list[tuple[str, int, str, float]]) -> None:
    work, jobs = Work(database), Jobs(database)
    found = await work.recover(await all_slots(work))
    lost = {each.index: each.segment_id for each in found.restarted}
    bodies = {grown.segments[which % len(grown.segments)] for column, which, _, _ in spoilt if column in ("nodes", "scores")}
    indexes = {grown.segments[which % len(grown.segments)] for column, which, _, _ in spoilt if column == "trees"}
    assert {*lost.values()} <= bodies, "what was not hit is not to blame"
    for tree, segment in lost.items():
        assert segment in indexes or any(at == segment for _, _, at in grown.steps[tree]), "a tree that was not hit"
    known = by_tree(grown, found)
    if found.restarted or bodies & indexes & {*await damages(database)}:
        events = (await jobs.history(grown.job.job_id, 0)).events
        assert job_pb2.NOTICE_KIND_RESTART in [event.notice.kind for event in events]
    for tree in range(TREES):
        vanished = bool(grown.steps[tree]) and {at for _, _, at in grown.steps[tree]} <= bodies & indexes
        assert known[tree] == grown.before(tree, lost.get(tree)) or (vanished and not known[tree])
        assert grown.is_prefix_closed(tree, known[tree])
        seen = await jobs.tree(grown.job.job_id, tree)
        shown = {*node_ids(seen.nodes)}
        assert shown <= grown.before(tree, None)
        assert grown.is_prefix_closed(tree, shown)
        assert shown == known[tree] or seen.damage
    work = Work(database)
    again = await work.recover(await all_slots(work))
    assert again.restarted == [], "it is lost once"
    assert by_tree(grown, again) == known
    await jobs.cancel(grown.job.job_id)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_damage_anywhere(store_url: str, runner: asyncio.Runner) -> None:
    database, numbers = Database(store_url), iter(range(1_000_000))

    @settings(max_examples=15)
    @given(flushes, st.lists(places, min_size=1, max_size=3))
    def one(found: list[tuple[set[int], set[int]]], spoilt: Any) -> None:
        async def main() -> None:
            grown = await grow(database, f"request {next(numbers)}", found)
            for place in spoilt:
                await spoil(database, grown, place)
            await check(database, grown, spoilt)

        runner.run(main())

    runner.run(database.migrate())
    try:
        one()
    finally:
        runner.run(database.close())
