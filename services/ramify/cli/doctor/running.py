"""Checks of services that run: the gateway, the verifier."""

import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ramify.cli.doctor.findings import Finding, Level, listed
from ramify.cli.trouble import wait_lines
from ramify.client.credentials import Metadata, channel_credentials, key_metadata
from ramify.client.errors import translated
from ramify.gateway.calls import VERSION_KEY
from ramify.store.jobs import ModelRow
from ramify.tls import ClientTls
from ramify.v1 import job_pb2, job_service_pb2
from ramify.v1.job_service_pb2_grpc import JobServiceStub
from ramify.verifier.client import VerifierClient
from ramify.verifier.errors import UnknownModelError, VerifierError

CALL_S = 5.0
CALLS = 5  # of which the middle one counts
SLOW_S = 0.25
JOBS_MAX = 500  # whose waits are asked of a gateway


@dataclass(frozen=True, slots=True)
class Service:
    """A service at an address."""

    address: str
    expected: bool  # whether it ought to run
    tls: ClientTls | None = None  # how to speak to it
    api_key: str | None = field(default=None, repr=False)

    def channel(self) -> grpc.aio.Channel:
        """A channel to it. Raises `InvalidRequest` if a file of its TLS can't be read."""
        credentials = channel_credentials(self.tls)
        if credentials is None:
            return grpc.aio.insecure_channel(self.address)
        return grpc.aio.secure_channel(self.address, credentials)

    @property
    def metadata(self) -> Metadata:
        """What calls carry. Raises `InvalidRequest` if the key can't be sent so."""
        return key_metadata(self.address, self.api_key, self.tls)


async def answers(service: Service, name: str) -> Finding:
    """Whether it is healthy, by the standard health service."""
    try:
        async with service.channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            status = (await stub.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)).status
    except grpc.aio.AioRpcError as error:
        return _no_answer(service, name, error)
    except ValueError as error:  # no address at all
        return Finding(name, Level.BAD, f"{service.address} is no address: {error}", remedy="give HOST:PORT")
    if status == health_pb2.HealthCheckResponse.SERVING:
        return Finding(name, Level.OK, f"serves at {service.address}")
    told = health_pb2.HealthCheckResponse.ServingStatus.Name(status).lower().replace("_", " ")
    return Finding(
        name,
        Level.BAD,
        f"the {name} at {service.address} is {told}",
        why="it is starting or stopping; until it serves, calls fail",
        remedy="look again in a few seconds, then at its log",
    )


def _no_answer(service: Service, name: str, error: grpc.aio.AioRpcError) -> Finding:
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Finding(name, Level.BAD, f"what serves at {service.address} is no {name}", remedy="give the right address")
    if not service.expected:
        return Finding(name, Level.SKIPPED, f"none answers at {service.address}, and none has to")
    slow = code is grpc.StatusCode.DEADLINE_EXCEEDED
    why = {
        "gateway": "nobody can submit or watch; jobs that run go on without it",
        "verifier": "no step can be scored: chains wait, and go on by themselves once it is back",
    }
    return Finding(
        name,
        Level.BAD,
        f"the {name} at {service.address} " + (f"has not answered within {CALL_S:g} s" if slow else "does not answer"),
        why=why.get(name, ""),
        remedy="`ramify up` starts a whole system and keeps it alive; else start it, or give the right address",
    )


@asynccontextmanager
async def _jobs(service: Service) -> AsyncIterator[Any]:
    """A stub of its job API; errors come as a client's."""
    with translated(service.address):
        async with service.channel() as channel:
            yield JobServiceStub(channel)


