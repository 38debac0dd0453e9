"""JobService: a stateless layer over the store. Submitting is an insert; watching is a read."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc
import numpy as np

from ramify import tracing
from ramify.gateway.access import caller
from ramify.gateway.admission import check_budget, check_problems, check_request_id, fill_spec
from ramify.gateway.errors import InvalidRequest, Stopping, UploadIdle
from ramify.gateway.limits import GatewayLimits
from ramify.gateway.metrics import Metrics
from ramify.gateway.pages import no_place, page_size, read_index, read_token, token
from ramify.gateway.places import Places
from ramify.gateway.trees import tree_message
from ramify.gateway.watching import Pulse
from ramify.scheduler.forest.ids import root_ids
from ramify.scheduler.spec import generators_of
from ramify.store.database import Database
from ramify.store.errors import JobNotFound, UploadError
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.rows import FINAL
from ramify.store.standing import Standing
from ramify.store.submissions import Chunk, NewProblem
from ramify.store.uploads import Uploads
from ramify.v1 import job_pb2, job_service_pb2
from ramify.v1.job_service_pb2_grpc import JobServiceServicer

# A string, for only the stubs know that it is generic.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class JobService(JobServiceServicer):
    """See the module and `job_service.proto`."""

    def __init__(self, database: Database, limits: GatewayLimits, metrics: Metrics) -> None:
        self._database, self._standing = database, Standing(database)
        self._limits, self._metrics = limits, metrics
        self._pulse = Pulse(Jobs(database), limits.poll_s)
        self._open_uploads = Places("uploads", limits.uploads_max, limits.tenant_uploads_max)
        self._open_watches = Places("watches", limits.watches_max, limits.tenant_watches_max)
        self._read_trees = Places("reads of trees", limits.trees_max, limits.tenant_trees_max)
        self._awaited: set[asyncio.Timeout] = set()  # uploads whose next message is not there yet
        self._stopping = False

    @property
    def _jobs(self) -> Jobs:
        """Those that the caller may see."""
        return Jobs(self._database, by=caller().actor)

    @property
    def _uploads(self) -> Uploads:
        """Those of the caller."""
        return Uploads(self._database, by=caller().actor)

    def stop(self) -> None:
        """End the calls that would stay open by themselves."""
        self._stopping = True
        self._pulse.stop()
        for wait in self._awaited:
            wait.reschedule(asyncio.get_running_loop().time())

    async def CreateJob(  # noqa: N802
        self, request_iterator: AsyncIterator[job_service_pb2.CreateJobRequest], context: Context
    ) -> AsyncIterator[job_service_pb2.CreateJobResponse]:
        """See `job_service.proto`."""
        call = secrets.token_hex(16)
        job: job_pb2.Job | None = None
        with self._open_uploads.one(caller().actor.tenant):
            while (request := await self._next(request_iterator)) is not None:
                try:
                    job = await (self._append(job, request, call) if job is not None else self._create(request, call, context))
                except (InvalidRequest, UploadError):
                    # What is wrong with a problem stays wrong: nothing half-done is left behind. Any other error leaves an
                    # upload that can go on.
                    if job is not None:
                        await self._uploads.discard(job.job_id, call)
                    raise
                yield job_service_pb2.CreateJobResponse(job=job, problems_received=job.progress.problems_total)
        if job is None:
            raise InvalidRequest("the call brought no message; the first one carries request_id and spec")

    async def _next(self, requests: AsyncIterator[job_service_pb2.CreateJobRequest]) -> job_service_pb2.CreateJobRequest | None:
        try:
            async with asyncio.timeout(0 if self._stopping else self._limits.upload_idle_s) as wait:
                self._awaited.add(wait)
                try:
                    return await anext(requests, None)
                finally:
                    self._awaited.discard(wait)
        except TimeoutError:
            go_on = "go on with a new call with the same request_id"
            if self._stopping:
                raise Stopping(f"this gateway is stopping: {go_on}") from None
            raise UploadIdle(f"the upload has brought nothing for {self._limits.upload_idle_s:g} s: {go_on}") from None

    async def _create(self, request: job_service_pb2.CreateJobRequest, call: str, context: Context) -> job_pb2.Job:
        began_ns = time.time_ns()
        check_request_id(request.request_id)
        job = await self._uploads.find(request.request_id, request.spec)
        # A job that is there keeps its spec, whatever the models of today.
        models = await self._jobs.models()
        spec = job.spec if job is not None else fill_spec(request.spec, models)
        chunk = self._chunk(request, spec, job, models)
        made = await self._uploads.create(request.request_id, request.spec, spec, chunk, call)
        if job is None:
            tracing.begun(made.job_id, "CreateJob", began_ns, tracing.told_by(context), problems=len(request.problems))
        return made

    async def _append(self, job: job_pb2.Job, request: job_service_pb2.CreateJobRequest, call: str) -> job_pb2.Job:
        if request.request_id not in ("", job.request_id):
            raise InvalidRequest(f"request_id {request.request_id!r:.200} is another job's: make a call for each job")
        chunk = self._chunk(request, job.spec, job, await self._jobs.models())
        return await self._uploads.append(job.job_id, chunk, call)

    @staticmethod
    def _chunk(
        request: job_service_pb2.CreateJobRequest, spec: job_pb2.JobSpec, job: job_pb2.Job | None, models: Sequence[ModelRow]
    ) -> Chunk:
        if job is not None and job.state != job_pb2.JOB_STATE_UPLOADING:
            # The store only compares with what it has; and a repeated request must not fail for models that have gone.
            return Chunk(request.offset, [NewProblem(problem, "") for problem in request.problems], request.last)
        problems = check_problems(request.problems, request.offset, spec, models)
        if request.last:
            received = job.progress.problems_total if job is not None else 0
            check_budget(spec, request.offset + len(problems) if problems else received)
        return Chunk(request.offset, problems, request.last)

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Context) -> job_service_pb2.GetJobResponse:  # noqa: N802
        """See `job_service.proto`."""
        return job_service_pb2.GetJobResponse(job=await self._jobs.status(request.job_id))

    async def ListJobs(self, request: job_service_pb2.ListJobsRequest, context: Context) -> job_service_pb2.ListJobsResponse:  # noqa: N802
        """See `job_service.proto`."""
        if request.state not in job_pb2.JobState.values():
            names = ", ".join(job_pb2.JobState.keys()[1:])
            raise InvalidRequest(f"state is {request.state}, which this version doesn't know; it knows {names}")
        after = read_token("jobs", request.page_token)
        try:
            found, following = await self._jobs.page(page_size(request.page_size, 50), after, request.state)
        except JobNotFound:
            raise no_place(request.page_token) from None
        await self._tell_waits(found)
        return job_service_pb2.ListJobsResponse(jobs=found, next_page_token=token("jobs", following))

    async def _tell_waits(self, jobs: Sequence[job_pb2.Job]) -> None:
        """Add to those of them that run what no shard tells."""
        running = [job for job in jobs if job.state == job_pb2.JOB_STATE_RUNNING]
        silent = await self._standing.silent() if running else []
        for job in running:
            job.waits.extend(silent)

    async def CancelJob(self, request: job_service_pb2.CancelJobRequest, context: Context) -> job_service_pb2.CancelJobResponse:  # noqa: N802
        """See `job_service.proto`."""
        return job_service_pb2.CancelJobResponse(job=await self._jobs.cancel(request.job_id))

    async def WatchJob(  # noqa: N802
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        """See `job_service.proto`."""
        cursor = request.cursor
        with self._open_watches.one(caller().actor.tenant):
            history = await self._jobs.history(request.job_id, cursor)
            if cursor > history.cursor:
                raise InvalidRequest(
                    f"cursor is {cursor}, but the history of job {request.job_id} ends at {history.cursor}: "
                    "give the last one that you saw, or 0 for the whole history"
                )
            waited = False
            while True:
                for event in history.events:
                    yield job_service_pb2.WatchJobResponse(event=event)
                    cursor = event.cursor
                if waited and history.events:
                    self._metrics.watched(history.events[0].time.ToMilliseconds() / 1000)
                if cursor < history.cursor:  # more than one read brings
                    history = await self._jobs.history(request.job_id, cursor)
                elif history.state in FINAL:
                    return
                else:
                    history, waited = await self._pulse.beyond(request.job_id, cursor), True

    async def ListResults(  # noqa: N802
        self, request: job_service_pb2.ListResultsRequest, context: Context
    ) -> job_service_pb2.ListResultsResponse:
        """See `job_service.proto`."""
        after = read_index("results", request.page_token)
        size = page_size(request.page_size, 100)
        found, following = await self._jobs.results(request.job_id, size, -1 if after is None else after)
        return job_service_pb2.ListResultsResponse(results=found, next_page_token=token("results", following))

    async def GetTree(self, request: job_service_pb2.GetTreeRequest, context: Context) -> job_service_pb2.GetTreeResponse:  # noqa: N802
        """See `job_service.proto`."""
        with self._read_trees.one(caller().actor.tenant):
            found = await self._jobs.tree(request.job_id, request.problem_index)
            root = int(root_ids(found.job.spec.search.seed, np.array([request.problem_index], np.int64))[0])
            # In a thread: a large tree takes seconds, and would hold up every other call.
            generators = generators_of(found.job.spec) if found.job.spec.generators else ()
            tree = await asyncio.to_thread(tree_message, found.nodes, root, generators)
            tree.job_id, tree.problem_index = found.job.job_id, request.problem_index
            tree.problem.CopyFrom(found.problem)
            tree.damage = found.damage
            if found.result is not None:
                tree.result.CopyFrom(found.result)
            return job_service_pb2.GetTreeResponse(tree=tree)

    async def ListModels(  # noqa: N802
        self, request: job_service_pb2.ListModelsRequest, context: Context
    ) -> job_service_pb2.ListModelsResponse:
        """See `job_service.proto`."""
        found = await self._jobs.models()
        models = [job_service_pb2.JobModel(kind=row.role, name=row.name, revision=row.revision) for row in found]
        return job_service_pb2.ListModelsResponse(models=models)
