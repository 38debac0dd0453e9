"""The gateway as a process of its own, with health and reflection, seen by a client with nothing of ours in it."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from ramify.v1.job_service_pb2_grpc import JobServiceStub
from tests.unit.gateway.system import PATIENCE_S, PUZZLES, System, Upload, first, told

SERVICE = "ramify.v1.JobService"


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(2 * PATIENCE_S):
        yield


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'state.db'}"


class GatewayProcess:
    def __init__(self, process: Process, address: str) -> None:
        self.process, self.address = process, address

    async def ended(self) -> tuple[int, str]:
        """Exit code and what it said on standard error."""
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode()
        return await self.process.wait(), said


async def start(*arguments: str) -> Process:
    command = (sys.executable, "-m", "ramify.gateway", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=DEVNULL, stderr=PIPE)


@asynccontextmanager
async def gateway(folder: Path, *arguments: str, listen: str = "127.0.0.1:0") -> AsyncIterator[GatewayProcess]:
    """Entered once it serves."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    process = await start("--store", url(folder), "--listen", listen, "--ready-file", str(ready), *arguments)
    try:
        assert process.stderr is not None
        while b"serving on" not in (line := await process.stderr.readline()):
            assert line, "the gateway did not start"
        said = json.loads(ready.read_text())
        assert said["pid"] == process.pid
        yield GatewayProcess(process, said["address"])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def client(address: str) -> AsyncIterator[tuple[Any, Any]]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield JobServiceStub(channel), channel


async def put_models(folder: Path) -> None:
    database = Database(url(folder))
    await Jobs(database).put_models(System.MODELS)
    await database.close()


async def test_it_serves_and_stops_at_sigterm(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, client(running.address) as (stub, channel):
        await put_models(tmp_path)
        job = (await Upload(stub).send(first(some=PUZZLES, last=True))).job
        watch = stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id))
        event = (await watch.read()).event
        assert (event.cursor, event.state) == (1, job_pb2.JOB_STATE_RUNNING)
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            status = (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name for service in (await listing.read()).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert told(caught.value)[0] is grpc.StatusCode.UNAVAILABLE
        code, said = await running.ended()
        assert (code, "Traceback" in said) == (0, False), said


async def test_jobs_outlive_the_process(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running, client(running.address) as (stub, _):
        await put_models(tmp_path)
        job = (await Upload(stub).send(first(some=PUZZLES, last=True))).job
        running.process.kill()
    async with gateway(tmp_path, listen=running.address) as again, client(again.address) as (stub, _):
        assert again.address == running.address
        found = (await stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).job
        found.ClearField("waits")  # for shards, of which there is none
        assert found == job


async def test_it_stops_with_its_standard_input(tmp_path: Path) -> None:
    async with gateway(tmp_path, "--exit-with-stdin") as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        code, said = await running.ended()
        assert (code, "Traceback" in said) == (0, False), said


async def test_a_signal_and_the_end_of_standard_input_at_once(tmp_path: Path) -> None:
    async with gateway(tmp_path, "--exit-with-stdin") as running:
        assert running.process.stdin is not None
        for _ in range(2):
            running.process.send_signal(signal.SIGINT)
        running.process.stdin.close()
        code, said = await running.ended()
        assert (code, "Traceback" in said) == (0, False), said


async def test_it_stops_when_standard_input_was_never_open(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m ramify.gateway --store {url(tmp_path)} --listen 127.0.0.1:0 --exit-with-stdin <&-"
    process = await asyncio.create_subprocess_shell(command, stderr=PIPE)
    _, said = await process.communicate()
    assert (process.returncode, b"Traceback" in said) == (0, False), said


async def refused(*arguments: str) -> str:
    """What it says, in one line, with exit code 2."""
    process = await start(*arguments)
    _, said = await process.communicate()
    assert process.returncode == 2, said
    (line,) = [line for line in said.decode().splitlines() if line.startswith("ramify.gateway: ")]
    assert b"Traceback" not in said
    return line


async def test_an_address_that_is_taken(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        line = await refused("--store", url(tmp_path), "--listen", running.address)
    assert line == f"ramify.gateway: {running.address} can't be had; is it taken? Give another one with --listen HOST:PORT"


async def test_stores_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database" * 100)
    listen = ("--listen", "127.0.0.1:0")
    assert "Could not parse SQLAlchemy URL" in await refused("--store", "nonsense", *listen)
    assert "file is not a database" in await refused("--store", f"sqlite+aiosqlite:///{tmp_path}/file", *listen)


async def test_a_ready_file_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    ready = tmp_path / "nowhere" / "ready"
    line = await refused("--store", url(tmp_path), "--listen", "127.0.0.1:0", "--ready-file", str(ready))
    assert "No such file or directory" in line
