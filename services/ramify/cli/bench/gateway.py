"""`ramify bench gateway`: jobs a second, status calls a second, and how late a thousand open watches are.

The gateway is the real process, with TLS and API keys on; those who ask it are processes of their own. Beside them a stand-in
for the shards commits steps of many of the watched jobs, when they are due. All of it is measured again in the clear, and
without keys.
"""

import asyncio
import contextlib
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import psutil
import typer
from rich.table import Table

from ramify.cli.bench._gateway_load import PROBLEMS, SPEC, Answered, Asker, Door, Load, Reads, Submits, Watches
from ramify.cli.output import make_console
from ramify.local.child import Child
from ramify.scheduler.commands import Commit, JobDelta, ScoreRows
from ramify.scheduler.slots import SLOTS
from ramify.store.audit import Actor
from ramify.store.database import Database
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.keys import Keys, Role
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.segments import NO_STEPS
from ramify.store.submissions import Chunk, NewProblem
from ramify.store.tenants import Tenant, Tenants
from ramify.store.uploads import Uploads
from ramify.store.work import Work

MODELS = (ModelRow("generator", "simulated", "1", "\n", ""), ModelRow("verifier", "sim-prm", "1", "", ""))
NO_SCORES = ScoreRows(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.int32))
COMMITS_PER_S = 20
JOBS_A_COMMIT = 50  # of those that are watched
LEASE_MS = 600_000
AT_ONCE = 8
BENCH = Actor("", "bench")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """How much is asked for; see `gateway`."""

    seconds: float
    jobs: int
    watches: int
    calls: int
    clients: int


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway's process, its store, and how to get in."""

    door: Door
    database: Database
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds of a core that the process has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.asynccontextmanager
async def a_gateway(store: str | None, tenants: int) -> AsyncIterator[Place]:
    """The real process over a store, with TLS and a key for each of some tenants; for none, without either."""
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as name:
        folder = Path(name)
        database = Database(store or f"sqlite+aiosqlite:///{folder / 'state.db'}")
        (folder / "store").write_text(database.url)
        options = ["--store-file", str(folder / "store"), "--log-level", "WARNING"]
        options += [*certificates(folder), "--keys"] if tenants else []
        child = Child("ramify.gateway", options, "127.0.0.1:0", folder)
        try:
            await database.migrate()
            await Jobs(database).put_models(MODELS)
            keys = await few_at_once(partial(enroll, database), names(tenants)) if tenants else []
            child.start()
            await asyncio.to_thread(child.wait_ready)
            assert child.pid is not None
            door = Door(child.address, folder / "ca.pem" if tenants else None, tuple(keys))
            yield Place(door, database, psutil.Process(child.pid))
        finally:
            await asyncio.to_thread(child.stop)
            await database.close()


def certificates(folder: Path) -> list[str]:
    """Make an authority and a server's certificate; the options that name the latter.

    Raises:
        typer.BadParameter: trustme isn't installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise typer.BadParameter("to measure with TLS takes trustme: pip install 'ramify[bench]', or give --plain") from error
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


def names(tenants: int) -> list[str]:
    """Of tenants; for none, of the one who is there without keys."""
    return [f"tenant-{number}" for number in range(tenants)] or [DEFAULT_TENANT]


async def enroll(database: Database, name: str) -> str:
    """Let a tenant in, with bounds that have to be looked at; its key."""
    await Tenants(database).put(Tenant(name, jobs_max=10**9, tokens_per_day_max=10**15))
    _, key = await Keys(database).create(BENCH, name, Role.SUBMIT, "bench")
    return key


async def few_at_once(function: Callable[[str], Awaitable[T]], names: Sequence[str]) -> list[T]:
    """What a function says of each of them; a store has so many connections."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> T:
        async with places:
            return await function(name)

    return await asyncio.gather(*map(one, names))


async def fill(database: Database, count: int, tenants: Sequence[str]) -> list[str]:
    """Jobs that run, of the tenants by turns."""
    chunk = Chunk(0, [NewProblem(problem, problem.text) for problem in PROBLEMS], True)

    async def one(number: int) -> str:
        uploads = Uploads(database, by=Actor(tenants[number % len(tenants)], "bench"))
        return (await uploads.create(secrets.token_hex(8), SPEC, SPEC, chunk, "bench")).job_id

    return await asyncio.gather(*map(one, range(count)))


@contextlib.asynccontextmanager
async def askers(count: int) -> AsyncIterator[list[Asker]]:
    """Processes that ask."""
    found = [Asker() for _ in range(count)]
    try:
        yield found
    finally:
        for asker in found:
            await asyncio.to_thread(asker.stop)


async def begin(place: Place, loads: Sequence[tuple[Asker, Load]]) -> tuple[float, float]:
    """Have all of them asked; when they count, and the gateway's CPU seconds at that time."""
    await asyncio.gather(*(asyncio.to_thread(asker.begin, load) for asker, load in loads))
    return time.perf_counter(), place.cpu_s()


async def ask(place: Place, loads: Sequence[tuple[Asker, Load]]) -> dict[str, Any]:
    """What becomes of some loads, and what they cost the gateway and those who ask."""
    began_s, cpu_s = await begin(place, loads)
    found = await asyncio.gather(*(asyncio.to_thread(asker.answered) for asker, _ in loads))
    return figures(found, place.cpu_s() - cpu_s, time.perf_counter() - began_s)