async def gateway_version(service: Service) -> Finding:
    """Whether it is of this version."""
    async with _jobs(service) as stub:
        call = stub.ListJobs(job_service_pb2.ListJobsRequest(page_size=1), timeout=CALL_S, metadata=service.metadata)
        await call
        trailers: Any = await call.trailing_metadata()  # pairs, whatever the stubs hold them for
    theirs, ours = next((str(value) for key, value in trailers if key == VERSION_KEY), ""), version("ramify")
    if theirs == ours:
        return Finding("gateway version", Level.OK, theirs)
    return Finding(
        "gateway version",
        Level.WARN,
        f"the gateway is of version {theirs}, this is {ours}" if theirs else f"the gateway is older than this, which is {ours}",
        why="what one of them knows the other may not",
        remedy="run the same version everywhere",
    )


async def gateway_latency(service: Service, clock: Callable[[], float] = time.perf_counter) -> Finding:
    """How long a cheap call takes: the newest job, read from the store."""
    taken_s = []
    async with _jobs(service) as stub:
        for _ in range(1 + CALLS):
            start_s = clock()
            await stub.ListJobs(job_service_pb2.ListJobsRequest(page_size=1), timeout=CALL_S, metadata=service.metadata)
            taken_s.append(clock() - start_s)
    middle_s = statistics.median(taken_s[1:])  # the first one connects
    if middle_s <= SLOW_S:
        return Finding("gateway latency", Level.OK, f"a read takes {middle_s * 1000:.1f} ms")
    return Finding(
        "gateway latency",
        Level.WARN,
        f"a read takes {middle_s * 1000:,.0f} ms",
        why="submissions and watches are as slow",
        remedy="look at the load of the gateway's host and of the database",
    )


async def gateway_waits(service: Service) -> Finding:
    """What the jobs wait for, as the gateway tells."""
    request = job_service_pb2.ListJobsRequest(page_size=JOBS_MAX, state=job_pb2.JOB_STATE_RUNNING)
    async with _jobs(service) as stub:
        jobs = (await stub.ListJobs(request, timeout=CALL_S, metadata=service.metadata)).jobs
    return waits_found({job.job_id: list(job.waits) for job in jobs if job.waits}, len(jobs), datetime.now(UTC))


def waits_found(waits: dict[str, list[job_pb2.Wait]], running: int, now: datetime) -> Finding:
    """What `running` jobs wait for, by job id."""
    if not waits:
        return Finding("waits", Level.OK, "no job waits for anything" if running else "no job runs")
    lines = [f"job {job_id}: {line}" for job_id, found in waits.items() for line in wait_lines(found, now)]
    return Finding(
        "waits",
        Level.WARN,
        f"{len(waits):,} of {running:,} running jobs wait for something",
        listed(lines),
        why="their chains stand still meanwhile; nothing is lost, and they go on by themselves once it is there",
        remedy="bring back what they wait for",
    )


async def verifier_models(service: Service, known: Sequence[ModelRow]) -> Finding:
    """Whether it has the models that the store says the system has, of the same revisions.

    Args:
        service: the verifier.
        known: the models of the store; none: there is no store to compare with.
    """
    wrong: list[str] = []
    async with VerifierClient(service.address) as client:
        has = (await client.get_model(deadline_ms=int(CALL_S * 1000))).models
        wanted = [model for model in known if model.role in ("verifier", "checker")]
        for model in wanted:
            try:
                theirs = (await client.get_model(model.name, deadline_ms=int(CALL_S * 1000))).revision
            except UnknownModelError:
                wrong.append(f"{model.name}, which jobs may ask for, is none of its models")
            except VerifierError as error:
                wrong.append(f"{model.name}: {error}")
            else:
                if theirs != model.revision:
                    wrong.append(f"{model.name} is of revision {theirs} there, and of {model.revision} for the scheduler")
    if not wrong:
        agree = " as the scheduler knows them" if wanted else ""
        return Finding("verifier models", Level.OK, f"{', '.join(has)}{agree}")
    return Finding(
        "verifier models",
        Level.BAD,
        f"the verifier at {service.address} has not the models that the scheduler knows",
        listed(wrong),
        why="a job keeps to the revisions that it began with: its chains wait until they are there",
        remedy="start the verifier with the models that the jobs began with, or restart the scheduler if the new ones are meant",
    )
