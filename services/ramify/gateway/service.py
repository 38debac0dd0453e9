"""JobService: a stateless layer over the store. Submitting is an insert; watching is a read."""

import asyncio
import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator

import grpc

from ramify.gateway.admission import REQUEST_ID_MAX, check_budget, check_problems, fill_spec
from ramify.gateway.errors import InvalidRequest, TooManyWatches
from ramify.gateway.trees import tree_message
from ramify.scheduler.forest.ids import root_ids
from ramify.store.errors import StoreError
from ramify.store.jobs import FINAL, Jobs
from ramify.v1 import job_pb2, job_service_pb2
from ramify.v1.job_service_pb2_grpc import JobServiceServicer

import numpy as np

Context = grpc.aio.ServicerContext[object, object]

POLL_S = 0.1  # how far a watch may lag behind a commit
WATCHES_MAX = 1000
INDEX_MAX = 2**62


class JobService(JobServiceServicer):
    """See the module and `job_service.proto`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self._watches = 0

    async def CreateJob(  # noqa: N802
        self, request_iterator: AsyncIterator[job_service_pb2.CreateJobRequest], context: Context
    ) -> AsyncIterator[job_service_pb2.CreateJobResponse]:
        """See `job_service.proto`."""
        job: job_pb2.Job | None = None
        async for request in request_iterator:
            try:
                job = await self._receive(job, request)
            except (InvalidRequest, StoreError) as error:
                # What is wrong with a problem stays wrong: nothing half-done is left behind. A conflict is another
                # matter: it says that the job belongs to somebody else's request.
                if job is not None and isinstance(error, InvalidRequest):
                    await self.jobs.discard(job.job_id)
                raise
            yield job_service_pb2.CreateJobResponse(job=job, problems_received=job.progress.problems_total)
        if job is None:
            raise InvalidRequest("the call brought no message; the first one carries request_id and spec")

    async def _receive(self, job: job_pb2.Job | None, request: job_service_pb2.CreateJobRequest) -> job_pb2.Job:
        models = await self.jobs.models()
        if job is None:
            if not 1 <= len(request.request_id) <= REQUEST_ID_MAX:
                raise InvalidRequest(f"request_id must have 1 to {REQUEST_ID_MAX} characters; a UUID is best")
            spec = fill_spec(request.spec, models)
            check_problems(request.problems, request.offset, spec, models)  # before a job is made for them
            job = await self.jobs.create(request.request_id, request.spec, spec)
        if not request.problems and not request.last:
            return job
        if request.offset > INDEX_MAX:
            raise InvalidRequest(f"offset is {request.offset}, which no job reaches")
        chunk = check_problems(request.problems, request.offset, job.spec, models)
        if request.last:
            check_budget(job.spec, max(job.progress.problems_total, request.offset + len(chunk)))
        return await self.jobs.append(job.job_id, request.offset, chunk, request.last)

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Context) -> job_service_pb2.GetJobResponse:  # noqa: N802
        """See `job_service.proto`."""
        return job_service_pb2.GetJobResponse(job=await self.jobs.get(request.job_id))

    async def ListJobs(self, request: job_service_pb2.ListJobsRequest, context: Context) -> job_service_pb2.ListJobsResponse:  # noqa: N802
        """See `job_service.proto`."""
        before = read_token(request.page_token) if request.page_token else None
        found, following = await self.jobs.page(page_size(request.page_size, 50), before, request.state)
        return job_service_pb2.ListJobsResponse(jobs=found, next_page_token=token(following))

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: Context) -> job_service_pb2.CancelJobResponse:  # noqa: N802
        """See `job_service.proto`."""
        return job_service_pb2.CancelJobResponse(job=await self.jobs.cancel(request.job_id))

    async def WatchJob(  # noqa: N802
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        """See `job_service.proto`."""
        if self._watches >= WATCHES_MAX:
            raise TooManyWatches(f"this gateway holds {WATCHES_MAX} watches, which is its bound: try again later")
        cursor, state = min(request.cursor, INDEX_MAX), 0
        self._watches += 1
        try:
            while state not in FINAL:
                for event in await self.jobs.history(request.job_id, cursor):
                    yield job_service_pb2.WatchJobResponse(event=event)
                    cursor, state = event.cursor, event.state
                else:
                    job = await self.jobs.get(request.job_id)
                    ended = job.state in FINAL and not await self.jobs.history(request.job_id, cursor, limit=1)
                    state = job.state if ended else state
                    await asyncio.sleep(0 if ended else POLL_S)
        finally:
            self._watches -= 1

    async def ListResults(  # noqa: N802
        self, request: job_service_pb2.ListResultsRequest, context: Context
    ) -> job_service_pb2.ListResultsResponse:
        """See `job_service.proto`."""
        after = read_token(request.page_token) if request.page_token else -1
        found, following = await self.jobs.results(request.job_id, page_size(request.page_size, 100), after)
        return job_service_pb2.ListResultsResponse(results=found, next_page_token=token(following))

    async def GetTree(self, request: job_service_pb2.GetTreeRequest, context: Context) -> job_service_pb2.GetTreeResponse:  # noqa: N802
        """See `job_service.proto`."""
        job, problem, result, nodes = await self.jobs.tree(request.job_id, min(request.problem_index, INDEX_MAX))
        root = root_ids(job.spec.search.seed, np.array([request.problem_index], np.int64))
        tree = tree_message(nodes, int(root[0]))
        tree.job_id, tree.problem_index = job.job_id, request.problem_index
        tree.problem.CopyFrom(problem)
        if result is not None:
            tree.result.CopyFrom(result)
        return job_service_pb2.GetTreeResponse(tree=tree)


def page_size(asked: int, default: int) -> int:
    """The size of a page, within its bound."""
    return min(asked or default, 1000)


def token(place: int | None) -> str:
    """A page token; empty where there is no further page."""
    return "" if place is None else urlsafe_b64encode(str(place).encode()).decode()


def read_token(text: str) -> int:
    """The place that a page token names. Raises `InvalidRequest`."""
    try:
        return int(urlsafe_b64decode(text.encode()))
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(f"page_token {text!r} is none of ours: leave it empty for the first page") from error
