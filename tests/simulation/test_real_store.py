"""What a database gives back of a simulated history is what the store in memory does: the simulation simulates the truth."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.slots import SLOTS
from ramify.store.database import Database
from ramify.store.submissions import Chunk, NewProblem
from ramify.store.uploads import Uploads
from ramify.store.work import Work
from ramify.v1 import job_pb2
from tests.simulation.schedules import JOBS
from tests.simulation.store import Store, steps_of
from tests.simulation.world import Weather, World
from tests.simulation.world import Work as Job

SLOW = Weather(delay_ms_max=30, batch_max=2)
TTL_MS = 15_000
NAMES = ("best_of_n_vote", "beam_refill", "self_consistency", "mcts", "beam_with_copies without a barrier")


@pytest.fixture
async def database(sqlite_store: str) -> AsyncIterator[Database]:
    database = Database(sqlite_store)
    await database.migrate()
    yield database
    await database.close()


async def submitted(database: Database, job: Job) -> Job:
    """The same job under the name that a database gives it."""
    problems = [NewProblem(job_pb2.Problem(text=f"p{index}"), f"p{index}") for index in range(max(job.problems) + 1)]
    made = await Uploads(database).create("request", job_pb2.JobSpec(), job_pb2.JobSpec(), Chunk(0, problems, True), "call")
    return replace(job, plan=replace(job.plan, job_id=made.job_id))


def parts_of(found: Any) -> dict[str, dict[int, dict[str, Any]]]:
    """Of each job's parts the columns, by tree; rows are counted within a part."""
    return {
        job_id: {
            int(part.trees["tree_id"][0]): {
                **{f"tree.{name}": np.nan_to_num(column, nan=-1).tolist() for name, column in part.trees.items()},
                **{name: np.nan_to_num(column, nan=-1).tolist() for name, column in part.nodes.items()},
                "tokens": part.tokens.tolist(),
                "text": part.text.tobytes(),
                "messages": dict(part.messages),
            }
            for part in parts
        }
        for job_id, parts in found.items()
    }


@pytest.mark.parametrize("name", NAMES)
async def test_a_database_gives_back_what_the_store_in_memory_does(name: str, database: Database) -> None:
    (job,) = [await submitted(database, job) for job in JOBS[name]]
    world = World([job], SLOW, seed=3).run()
    fake, first = Store(world.store.root_of), dict[int, int]()
    late = 0
    for number, written in enumerate(world.store.commits):
        work = Work(database)
        claim = await work.claim(f"shard:0@{number}", range(SLOTS), TTL_MS)
        found, wanted = await work.recover(claim), fake.recover()
        assert steps_of(found.steps) == steps_of(wanted.journal), f"after {number} commits: {world!r}"
        mine, its = parts_of(found.snapshots), parts_of(wanted.parts)
        assert mine == its, f"after {number} commits: {world!r}"
        first = dict(found.first_segment)
        fake.apply(written, await work.commit(claim, written, first), first)
        late += len(written.scores.score)
    assert late > 0
