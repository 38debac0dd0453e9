import functools
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from ramify.client.connection import (
    CALL_TIMEOUT_S,
    CHANNEL_OPTIONS,
    PAGE_SIZE,
    RECONNECT_TIMEOUT_S,
    WATCH_TIMEOUT_S,
    Lifeline,
)
from ramify.client.credentials import channel_credentials, key_metadata
from ramify.client.errors import ClientError, status_code, translated
from ramify.client.settings import from_environment
from ramify.client.spec import SpecFields, job_spec
from ramify.client.upload import ProblemLike, Upload
from ramify.tls import ClientTls
from ramify.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

_Request = TypeVar("_Request")
_Call = TypeVar("_Call")


class Client:
    """The job API of the gateway at `address` (HOST:PORT), for plain code; `AsyncClient` has the same methods.

    Threads may share a client. Every method raises `ClientError`s and no other error of its own.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
    ) -> None:
        """Connects at the first call.

        Args:
            address: where the gateway is.
            api_key: to be shown with every call; to another host over TLS alone.
            tls: whom to trust and what to show; None: no TLS.
            timeout_s: bound of a call that isn't a stream.
            reconnect_timeout_s: how long a stream that broke waits for the gateway.

        Raises:
            InvalidRequest: the key or a file of `tls` can't be used.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s
        self._metadata = key_metadata(address, api_key, tls)
        credentials = channel_credentials(tls)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self._stub = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ramify-client")

    @classmethod
    def from_environment(cls) -> Self:
        """A client as RAMIFY_ADDRESS, RAMIFY_API_KEY or RAMIFY_API_KEY_FILE, and RAMIFY_TLS_CA and its like say.

        Raises:
            InvalidRequest: they can't be used.
        """
        return cls(**from_environment())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Breaks off what is under way and disconnects; jobs run on."""
        self._starter.shutdown()
        self._channel.close()

    def submit(
        self,
        problems: Iterable[ProblemLike],
        spec: job_pb2.JobSpec | None = None,
        *,
        request_id: str | None = None,
        acknowledged: Callable[[int], None] | None = None,
        **fields: Unpack[SpecFields],
    ) -> job_pb2.Job:
        """Makes a job and uploads its problems; returns once all are durable and the job runs.

        An upload that breaks is taken up again where it stood. After an error, or from another process, the same
        call with the same request_id ends it, or finds the job that is there.

        Args:
            problems: consumed once, as the gateway takes them; only a bounded window of them is held.
            spec: what to do, or give its `fields` instead.
            request_id: names the job for idempotency; a new UUID by default.
            acknowledged: called with the number of durable problems as it grows.
            fields: see `SpecFields`.

        Raises:
            InvalidRequest: a field or a problem is wrong, here or in the gateway's eyes; nothing half-done stays.
            AlreadyExists: the request_id stands for another job.
        """
        upload = Upload(problems, spec or job_spec(**fields), request_id)
        lifeline = Lifeline(self.address, self._reconnect_timeout_s)
        while not upload.done:
            requests = queue.SimpleQueue[job_service_pb2.CreateJobRequest | None]()
            call = self._started(functools.partial(self._stub.CreateJob, metadata=self._metadata), iter(requests.get, None))
            try:
                while not upload.done:
                    while (request := upload.next_request()) is not None:
                        requests.put(request)
                    upload.acknowledge(next(call, None))
                    lifeline.progressed()
                    if acknowledged is not None:
                        acknowledged(upload.problems_received)
                requests.put(None)
                next(call, None)  # lets the call end: dropped before, it would end as cancelled
            except grpc.RpcError as error:
                if not upload.done:
                    self._wait_for_gateway(lifeline.broken(error), lifeline)
                    upload.rewind()
            finally:
                requests.put(None)  # ends the thread in which gRPC reads them
                call.cancel()
        return upload.job

    def job(self, job_id: str) -> job_pb2.Job:
        """One job. Raises `NotFound`."""
        with translated(self.address):
            request = job_service_pb2.GetJobRequest(job_id=job_id)
            return self._stub.GetJob(request, timeout=self._timeout_s, metadata=self._metadata).job

    def jobs(self, state: job_pb2.JobState.ValueType | None = None) -> Iterator[job_pb2.Job]:
        """Jobs, the newest first; those in one state if you say so."""
        request = job_service_pb2.ListJobsRequest(page_size=PAGE_SIZE, state=state or job_pb2.JOB_STATE_UNSPECIFIED)
        while True:
            with translated(self.address):
                page = self._stub.ListJobs(request, timeout=self._timeout_s, metadata=self._metadata)
            yield from page.jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, job_id: str) -> job_pb2.Job:
        """Ends a job early and returns it; one that has ended stays as it is. Raises `NotFound`."""
        with translated(self.address):
            request = job_service_pb2.CancelJobRequest(job_id=job_id)
            return self._stub.CancelJob(request, timeout=self._timeout_s, metadata=self._metadata).job

    def watch(self, job_id: str, cursor: int = 0) -> Iterator[job_pb2.JobEvent]:
        """The job's history after `cursor`, then live; ends with the job. A watch that breaks goes on by itself.

        Raises:
            NotFound: no such job.
            Unavailable: the gateway was there and didn't come back in time.
        """
        lifeline = Lifeline(self.address, self._reconnect_timeout_s)
        while True:
            start = functools.partial(self._stub.WatchJob, timeout=WATCH_TIMEOUT_S, metadata=self._metadata)
            call = self._started(start, job_service_pb2.WatchJobRequest(job_id=job_id, cursor=cursor))
            try:
                for response in call:
                    cursor = response.event.cursor
                    lifeline.progressed()
                    yield response.event
                return
            except grpc.RpcError as error:
                if status_code(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
                    lifeline.progressed()
                else:
                    self._wait_for_gateway(lifeline.broken(error), lifeline)
            finally:
                call.cancel()  # for those who stop reading

    def results(self, job_id: str) -> Iterator[job_pb2.Result]:
        """The results that are there, by problem index. Raises `NotFound`."""
        request = job_service_pb2.ListResultsRequest(job_id=job_id, page_size=PAGE_SIZE)
        while True:
            with translated(self.address):
                page = self._stub.ListResults(request, timeout=self._timeout_s, metadata=self._metadata)
            yield from page.results
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def tree(self, job_id: str, problem_index: int) -> job_pb2.Tree:
        """All that was sampled for one problem so far. Raises `NotFound`."""
        with translated(self.address):
            request = job_service_pb2.GetTreeRequest(job_id=job_id, problem_index=problem_index)
            return self._stub.GetTree(request, timeout=self._timeout_s, metadata=self._metadata).tree

    def models(self) -> list[job_service_pb2.JobModel]:
        """The models that a job may name."""
        with translated(self.address):
            request = job_service_pb2.ListModelsRequest()
            return [*self._stub.ListModels(request, timeout=self._timeout_s, metadata=self._metadata).models]

    def _started(self, start: Callable[[_Request], _Call], request: _Request) -> _Call:
        # Not in the main thread: Ctrl-C while gRPC starts a stream would leave one that nobody reads, and to close the
        # channel would wait for it for ever.
        return self._starter.submit(start, request).result()

    def _wait_for_gateway(self, failure: ClientError, lifeline: Lifeline) -> None:
        time.sleep(lifeline.pause_s)
        # gRPC reconnects, with its own backoff.
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=lifeline.patience_s)
        except grpc.FutureTimeoutError:
            raise failure from None
        finally:
            ready.cancel()
