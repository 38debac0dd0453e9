from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import delete, func, insert, select, update

from ramify.cli.doctor import bodies
from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.subject import Subject
from ramify.scheduler.commands import Snapshot
from ramify.store import segments as codec
from ramify.store.schema import archives, damages, results, segments, snapshots
from ramify.store.segments import NO_STEPS
from ramify.store.work import Work
from tests.unit.doctor.defects import OWNER, a_job, deep, execute, spoil
from tests.unit.store.helpers import TTL_MS, commit, tree_id


async def newest(subject: Subject) -> int:
    async with subject.database.read() as connection:
        return int(await connection.scalar(select(func.max(segments.c.segment_id))) or 0)


async def test_an_empty_store_is_sound(subject: Subject) -> None:
    for check in (bodies.segments_are_sound, bodies.snapshots_are_sound, bodies.archives_are_sound):
        finding = await check(subject)
        assert (finding.level, finding.summary.split()[0]) == (Level.OK, "no")


async def test_segments_that_are_sound(subject: Subject) -> None:
    await a_job(subject.database)
    for one in (subject, deep(subject)):
        finding = await bodies.segments_are_sound(one)
        assert (finding.level, finding.summary) == (Level.OK, "2 segments, sound")


async def test_a_flipped_bit_in_a_segment_names_its_problems(subject: Subject) -> None:
    job = await a_job(subject.database)
    first = await newest(subject) - 1
    await spoil(subject.database, segments.c.nodes, segments.c.segment_id == first)
    finding = await bodies.segments_are_sound(subject)
    assert (finding.level, finding.summary) == (Level.BAD, "1 segment of 2 damaged")
    assert finding.details[0].startswith(f"segment {first}: its checksum is ")
    assert finding.details[1] == f"  job {job.job_id}: problems 0-1 (2; 1 of them have a result)"
    assert finding.why
    assert finding.remedy


async def test_scores_and_indexes_are_looked_at_too(subject: Subject) -> None:
    job = await a_job(subject.database)
    last = await newest(subject)
    await spoil(subject.database, segments.c.scores, segments.c.segment_id == last)
    assert (await bodies.segments_are_sound(subject)).details[0].startswith(f"segment {last}: its checksum is ")
    await spoil(subject.database, segments.c.scores, segments.c.segment_id == last)  # which mends it
    await spoil(subject.database, segments.c.trees, segments.c.segment_id == last)
    index = await bodies.segments_are_sound(subject)
    assert index.details[0].startswith(f"segment {last}: its index of trees is damaged: its checksum is ")
    assert index.details[1] == f"  job {job.job_id}: problem 0, which has a result"
    await spoil(subject.database, segments.c.nodes, segments.c.segment_id == last)
    both = await bodies.segments_are_sound(subject)
    assert both.details[1] == "  its index of trees is damaged as well, so that it may be any of the problems that grew then"


async def test_an_index_that_is_another_segments(subject: Subject) -> None:
    job = await a_job(subject.database)
    trees = np.array([tree_id(job, 2)], "<u8").tobytes()
    values = {"trees": trees, "trees_checksum": codec.checksum(trees)}
    await execute(subject.database, update(segments).values(values))
    assert "its index of trees does not fit its steps" in (await bodies.segments_are_sound(subject)).details[0]


async def test_a_segment_without_checksums_that_is_cut_off(subject: Subject) -> None:
    await a_job(subject.database)
    last = await newest(subject)
    async with subject.database.read() as connection:
        body = (await connection.execute(select(segments.c.nodes).where(segments.c.segment_id == last))).scalar_one()
    old = {"nodes": body[: len(body) // 2], "checksum": None, "trees": None, "trees_checksum": None}
    await execute(subject.database, update(segments).where(segments.c.segment_id == last).values(old))
    finding = await bodies.segments_are_sound(subject)
    assert (finding.level, finding.details[0].partition(": ")[0]) == (Level.BAD, f"segment {last}")


async def test_damage_that_a_shard_has_met_is_a_warning(subject: Subject) -> None:
    await a_job(subject.database)
    last = await newest(subject)
    await spoil(subject.database, segments.c.nodes, segments.c.segment_id == last)
    met = insert(damages).values(segment_id=last, slot=0, reason="its checksum", found_ms=0)
    await execute(subject.database, met)
    finding = await bodies.segments_are_sound(subject)
    assert finding.level is Level.WARN
    assert "which a shard has met" in finding.details[0]


async def test_only_the_newest_are_looked_at_without_deep(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    await a_job(subject.database)
    await spoil(subject.database, segments.c.nodes, segments.c.segment_id == await newest(subject) - 1)
    monkeypatch.setattr(bodies, "SAMPLE", 1)
    assert (await bodies.segments_are_sound(subject)).summary == "the newest 1 of 2 segments, sound"
    assert (await bodies.segments_are_sound(deep(subject))).level is Level.BAD


async def test_a_damaged_snapshot_costs_time_alone(subject: Subject) -> None:
    work = Work(subject.database)
    claim = await work.claim(OWNER, range(64), TTL_MS)
    await work.commit(claim, replace(commit(1), snapshots=[Snapshot(7, {}, NO_STEPS)]), {})
    assert (await bodies.snapshots_are_sound(subject)).summary == "1 snapshot, sound"
    await spoil(subject.database, snapshots.c.body, snapshots.c.slot == 7)
    finding = await bodies.snapshots_are_sound(subject)
    assert (finding.level, finding.summary) == (Level.WARN, "1 snapshot of 1 damaged")
    assert finding.details[0].startswith("slot 7, snapshot at segment 1: its checksum is ")


async def archived(subject: Subject) -> str:
    """A job whose one finished tree is archived; its id."""
    job = await a_job(subject.database)
    work = Work(subject.database)
    claim = await work.claim("shard:0@2e", range(64), TTL_MS)
    await work.recover(claim)
    assert await work.archive(claim, 100) == 1
    return job.job_id


async def test_a_damaged_archive_names_its_problems(subject: Subject) -> None:
    job_id = await archived(subject)
    assert (await bodies.archives_are_sound(subject)).summary == "1 archive, sound"
    await spoil(subject.database, archives.c.body, archives.c.archive_id == 1)
    finding = await bodies.archives_are_sound(subject)
    assert (finding.level, finding.summary) == (Level.BAD, "1 archive of 1 damaged")
    assert finding.details[0].startswith("archive 1: its checksum is ")
    assert finding.details[1] == f"  job {job_id}: problem 0"


async def test_what_is_archived_is_not_lost_with_its_segment(subject: Subject) -> None:
    await archived(subject)
    last = await newest(subject)
    await spoil(subject.database, segments.c.nodes, segments.c.segment_id == last)
    finding = await bodies.segments_are_sound(subject)
    assert (finding.level, finding.details[1:]) == (Level.WARN, ("  nothing in it is needed any more",))


async def test_results_whose_steps_are_gone(subject: Subject) -> None:
    job_id = await archived(subject)
    await execute(subject.database, delete(archives))
    finding = await bodies.archives_are_sound(deep(subject))
    assert (finding.level, finding.summary) == (Level.BAD, "the steps of 1 finished tree are not where they should be")
    assert finding.details == (f"job {job_id}, problem 0: archive 1 is not there",)
    await execute(subject.database, update(results).values(archive=None))
    assert (await bodies.archives_are_sound(subject)).level is Level.OK
    await execute(subject.database, delete(segments))
    assert (await bodies.archives_are_sound(subject)).details[0].startswith(f"job {job_id}, problem 0: segment ")
