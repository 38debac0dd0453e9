"""Jobs that come whole and at once, and share transactions."""

import asyncio

from sqlalchemy import event

from ramify.store.audit import Actor, Audit
from ramify.store.database import Database
from ramify.store.errors import Conflict, QuotaExceeded
from ramify.store.jobs import Jobs
from ramify.store.submissions import BYTES_MAX, PROBLEMS_MAX, Chunk, Submission
from ramify.store.tenants import Tenant, Tenants
from ramify.store.uploads import Uploads
from ramify.v1 import job_pb2
from tests.unit.store.helpers import FILLED, SPEC, chunk, count, problem

OTHER_SPEC = job_pb2.JobSpec(name="another")


class Commits:
    """Counts the transactions of a database."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        event.listen(database.engine.sync_engine, "commit", self._one)

    def _one(self, *_: object) -> None:
        self.count += 1


async def test_submissions_at_once_are_as_those_one_by_one(database: Database) -> None:
    await Tenants(database).put(Tenant("small", jobs_max=1))
    anybody, small = Uploads(database), Uploads(database, by=Actor("small", "key"))
    commits = Commits(database)
    calls = [
        anybody.create("first", SPEC, FILLED, chunk(0, "p0", last=True), "a"),
        anybody.create("b", SPEC, FILLED, chunk(0, "p0", "p1", last=True), "a"),
        anybody.create("a", SPEC, FILLED, chunk(0, "p0", last=True), "a"),
        anybody.create("b", SPEC, FILLED, chunk(0, "p0", "p1", last=True), "b"),
        anybody.create("b", OTHER_SPEC, FILLED, chunk(0, "p0", "p1", last=True), "c"),
        anybody.create("b", SPEC, FILLED, chunk(0, "another", last=True), "d"),
        small.create("y", SPEC, FILLED, chunk(0, "p0", last=True), "a"),
        small.create("x", SPEC, FILLED, chunk(0, "p0", "p1", "p2", last=True), "b"),
        small.create("x", SPEC, FILLED, chunk(0, "p0", "p1", "p2", last=True), "c"),
    ]
    first, b, a, again, other_spec, other_problems, y, x, x_again = await asyncio.gather(*calls, return_exceptions=True)
    assert commits.count < len(calls)
    assert isinstance(b, job_pb2.Job)
    assert isinstance(x, job_pb2.Job)
    assert again == b
    assert x_again == x
    assert [type(each) for each in (other_spec, other_problems, y)] == [Conflict, Conflict, QuotaExceeded]
    assert [b.progress.problems_total, x.progress.problems_total, x.tenant] == [2, 3, "small"]
    for job in (first, a, b, x):
        assert isinstance(job, job_pb2.Job)
        assert await Jobs(database).get(job.job_id) == job
        (began,) = (await Jobs(database).history(job.job_id, 0)).events
        assert (began.cursor, began.state, began.progress) == (1, job_pb2.JOB_STATE_RUNNING, job.progress)
    assert [await count(database, table) for table in ("jobs", "problems", "events")] == [4, 7, 4]
    acts = [(entry.action, entry.key_id, entry.subject, entry.detail) for entry in await Audit(database).latest(9, "small")]
    assert acts == [("CreateJob", "key", x.job_id, "problems: 3")]


def test_what_is_stored_with_others_is_small_and_whole() -> None:
    assert Chunk(0, [problem("p0", "name"), problem("p1"), problem("p2")], True).whole
    others = [
        chunk(0, "p0"),
        chunk(1, "p0", last=True),
        chunk(0, last=True),
        Chunk(0, [problem("p0", "name"), problem("p1", "name")], True),
    ]
    assert not any(each.whole for each in others)

    large = job_pb2.JobSpec(name="s" * BYTES_MAX)
    assert submission(*["p"] * PROBLEMS_MAX).small
    assert not submission(*["p"] * (PROBLEMS_MAX + 1)).small
    assert not submission("p" * BYTES_MAX).small
    assert not submission("p", spec=large).small
    assert not submission("p", asked=large).small


def submission(*texts: str, asked: job_pb2.JobSpec = SPEC, spec: job_pb2.JobSpec = FILLED) -> Submission:
    return Submission("request", "acme", None, asked.SerializeToString(), spec, chunk(0, *texts).problems, "call")