def figures(found: Sequence[Answered], gateway_cpu_s: float, elapsed_s: float) -> dict[str, Any]:
    """Of all who have asked."""
    delays_ms = np.concatenate([each.delays_ms for each in found])
    calls = sum(each.calls for each in found)
    return {
        "calls_per_s": round(sum(each.rate for each in found)),
        **{f"p{share}_ms": round(float(np.percentile(delays_ms, share)), 1) for share in (50, 95, 99)},
        "gateway_cores": round(gateway_cpu_s / elapsed_s, 2),
        "clients_cores": round(sum(each.cpu_s for each in found) / elapsed_s, 2),
        "gateway_cpu_ms_per_call": round(gateway_cpu_s / calls * 1000, 3),
    }


async def watched(place: Place, loads: Sequence[tuple[Asker, Load]], job_ids: Sequence[str], seconds: float) -> dict[str, Any]:
    """How late watches of some jobs are, while a shard commits."""
    began_s, cpu_s = await begin(place, loads)
    late_ms = await commit(place.database, job_ids, seconds)
    elapsed_s, cpu_s = time.perf_counter() - began_s, place.cpu_s() - cpu_s
    await few_at_once(Jobs(place.database).cancel, job_ids)  # which ends their watches
    found = await asyncio.gather(*(asyncio.to_thread(asker.answered) for asker, _ in loads))
    told = round(sum(each.calls for each in found) / elapsed_s)
    return {**figures(found, cpu_s, elapsed_s), "calls_per_s": told, "open": len(job_ids), "commit_late_ms": round(late_ms, 1)}


async def commit(database: Database, job_ids: Sequence[str], seconds: float) -> float:
    """Commit steps of some of the jobs, each when it is due; by how many milliseconds the median one was late."""
    work, rng, late_ms = Work(database), np.random.default_rng(0), list[float]()
    claim = await work.claim(f"bench:0@{time.time_ns():x}", range(SLOTS), LEASE_MS)
    began_s = time.perf_counter()
    for number in range(int(seconds * COMMITS_PER_S)):
        due_s = began_s + number / COMMITS_PER_S
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        late_ms.append((time.perf_counter() - due_s) * 1000)
        some = rng.choice(len(job_ids), min(JOBS_A_COMMIT, len(job_ids)), replace=False)
        deltas = [JobDelta(job_ids[int(index)], 1, 10, []) for index in np.sort(some)]
        await work.commit(claim, Commit(number + 1, NO_STEPS, NO_SCORES, deltas), {})
    await work.release(claim, claim.slots)
    return float(np.median(late_ms))


async def measure(load: Shape, tenants: int, store: str | None) -> dict[str, Any]:
    """All figures, of a gateway with so many tenants' keys and TLS; for none, with neither."""
    async with a_gateway(store, tenants) as place, askers(load.clients) as who:
        job_ids = await fill(place.database, load.jobs, names(tenants))
        watched_ids = job_ids[: load.watches]
        calls = -(-load.calls // load.clients)
        submits, reads = Submits(place.door, load.seconds, calls), Reads(place.door, load.seconds, calls, job_ids)
        watches = [(each, Watches(place.door, watched_ids, number, load.clients)) for number, each in enumerate(who)]
        return {
            "submits": await ask(place, [(each, submits) for each in who]),
            "reads": await ask(place, [(each, reads) for each in who]),
            "watches": await watched(place, watches, watched_ids, load.seconds),
        }


def gateway(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 8.0,
    jobs: Annotated[int, typer.Option(min=1, help="Open from the start.")] = 10_000,
    watches: Annotated[int, typer.Option(min=1, help="Open at once.")] = 1000,
    calls: Annotated[int, typer.Option(min=1, help="Open at once.")] = 64,
    clients: Annotated[int, typer.Option(min=1, help="Processes that ask.")] = 1,
    tenants: Annotated[int, typer.Option(min=1, help="Each with a key.")] = 1000,
    store: Annotated[str | None, typer.Option(metavar="URL", help="One that is empty; without: SQLite.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Only without TLS and keys.")] = False,
) -> None:
    """Submissions and status calls a second, and how late watches are, with TLS and keys and without."""
    load = Shape(seconds, jobs, watches, calls, clients)
    found = {} if plain else {"with TLS and keys": asyncio.run(measure(load, tenants, store))}
    found["in the clear"] = asyncio.run(measure(load, 0, store))
    table = Table("", "", "calls/s", "p50 ms", "p95 ms", "gateway's cores", "clients' cores", "gateway's CPU ms a call")
    for way, measured in found.items():
        for name, each in measured.items():
            keys = ("calls_per_s", "p50_ms", "p95_ms", "gateway_cores", "clients_cores", "gateway_cpu_ms_per_call")
            table.add_row(way, name, *(f"{each[key]:,}" for key in keys))
    make_console().print(table)
    print(json.dumps(summary(found)))


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is asked for first, and what TLS and keys leave of it."""
    first, *_, clear = found.values() if len(found) > 1 else [*found.values()] * 2
    rates = {f"{name}_per_s": (first[name]["calls_per_s"], clear[name]["calls_per_s"]) for name in ("submits", "reads")}
    return {
        **{name: rate for name, (rate, _) in rates.items()},
        "watch_p50_ms": first["watches"]["p50_ms"],
        "watch_p95_ms": first["watches"]["p95_ms"],
        "open_watches": first["watches"]["open"],
        **{f"{name}_ratio": round(rate / plain, 3) for name, (rate, plain) in rates.items()},
        **found,
    }
