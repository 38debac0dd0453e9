"""The store in memory from all sides, for the conformance tests of every kind of store (tests/unit/store/stores.py)."""

from collections.abc import Mapping

import numpy as np

from ramify.scheduler.commands import Commit, JobDelta, NodeRows, ScoreRows
from ramify.store.commits import encode
from ramify.store.errors import JobNotFound
from ramify.store.leases import shard_of
from ramify.store.rows import timestamp
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.work import WaitingProblem
from ramify.v1 import job_pb2
from tests.simulation.memory_store import COUNTERS, RUNNING, Job, MemoryStore
from tests.simulation.memory_work import MemoryWork
from tests.simulation.store import rows_of

START_MS = 1_700_000_000_000


class MemoryKind:
    """See `tests.unit.store.stores.Store`."""

    def __init__(self, spec: job_pb2.JobSpec) -> None:
        """`spec`: of every job."""
        self._spec, self._now_ms = spec, START_MS
        self._store = MemoryStore(lambda: self._now_ms, laws=False)
        self.work = MemoryWork(self._store)

    def other_work(self) -> MemoryWork:
        """The same store for another process."""
        return MemoryWork(self._store)

    def advance(self, milliseconds: int) -> None:
        """Let time pass."""
        self._now_ms += milliseconds

    async def submit(self, problems: int, request_id: str, tenant: str = DEFAULT_TENANT, priority: int = 0) -> job_pb2.Job:
        """A job that runs."""
        waiting = {index: WaitingProblem(index, f"prompt of p{index}", f"answer to p{index}") for index in range(problems)}
        spec = job_pb2.JobSpec(priority=priority)
        spec.MergeFrom(self._spec)
        return self._message(self._store.create(f"job-{request_id}", waiting, spec, request_id, tenant))

    async def cancel(self, job_id: str) -> None:
        """End a job early."""
        self._store.cancel(job_id)

    async def job(self, job_id: str) -> job_pb2.Job:
        """A job as it is."""
        return self._message(self._find(job_id))

    async def history(self, job_id: str) -> list[job_pb2.JobEvent]:
        """All that has happened to it."""
        job = self._find(job_id)
        return [
            job_pb2.JobEvent(
                cursor=each.cursor,
                time=timestamp(each.at_ms),
                state=job_pb2.JobState.ValueType(each.state),
                progress=progress(job, each.counters),
                notice=job_pb2.Notice(kind=job_pb2.NoticeKind.ValueType(each.notice[0]), text=each.notice[1])
                if each.notice
                else None,
            )
            for each in job.events
        ]

    async def results(self, job_id: str) -> list[job_pb2.Result]:
        """Its results by problem."""
        job = self._find(job_id)
        found: list[job_pb2.Result] = []
        for index in sorted(job.ended):
            result = job_pb2.Result.FromString(result_body(job, index))
            problem = job.problems[index]
            result.problem.MergeFrom(job_pb2.Problem(text=problem.prompt.removeprefix("prompt of "), reference=problem.reference))
            found.append(result)
        return found

    async def tree(self, job_id: str, index: int) -> NodeRows:
        """The steps of a tree."""
        job = self._find(job_id)
        (tree,) = [tree for tree, known in job.trees.items() if known == index]
        return rows_of({name: step for name, step in self._store.data.steps.items() if name[0] == tree})

    def _find(self, job_id: str) -> Job:
        if job_id not in self._store.jobs:
            raise JobNotFound(job_id)
        return self._store.jobs[job_id]

    def _message(self, job: Job) -> job_pb2.Job:
        now = self._store.clock()
        waits = [
            job_pb2.Wait(
                what=wait.what,
                reason=wait.reason,
                count=wait.count,
                since_time=timestamp(wait.since_ms),
                shard=shard_of(owner),
            )
            for owner, shard in sorted(self._store.shards.items())
            if shard.expires_ms > now
            for wait in shard.waits
            if wait.job_id == job.job_id and job.state == RUNNING
        ]
        return job_pb2.Job(
            job_id=job.job_id,
            request_id=job.request_id,
            spec=job.spec,
            state=job_pb2.JobState.ValueType(job.state),
            progress=progress(job, job.counters),
            create_time=timestamp(job.started_ms),
            start_time=timestamp(job.started_ms),
            finish_time=timestamp(job.finished_ms),
            waits=waits,
            pins=job_pb2.Pins(generator=job.pins.generator, verifier=job.pins.verifier, checker=job.pins.checker),
        )


def progress(job: Job, counters: Mapping[str, int]) -> job_pb2.Progress:
    """Counters of a job as a message."""
    return job_pb2.Progress(
        problems_total=len(job.problems),
        problems_done=counters["done"],
        problems_solved=counters["solved"],
        problems_failed=counters["failed"],
        **{name: counters[name] for name in COUNTERS if name not in ("done", "solved", "failed")},
    )


def result_body(job: Job, index: int) -> bytes:
    """A result as the real store writes it."""
    ids, none = np.empty(0, np.uint64), np.empty(0, np.float32)
    no_scores = ScoreRows(ids, ids, none, none.astype(np.int32))
    commit = Commit(0, rows_of({}), no_scores, [JobDelta(job.job_id, 0, 0, [job.ended[index].result])])
    return encode(commit, {}).results[job.job_id][0]
