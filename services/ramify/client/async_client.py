import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Self, Unpack

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


class AsyncClient:
    """The job API of the gateway at `address` (HOST:PORT), for asyncio; `Client` says what each method does.

    Belongs to the event loop in which it is made.
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
        """See `Client`."""
        self.address = address
        self._timeout_s = timeout_s
        self._reconnect_timeout_s = reconnect_timeout_s
        self._metadata = key_metadata(address, api_key, tls)
        credentials = channel_credentials(tls)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self._stub = job_service_pb2_grpc.JobServiceStub(self._channel)

    @classmethod
    def from_environment(cls) -> Self:
        """See `Client.from_environment`."""
        return cls(**from_environment())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        await self._channel.close()

    async def submit(
        self,
        problems: Iterable[ProblemLike],
        spec: job_pb2.JobSpec | None = None,
        *,
        request_id: str | None = None,
        acknowledged: Callable[[int], None] | None = None,
        **fields: Unpack[SpecFields],
    ) -> job_pb2.Job:
        """See `Client.submit`; `problems` must not block for long."""
        # One message at a time: to write to a call that the gateway has just ended hides why it ended, and while every
        # message is answered, the gateway has no reason to end the call but that the connection breaks.
        upload = Upload(problems, spec or job_spec(**fields), request_id, window_chunks=1)
        lifeline = Lifeline(self.address, self._reconnect_timeout_s)
        while not upload.done:
            call = self._stub.CreateJob(metadata=self._metadata)
            try:
                while not upload.done:
                    while (request := upload.next_request()) is not None:
                        # A call that has ended refuses to be written to; the read says why it ended.
                        with contextlib.suppress(asyncio.InvalidStateError):
                            await call.write(request)
                    response = await call.read()
                    upload.acknowledge(response if isinstance(response, job_service_pb2.CreateJobResponse) else None)
                    lifeline.progressed()
                    if acknowledged is not None:
                        acknowledged(upload.problems_received)
                await call.done_writing()
                await call.read()  # lets the call end: dropped before, it would end as cancelled
            except grpc.RpcError as error:
                if not upload.done:
                    await self._wait_for_gateway(lifeline.broken(error), lifeline)
                    upload.rewind()
            finally:
                call.cancel()
        return upload.job

    async def job(self, job_id: str) -> job_pb2.Job:
        """See `Client.job`."""
        with translated(self.address):
            request = job_service_pb2.GetJobRequest(job_id=job_id)
            return (await self._stub.GetJob(request, timeout=self._timeout_s, metadata=self._metadata)).job

    async def jobs(self, state: job_pb2.JobState.ValueType | None = None) -> AsyncIterator[job_pb2.Job]:
        """See `Client.jobs`."""
        request = job_service_pb2.ListJobsRequest(page_size=PAGE_SIZE, state=state or job_pb2.JOB_STATE_UNSPECIFIED)
        while True:
            with translated(self.address):
                page = await self._stub.ListJobs(request, timeout=self._timeout_s, metadata=self._metadata)
            for job in page.jobs:
                yield job
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def cancel(self, job_id: str) -> job_pb2.Job:
        """See `Client.cancel`."""
        with translated(self.address):
            request = job_service_pb2.CancelJobRequest(job_id=job_id)
            return (await self._stub.CancelJob(request, timeout=self._timeout_s, metadata=self._metadata)).job

    async def watch(self, job_id: str, cursor: int = 0) -> AsyncIterator[job_pb2.JobEvent]:
        """See `Client.watch`."""
        lifeline = Lifeline(self.address, self._reconnect_timeout_s)
        while True:
            request = job_service_pb2.WatchJobRequest(job_id=job_id, cursor=cursor)
            call = self._stub.WatchJob(request, timeout=WATCH_TIMEOUT_S, metadata=self._metadata)
            try:
                async for response in call:
                    cursor = response.event.cursor
                    lifeline.progressed()
                    yield response.event
                return
            except grpc.RpcError as error:
                if status_code(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
                    lifeline.progressed()
                else:
                    await self._wait_for_gateway(lifeline.broken(error), lifeline)
            finally:
                call.cancel()

    async def results(self, job_id: str) -> AsyncIterator[job_pb2.Result]:
        """See `Client.results`."""
        request = job_service_pb2.ListResultsRequest(job_id=job_id, page_size=PAGE_SIZE)
        while True:
            with translated(self.address):
                page = await self._stub.ListResults(request, timeout=self._timeout_s, metadata=self._metadata)
            for result in page.results:
                yield result
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def tree(self, job_id: str, problem_index: int) -> job_pb2.Tree:
        """See `Client.tree`."""
        with translated(self.address):
            request = job_service_pb2.GetTreeRequest(job_id=job_id, problem_index=problem_index)
            return (await self._stub.GetTree(request, timeout=self._timeout_s, metadata=self._metadata)).tree

    async def models(self) -> list[job_service_pb2.JobModel]:
        """See `Client.models`."""
        with translated(self.address):
            request = job_service_pb2.ListModelsRequest()
            return [*(await self._stub.ListModels(request, timeout=self._timeout_s, metadata=self._metadata)).models]

    async def _wait_for_gateway(self, failure: ClientError, lifeline: Lifeline) -> None:
        await asyncio.sleep(lifeline.pause_s)
        # gRPC reconnects, with its own backoff.
        try:
            await asyncio.wait_for(self._channel.channel_ready(), lifeline.patience_s)
        except TimeoutError:
            raise failure from None
