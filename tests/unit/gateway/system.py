"""A gateway in this process, a client with nothing of ours in it, and the store behind to look into."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import grpc
import pytest
from google.rpc import status_pb2
from prometheus_client import CollectorRegistry

from ramify.gateway.limits import GatewayLimits
from ramify.gateway.server import Gateway
from ramify.store.database import Database
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.work import Claim, Work
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from ramify.v1.job_service_pb2_grpc import JobServiceStub
from tests.unit.store.helpers import all_slots, commit, delta, result

Metadata = tuple[tuple[str, str], ...]

PATIENCE_S = 60  # how long a test waits for what must come
LIMITS = GatewayLimits(watches_max=3, uploads_max=3, poll_s=0.005)
SPEC = job_pb2.JobSpec(generator="tiny24", verifier="tiny24-prm", checker="countdown")


def problems(*texts: str) -> list[job_pb2.Problem]:
    return [job_pb2.Problem(text=text) for text in texts]


PUZZLES = problems("4 5 6 10", "1 2 3 4", "3 3 8 8")


def first(
    request_id: str = "request", spec: job_pb2.JobSpec = SPEC, some: Iterable[job_pb2.Problem] = (), last: bool = False
) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(request_id=request_id, spec=spec, problems=some, last=last)


def further(offset: int, *some: job_pb2.Problem, last: bool = False) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(offset=offset, problems=some, last=last)


class Upload:
    """A CreateJob call that is open."""

    def __init__(self, stub: Any, metadata: Metadata = ()) -> None:
        self.call = stub.CreateJob(metadata=metadata)

    async def send(self, request: pb.CreateJobRequest) -> pb.CreateJobResponse:
        await self.call.write(request)
        answer = await self.call.read()
        assert isinstance(answer, pb.CreateJobResponse), "the gateway ended the call"
        return answer

    async def end(self) -> None:
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK


class System:
    MODELS: ClassVar = (
        ModelRow("generator", "tiny24", "1", "\n", "countdown"),
        ModelRow("verifier", "tiny24-prm", "1", "", ""),
        ModelRow("checker", "countdown", "1", "", ""),
    )

    def __init__(self, database: Database, gateway: Gateway, address: str, channel: Any) -> None:
        self.database, self.gateway, self.address, self.channel = database, gateway, address, channel
        self.stub: Any = JobServiceStub(channel)
        self.jobs, self.work = Jobs(database), Work(database)
        self._claim: Claim | None = None
        self._sequence = 0

    def upload(self, metadata: Metadata = ()) -> Upload:
        return Upload(self.stub, metadata)

    async def create(self, *requests: pb.CreateJobRequest, metadata: Metadata = ()) -> job_pb2.Job:
        """One call from beginning to end; the job after it."""
        upload = self.upload(metadata)
        answers = [await upload.send(request) for request in requests]
        await upload.end()
        return answers[-1].job

    async def running_job(self, request_id: str = "request", metadata: Metadata = ()) -> job_pb2.Job:
        return await self.create(first(request_id, SPEC, PUZZLES, last=True), metadata=metadata)

    async def finish(self, job: job_pb2.Job, *indexes: int) -> None:
        """Commit results, as a shard does."""
        self._claim = self._claim or await all_slots(self.work)
        self._sequence += 1
        results = [result(job, index) for index in indexes]
        await self.work.commit(self._claim, commit(self._sequence, delta(job, *results)), {})

    async def listed(self) -> list[job_pb2.Job]:
        return (await self.jobs.page(1000, None, 0))[0]


@asynccontextmanager
async def running(
    url: str, limits: GatewayLimits, registry: CollectorRegistry | None = None, *, keys: bool = False
) -> AsyncIterator[System]:
    database = Database(url)
    await database.migrate()
    gateway = Gateway(database, limits, registry=registry, keys=keys)
    port = await gateway.start("127.0.0.1:0")
    try:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield System(database, gateway, address, channel)
    finally:
        await gateway.stop(0)
        await database.close()


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call that fails; it says the same as google.rpc.Status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


def told(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    code, details = error.code(), error.details() or ""
    ((_, body),) = ((key, value) for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
    assert isinstance(body, bytes)
    status = status_pb2.Status.FromString(body)
    number: int = code.value[0]
    assert (status.code, status.message) == (number, details)
    return code, details
