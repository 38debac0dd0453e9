"""Upgrades: a running job of an earlier version goes on, and what it has committed is neither lost nor paid for again."""

from pathlib import Path
from typing import Any

import alembic.command
import numpy as np
import pytest
from alembic.config import Config
from sqlalchemy import Connection, text

from ramify.scheduler.commands import NodeRows, ScoreRows
from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.slots import SLOTS
from ramify.store import database as database_module
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.segments import encode_nodes, encode_scores
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.unit.store.helpers import (
    FILLED,
    NO_SCORES,
    SPEC,
    TTL_MS,
    Step,
    all_slots,
    commit,
    contents,
    delta,
    node_ids,
    part,
    result,
    rows,
    scores,
    snapshot,
    without_turn,
)

JOB = job_pb2.Job(job_id="of-an-old-version", progress=job_pb2.Progress(problems_total=3))
TREES: list[int] = tree_ids(JOB.job_id, np.arange(3)).tolist()
NAN = float("nan")
INSERTS = {
    "jobs": "(job_id, request_id, spec, spec_asked, state, problems_total, problems_done, problems_solved, problems_failed, "
    "steps, tokens, cursor, segment_floor, uploader, touched_ms, created_ms, started_ms) "
    "VALUES (:job_id, 'request', :spec, :asked, 2, 3, 1, 1, 0, 6, 30, 1, 0, 'call', 1000, 1000, 2000)",
    "problems": '(job, "index", slot, problem_id, text, prompt, reference) '
    "VALUES (1, :problem, :slot, '', :name, :name, :name)",
    "results": '(job, "index", body, segment_first, segment_last) VALUES (1, 0, :body, 1, 3)',
    "segments": "(owner, epoch, sequence, nodes, scores, created_ms) "
    "VALUES ('shard:0', :epoch, :sequence, :nodes, :scores, 3000)",
    "slots": "(slot, epoch, owner) VALUES (:slot, 2, 'shard:0')",
    "events": "(job, cursor, body) VALUES (1, 1, :body)",
}


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, revision)


def write_old(connection: Connection, revision: str) -> None:
    """A job with three problems, one of them done, that a shard worked on which was started twice; as that version wrote it."""
    upgrade(connection, revision)

    def insert(table: str, **values: Any) -> None:
        connection.execute(text(f"INSERT INTO {table} {INSERTS[table]}"), values)

    insert("jobs", job_id=JOB.job_id, spec=FILLED.SerializeToString(), asked=SPEC.SerializeToString(deterministic=True))
    for index, tree in enumerate(TREES):
        insert("problems", problem=index, slot=tree % SLOTS, name=f"p{index}")
    answer = job_pb2.Result(problem_index=0, outcome=job_pb2.OUTCOME_ANSWERED, answer="two", steps=["one", "two"])
    insert("results", body=answer.SerializeToString())
    running = job_pb2.JobEvent(cursor=1, state=job_pb2.JOB_STATE_RUNNING)
    insert("events", body=running.SerializeToString())
    for slot in range(0, SLOTS, 2):  # one of two shards had come up
        insert("slots", slot=slot)
    first = rows(*(Step(tree, 2, score=NAN, turn=0) for tree in TREES)), NO_SCORES
    second = rows(Step(TREES[1], 3, 2, depth=2)), scores(*((tree, 2, 0.25) for tree in TREES))
    third = rows(Step(TREES[0], 3, 2, depth=2), Step(TREES[2], 5)), NO_SCORES
    for epoch, sequence, found in ((1, 1, first), (1, 2, second), (2, 1, third)):
        insert("segments", epoch=epoch, sequence=sequence, **bodies(*found, revision))


def bodies(nodes: NodeRows, late: ScoreRows, revision: str) -> dict[str, bytes]:
    found = encode_nodes(nodes), encode_scores(late)
    if revision == "0001":  # decisions were not counted then
        found = without_turn(found[0]), without_turn(found[1])
    return {"nodes": found[0], "scores": found[1]}


