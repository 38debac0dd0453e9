"""A gateway in memory that keeps what the proto's comments promise, behind a real gRPC server on a free port."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Self

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from ramify.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

FINAL_STATES = (job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED)

#: Committed at 2026-01-01T00:00:00Z plus one second an event, so that what is printed is the same every time.
EPOCH_S = 1_767_225_600


@dataclass
class Faults:
    """What goes wrong, once each."""

    drop_upload_after_chunks: int | None = None
    drop_watch_after_events: int | None = None
    answer: tuple[grpc.StatusCode, str] | None = None
    """The next call of any kind fails with this, said by the gateway."""


@dataclass
class FakeJob:
    job: job_pb2.Job
    asked_spec: job_pb2.JobSpec
    problems: list[job_pb2.Problem] = field(default_factory=list)
    events: list[job_pb2.JobEvent] = field(default_factory=list)
    results: dict[int, job_pb2.Result] = field(default_factory=dict)
    trees: dict[int, job_pb2.Tree] = field(default_factory=dict)


class FakeGateway(job_service_pb2_grpc.JobServiceServicer):
    """Runs while its context is open; jobs end when `finish` is called, or at once with `finish_at_once`."""

    def __init__(self, *, finish_at_once: bool = False) -> None:
        self.finish_at_once = finish_at_once
        self.faults = Faults()
        self.jobs: dict[str, FakeJob] = {}
        self.requests: list[job_service_pb2.CreateJobRequest] = []
        self.watches: list[int] = []
        """The cursor of every watch that began."""
        self._changed = threading.Condition()
        self._port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """On the same port as before, if there was one."""
        self._server = grpc.server(ThreadPoolExecutor(max_workers=16))
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        self._server.start()

    def stop(self) -> None:
        """Breaks every connection."""
        if self._server is None:
            return
        stopped, self._server = self._server.stop(grace=None), None
        with self._changed:
            self._changed.notify_all()
        stopped.wait()

    # What tests do with jobs.

    def add_job(self, spec: job_pb2.JobSpec, problems: list[job_pb2.Problem], request_id: str = "") -> FakeJob:
        """A job that runs."""
        with self._changed:
            fake = self._make_job(request_id or f"request-{len(self.jobs)}", spec)
            fake.problems.extend(problems)
            self._start_job(fake)
            return fake

    def progress(self, fake: FakeJob, **counters: int) -> None:
        """Commits counters."""
        with self._changed:
            for name, value in counters.items():
                setattr(fake.job.progress, name, value)
            self._commit(fake)

    def notice(self, fake: FakeJob, kind: job_pb2.NoticeKind.ValueType, text: str, **counters: int) -> None:
        """Commits a notice, and counters with it."""
        with self._changed:
            for name, value in counters.items():
                setattr(fake.job.progress, name, value)
            self._commit(fake, job_pb2.Notice(kind=kind, text=text))

    def wait_for(self, fake: FakeJob, *waits: job_pb2.Wait) -> None:
        """From now on the job waits for this."""
        with self._changed:
            del fake.job.waits[:]
            fake.job.waits.extend(waits)

    def finish(self, fake: FakeJob, results: list[job_pb2.Result]) -> None:
        """Commits the results and ends the job."""
        with self._changed:
            self._finish(fake, results)

    def wait_for_watch(self, count: int) -> None:
        """Until so many watches have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.watches) >= count, timeout=10)

    # The API.

    def CreateJob(  # noqa: N802
        self, request_iterator: Iterator[job_service_pb2.CreateJobRequest], context: grpc.ServicerContext
    ) -> Iterator[job_service_pb2.CreateJobResponse]:
        fake: FakeJob | None = None
        for chunks, request in enumerate(request_iterator):
            with self._changed:
                self._fail_if_told(context)
                if self.faults.drop_upload_after_chunks == chunks:
                    self.faults.drop_upload_after_chunks = None
                    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                self.requests.append(request)
                if fake is None:
                    fake = self._job_of_request(request, context)
                self._take(fake, request, context)
                response = job_service_pb2.CreateJobResponse(job=fake.job, problems_received=len(fake.problems))
            yield response

    def GetJob(  # noqa: N802
        self, request: job_service_pb2.GetJobRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.GetJobResponse:
        with self._changed:
            return job_service_pb2.GetJobResponse(job=self._find(request.job_id, context).job)

    def ListJobs(  # noqa: N802
        self, request: job_service_pb2.ListJobsRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.ListJobsResponse:
        with self._changed:
            self._fail_if_told(context)
            jobs = [fake.job for fake in reversed(self.jobs.values()) if request.state in (0, fake.job.state)]
            start, end = _page(request.page_token, request.page_size or 50)
            return job_service_pb2.ListJobsResponse(jobs=jobs[start:end], next_page_token=str(end) if end < len(jobs) else "")

    def CancelJob(  # noqa: N802
        self, request: job_service_pb2.CancelJobRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.CancelJobResponse:
        with self._changed:
            fake = self._find(request.job_id, context)
            if fake.job.state not in FINAL_STATES:
                fake.job.state = job_pb2.JOB_STATE_CANCELLED
                self._commit(fake)
            return job_service_pb2.CancelJobResponse(job=fake.job)

    def WatchJob(  # noqa: N802
        self, request: job_service_pb2.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[job_service_pb2.WatchJobResponse]:
        with self._changed:
            fake = self._find(request.job_id, context)
            self.watches.append(request.cursor)
            self._changed.notify_all()
        cursor = request.cursor
        while True:
            with self._changed:
                while len(fake.events) <= cursor and fake.job.state not in FINAL_STATES and self._server is not None:
                    assert self._changed.wait(timeout=10)
                if len(fake.events) <= cursor:
                    return
                if self.faults.drop_watch_after_events == cursor:
                    self.faults.drop_watch_after_events = None
                    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                event = fake.events[cursor]
            cursor = event.cursor
            yield job_service_pb2.WatchJobResponse(event=event)

    def ListResults(  # noqa: N802
        self, request: job_service_pb2.ListResultsRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.ListResultsResponse:
        with self._changed:
            results = [result for _, result in sorted(self._find(request.job_id, context).results.items())]
            start, end = _page(request.page_token, request.page_size or 100)
            return job_service_pb2.ListResultsResponse(
                results=results[start:end], next_page_token=str(end) if end < len(results) else ""
            )

    def GetTree(  # noqa: N802
        self, request: job_service_pb2.GetTreeRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.GetTreeResponse:
        with self._changed:
            fake = self._find(request.job_id, context)
            if request.problem_index >= len(fake.problems):
                _abort(
                    context,
                    grpc.StatusCode.NOT_FOUND,
                    f"job {request.job_id} has no problem {request.problem_index}; it has {len(fake.problems)}",
                )
            problem = fake.problems[request.problem_index]
            bare = job_pb2.Tree(job_id=request.job_id, problem_index=request.problem_index, problem=problem)
            return job_service_pb2.GetTreeResponse(tree=fake.trees.get(request.problem_index, bare))

    def ListModels(  # noqa: N802
        self, request: job_service_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> job_service_pb2.ListModelsResponse:
        return job_service_pb2.ListModelsResponse(models=[job_service_pb2.JobModel(kind="generator", name="tiny24")])

    # Below, the lock is held.

    def _fail_if_told(self, context: grpc.ServicerContext) -> None:
        if self.faults.answer is not None:
            (code, message), self.faults.answer = self.faults.answer, None
            _abort(context, code, message)

    def _find(self, job_id: str, context: grpc.ServicerContext) -> FakeJob:
        self._fail_if_told(context)
        if job_id not in self.jobs:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"there is no job {job_id}; `ramify jobs` lists those there are")
        return self.jobs[job_id]

    def _job_of_request(self, request: job_service_pb2.CreateJobRequest, context: grpc.ServicerContext) -> FakeJob:
        if not request.request_id:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the first message needs a request_id")
        for fake in self.jobs.values():
            if fake.job.request_id == request.request_id:
                if fake.asked_spec != request.spec:
                    _abort(context, grpc.StatusCode.ALREADY_EXISTS, f"request {request.request_id} has another spec")
                return fake
        return self._make_job(request.request_id, request.spec)

    def _make_job(self, request_id: str, spec: job_pb2.JobSpec) -> FakeJob:
        job_id = f"job-{len(self.jobs) + 1}"
        job = job_pb2.Job(job_id=job_id, request_id=request_id, spec=spec, state=job_pb2.JOB_STATE_UPLOADING)
        job.create_time.seconds = EPOCH_S
        if not job.spec.search.HasField("n"):
            job.spec.search.n = 16
        self.jobs[job_id] = FakeJob(job, asked_spec=spec)
        return self.jobs[job_id]

    def _take(self, fake: FakeJob, request: job_service_pb2.CreateJobRequest, context: grpc.ServicerContext) -> None:
        if len(request.problems) > 10_000 or request.ByteSize() > 4 << 20:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the message is too large")
        if request.offset > len(fake.problems):
            _abort(context, grpc.StatusCode.OUT_OF_RANGE, f"offset {request.offset} leaves a gap")
        known = fake.problems[request.offset : request.offset + len(request.problems)]
        running = fake.job.state != job_pb2.JOB_STATE_UPLOADING
        if known != list(request.problems[: len(known)]) or (running and len(known) < len(request.problems)):
            _abort(context, grpc.StatusCode.ALREADY_EXISTS, f"request {fake.job.request_id} has other problems")
        for index, problem in enumerate(request.problems[len(known) :], start=len(fake.problems)):
            if not problem.text:
                del self.jobs[fake.job.job_id]
                _abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"problem {index} has no text")
            fake.problems.append(problem)
        if request.last and not running:
            if not fake.problems:
                del self.jobs[fake.job.job_id]
                _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "a job needs at least one problem")
            self._start_job(fake)
            if self.finish_at_once:
                self._finish(fake, [solved(index, problem) for index, problem in enumerate(fake.problems)])

    def _start_job(self, fake: FakeJob) -> None:
        fake.job.state = job_pb2.JOB_STATE_RUNNING
        fake.job.start_time.seconds = EPOCH_S
        fake.job.progress.problems_total = len(fake.problems)
        self._commit(fake)

    def _finish(self, fake: FakeJob, results: list[job_pb2.Result]) -> None:
        fake.results.update({result.problem_index: result for result in results})
        progress = fake.job.progress
        progress.problems_done = len(fake.results)
        progress.problems_solved = sum(r.verdict == job_pb2.VERDICT_CORRECT for r in fake.results.values())
        progress.problems_failed = sum(r.outcome == job_pb2.OUTCOME_FAILED for r in fake.results.values())
        progress.steps = sum(r.step_count for r in fake.results.values())
        progress.tokens = sum(r.tokens for r in fake.results.values())
        fake.job.state = job_pb2.JOB_STATE_DONE
        self._commit(fake)

    def _commit(self, fake: FakeJob, notice: job_pb2.Notice | None = None) -> None:
        event = job_pb2.JobEvent(cursor=len(fake.events) + 1, state=fake.job.state, progress=fake.job.progress, notice=notice)
        event.time.seconds = EPOCH_S + event.cursor
        if fake.job.state in FINAL_STATES:
            fake.job.finish_time.CopyFrom(event.time)
        fake.events.append(event)
        self._changed.notify_all()


def solved(index: int, problem: job_pb2.Problem) -> job_pb2.Result:
    """A right answer."""
    return job_pb2.Result(
        problem_index=index,
        problem=problem,
        outcome=job_pb2.OUTCOME_ANSWERED,
        answer="30-6=24:24",
        steps=["10-4=6:5 6 6", "6*5=30:6 30", "30-6=24:24"],
        score=0.98,
        verdict=job_pb2.VERDICT_CORRECT,
        step_count=63,
        tokens=812,
        answer_node_id=2**64 - 1 - index,
    )


def _page(token: str, size: int) -> tuple[int, int]:
    start = int(token or 0)
    return start, start + size


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    details = any_pb2.Any()
    number, _ = code.value
    status = status_pb2.Status(code=number, message=message, details=[details])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")
