"""Those who ask a gateway, in processes of their own: submitters, readers, and watchers of many jobs.

They speak gRPC's own Python client, over several connections, and count what was answered.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import grpc

from ramify.tls import ClientTls
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from ramify.v1.job_service_pb2_grpc import JobServiceStub

CHANNELS = 8
WARM_SHARE = 0.2  # of the time that is measured, before it
OPEN_S_MAX = 60.0

SPEC = job_pb2.JobSpec(name="bench", search=job_pb2.Search(policy="beam", n=16, keep=4, max_steps=8, max_step_tokens=32))
PROBLEMS = tuple(job_pb2.Problem(id=f"p{index}", text=f"problem {index}", reference="24") for index in range(4))  # of a job


@dataclass(frozen=True, slots=True)
class Door:
    """How to get into a gateway."""

    address: str
    ca: Path | None = None  # TLS, and the authority to trust; None: plaintext
    keys: tuple[str, ...] = ()  # of tenants; none: calls need none

    @asynccontextmanager
    async def stubs(self) -> AsyncIterator[Iterator[Any]]:
        """Ever another connection."""
        # Channels of one process to one place would share a connection otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with contextlib.AsyncExitStack() as stack:
            made = list[Any]()
            for _ in range(CHANNELS):
                if self.ca is None:
                    channel = grpc.aio.insecure_channel(self.address, options)
                else:
                    channel = grpc.aio.secure_channel(self.address, ClientTls(self.ca).credentials(), options)
                await stack.enter_async_context(channel)
                await channel.channel_ready()
                made.append(JobServiceStub(channel))
            yield itertools.cycle(made)

    def metadata(self, number: int) -> tuple[tuple[str, str], ...]:
        """What a call of the tenant of that number sends along; they are counted round."""
        return (("authorization", f"Bearer {self.keys[number % len(self.keys)]}"),) if self.keys else ()


@dataclass(slots=True)
class Answered:
    """What became of the calls of one process."""

    calls: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0  # of the process
    delays_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.elapsed_s


class Load(Protocol):
    """What one process does."""

    async def run(self, tell: Callable[[], None]) -> Answered:
        """Do it; `tell` that it has begun to count."""
        ...


@dataclass(frozen=True, slots=True)
class Submits:
    """Makes jobs, as fast as they are durable."""

    door: Door
    seconds: float
    open_calls: int

    async def run(self, tell: Callable[[], None]) -> Answered:
        """See `Load`."""

        async def one(stub: Any, number: int) -> None:
            request = pb.CreateJobRequest(request_id=uuid.uuid4().hex, spec=SPEC, problems=PROBLEMS, last=True)
            call = stub.CreateJob(metadata=self.door.metadata(number))
            await call.write(request)
            await call.done_writing()
            answers = [answer async for answer in call]
            assert answers[-1].job.state == job_pb2.JOB_STATE_RUNNING

        return await _as_fast(one, self.door, self.seconds, self.open_calls, tell)


@dataclass(frozen=True, slots=True)
class Reads:
    """Asks how jobs stand, each in turn, as fast as answers come."""

    door: Door
    seconds: float
    open_calls: int
    job_ids: Sequence[str]  # by turns of the tenants of the door's keys

    async def run(self, tell: Callable[[], None]) -> Answered:
        """See `Load`."""

        async def one(stub: Any, number: int) -> None:
            at = number % len(self.job_ids)
            answer = await stub.GetJob(pb.GetJobRequest(job_id=self.job_ids[at]), metadata=self.door.metadata(at))
            assert answer.job.job_id == self.job_ids[at]

        return await _as_fast(one, self.door, self.seconds, self.open_calls, tell)


async def _as_fast(
    one: Callable[[Any, int], Awaitable[None]], door: Door, seconds: float, open_calls: int, tell: Callable[[], None]
) -> Answered:
    """Keep so many calls open, and count those that are answered, from when all is warm for so many seconds."""
    found, numbers = Answered(), itertools.count()
    async with door.stubs() as stubs:
        begin_s = time.perf_counter() + WARM_SHARE * seconds
        end_s = begin_s + seconds

        async def go() -> None:
            stub = next(stubs)
            while (asked_s := time.perf_counter()) < end_s:
                await one(stub, next(numbers))
                answered_s = time.perf_counter()
                if begin_s <= answered_s < end_s:
                    found.calls += 1
                    found.delays_ms.append((answered_s - asked_s) * 1000)

        async def meter() -> None:
            await asyncio.sleep(begin_s - time.perf_counter())
            tell()
            cpu_s, began_s = time.process_time(), time.perf_counter()
            await asyncio.sleep(end_s - time.perf_counter())
            found.cpu_s, found.elapsed_s = time.process_time() - cpu_s, time.perf_counter() - began_s

        await asyncio.gather(meter(), *(go() for _ in range(open_calls)))
    return found


@dataclass(frozen=True, slots=True)
class Watches:
    """Watches jobs to their end; the delays are from an event's time in the store to its arrival."""

    door: Door
    job_ids: Sequence[str]  # by turns of the tenants of the door's keys
    first: int = 0  # of them, and each `step`th after it
    step: int = 1

    async def run(self, tell: Callable[[], None]) -> Answered:
        """See `Load`; what each job's history holds before all are open does not count."""
        found, all_open = Answered(), asyncio.Barrier(len(range(self.first, len(self.job_ids), self.step)) + 1)

        async def watch(number: int, stub: Any) -> None:
            job_id = self.job_ids[number]
            events = stub.WatchJob(pb.WatchJobRequest(job_id=job_id), metadata=self.door.metadata(number))
            await events.read()
            await all_open.wait()
            while isinstance(answer := await events.read(), pb.WatchJobResponse):
                if answer.event.state == job_pb2.JOB_STATE_RUNNING:  # the end is only there to end the watch
                    found.delays_ms.append(time.time() * 1000 - answer.event.time.ToNanoseconds() / 1e6)
                    found.calls += 1

        async with self.door.stubs() as stubs, asyncio.TaskGroup() as group:
            for number in range(self.first, len(self.job_ids), self.step):
                group.create_task(watch(number, next(stubs)))
            async with asyncio.timeout(OPEN_S_MAX):
                await all_open.wait()
            tell()
            cpu_s, began_s = time.process_time(), time.perf_counter()
        found.cpu_s, found.elapsed_s = time.process_time() - cpu_s, time.perf_counter() - began_s
        return found


class Asker:
    """A process that asks, one load after the other. It ends with its parent."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def begin(self, load: Load) -> None:
        """Have it asked; returns once it counts. Raises `EOFError` if it dies."""
        self._pipe.send(load)
        self._pipe.recv()

    def answered(self) -> Answered:
        """Wait for what it has counted. Raises `EOFError` if it dies."""
        found: Answered = self._pipe.recv()
        return found

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: "Connection[Any, Any]") -> None:
    with contextlib.suppress(EOFError):
        while True:
            load: Load = pipe.recv()
            pipe.send(asyncio.run(load.run(lambda: pipe.send(None))))