@pytest.fixture(params=["0001", "0002"])
async def upgraded(request: pytest.FixtureRequest, bare_store_url: str) -> Any:
    """A database of this version that one of an earlier version has become."""
    database = Database(bare_store_url)
    async with database.write() as connection:
        await connection.run_sync(write_old, request.param)
    await database.migrate()
    yield database
    await database.close()


async def test_what_users_see_stays(upgraded: Database) -> None:
    jobs = Jobs(upgraded)
    job = await jobs.get(JOB.job_id)
    assert (job.state, job.spec) == (job_pb2.JOB_STATE_RUNNING, FILLED)
    assert job.progress == job_pb2.Progress(problems_total=3, problems_done=1, problems_solved=1, steps=6, tokens=30)
    assert job.pins == job_pb2.Pins()
    trees = [await jobs.tree(JOB.job_id, index) for index in range(3)]
    assert [node_ids(tree.nodes) for tree in trees] == [[2, 3], [2, 3], [2, 5]]
    assert [tree.damage for tree in trees] == ["", "", ""]
    assert trees[0].result is not None
    assert (trees[0].result.answer, trees[0].result.restarted) == ("two", "")
    assert (await jobs.history(JOB.job_id, 0)).cursor == 1


async def test_its_slots_are_free_to_be_claimed_at_once(upgraded: Database) -> None:
    for shard in ("shard:0", "shard:7"):
        claim = await Work(upgraded).claim(f"{shard}@new", range(0 if shard == "shard:0" else 1, SLOTS, 2), TTL_MS)
        assert len(claim.slots) == SLOTS // 2
    held = (await contents(upgraded, ["slots"]))["slots"]
    assert [epoch for _, epoch, *_ in held] == [3, 1] * (SLOTS // 2), "epochs go on from where they were"


async def test_a_job_that_runs_goes_on_to_its_end(upgraded: Database) -> None:
    work, jobs = Work(upgraded), Jobs(upgraded)
    claim = await all_slots(work)
    found = await work.recover(claim)
    assert sorted(zip(found.steps.tree_id.tolist(), node_ids(found.steps), found.steps.score.tolist(), strict=True)) == sorted(
        [(TREES[1], 2, 0.25), (TREES[1], 3, 0.5), (TREES[2], 2, 0.25), (TREES[2], 5, 0.5)]
    )
    assert (found.restarted, found.first_segment) == ([], {TREES[1]: 1, TREES[2]: 1})
    (opened,) = await work.open_jobs()
    assert [each.index for each in await work.waiting(opened, claim.slots, -1, 10)] == [1, 2]
    slot, first = TREES[1] % SLOTS, dict(found.first_segment)
    copy = snapshot(slot, {JOB.job_id: part(JOB, 1)})
    segment = await work.commit(claim, commit(1, delta(JOB), nodes=rows(Step(TREES[1], 4, 3, depth=3)), snapshots=[copy]), first)
    assert segment == 4, "segments go on from where they were"
    again = Work(upgraded)
    claim = await all_slots(again)
    found = await again.recover(claim)
    assert [each.trees["problem"].tolist() for each in found.snapshots[JOB.job_id]] == [[1]]
    assert node_ids(found.steps) == [2, 5]
    await again.commit(claim, commit(1, delta(JOB, result(JOB, 1), result(JOB, 2))), first)
    assert (await jobs.get(JOB.job_id)).state == job_pb2.JOB_STATE_DONE
    assert await again.archive(claim, 10) == 3
    assert await again.archive(claim, 10) == 0
    assert (await again.sweep(None)).segments == 5
    trees = [await jobs.tree(JOB.job_id, index) for index in range(3)]
    assert [node_ids(tree.nodes) for tree in trees] == [[2, 3], [2, 3, 4], [2, 5]]
