"""`ramify bench shell`: CPU time that the shell around the core takes for each durable step, and where it goes.

One process has a real `Shell` on a real SQLite store, used through `Aside` as a shard's actor does: turns, placement, batches,
scoring, admission, leases, commits with `synchronous=FULL` are what they are in a system. In place of the models there are
stand-ins in the same process: engines that answer a call of `--batch` steps at once, one call after the other, so that a turn of
the shell has one of them; and a verifier that scores at once. Their own time is taken out.

Counted is the CPU time of every thread of the process, by the kernel's clock for each, from when as many trees have ended as are
held at once. The loop's thread is what bounds a shard's throughput; the store's threads work beside it.

Not in it: Ray, which carries batches and answers between processes, gRPC to the verifier, and the gateway. `ramify bench durable`
has them all. Chains are short (a prompt of a dozen tokens, steps of 16 to 48): copies of long ones cost more.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ramify.cli.bench._meter import Meter, MeteredWorkers, threads_ns
from ramify.cli.bench.simulated import BRANCHES, engine
from ramify.cli.output import make_console
from ramify.scheduler.actors.aside import Aside
from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.engines.simulated import SimulatedEngine, draw
from ramify.scheduler.memory import keep_freed_memory
from ramify.scheduler.spec import fill_search
from ramify.store.commits import encode
from ramify.store.database import Database
from ramify.store.submissions import Chunk, NewProblem
from ramify.store.uploads import Uploads
from ramify.v1 import job_pb2
from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.client import ColumnsScored
from ramify.verifier.columns import ChainColumns

ENGINES = 4  # enough for placement to have a choice
MAX_STEPS = 16  # of a chain
CREDITS = 2  # that a dispatcher gives for each slot of an engine
CHAINS_PER_STEP = 16 * ENGINES  # of a call, so that enough wait for every engine while others are scored
CHUNK = 4096  # problems
STEPS_PER_S_MAX = 200_000  # more than any machine has shown: problems must not run out
WARM_S_MAX = 300.0

# The parts. What the core and the stand-ins do in another part's name is not that part's.
CORE, STAND_INS = "core", "stand-ins"
PLACE, SEND, ANSWERS, SCORING = "place", "send", "answers", "scoring"
JOURNAL, HAND_OVER, ADMISSION, UPKEEP, TURNS, ASYNCIO = "journal", "hand over", "admission", "upkeep", "turns", "asyncio"
ENCODE, ARROW, STORE_LOOP, SQLITE, ARCHIVE = "encode", "arrow", "store's loop", "sqlite", "archive"
MEANING = {
    CORE: "Shard.handle: what is decided",
    PLACE: "dispatch: which engine, and what waits for it",
    SEND: "dispatch: calls of steps that wait",
    ANSWERS: "dispatch: a call's batch, its answers as events",
    SCORING: "chains to the verifier and back",
    JOURNAL: "what was committed before, and what is not yet",
    TURNS: "the shell's turn around all this",
    ADMISSION: "problems from the store, as prompts",
    UPKEEP: "leases, what has ended",
    ASYNCIO: "tasks, callbacks, select",
    HAND_OVER: "writing: commits to the store's thread",
    ENCODE: "other threads: commits as columns of bytes",
    STORE_LOOP: "other threads: transactions, SQLAlchemy",
    SQLITE: "other threads: SQLite, fsync",
    ARCHIVE: "other threads: what has ended leaves the segments",
    ARROW: "other threads: Arrow's own, for compression",
}
STORE = (ENCODE, STORE_LOOP, SQLITE, ARCHIVE, ARROW)
TASKS = {
    "Shell.run": TURNS,
    "Shell._write": HAND_OVER,
    "Shell._admit": ADMISSION,
    "Dispatcher._sample": ANSWERS,
    "Scoring._ask": SCORING,
    "LeaseKeeper.run": UPKEEP,
    "Recovery.run": UPKEEP,
    "Housekeeping.run": UPKEEP,
    "Dispatcher._watch": UPKEEP,
}
THREADS = {"store": STORE_LOOP, ADMISSION: ADMISSION}  # by how their names begin; others are SQLite's


class Fleet:
    """Engines that answer at once, but one call after the other."""

    def __init__(self, batch: int, meter: Meter) -> None:
        model = load_engine(engine(batch // CREDITS))
        assert isinstance(model, SimulatedEngine)
        self.info, self.params = model.info, model.params
        self.meter, self.turn = meter, asyncio.Lock()
        self.calls = self.steps = 0
        self.engines = [Engine(f"engine {index}", self) for index in range(ENGINES)]


@dataclass(slots=True, eq=False)
class Engine:
    """One of them. It answers all calls that it has together, so that its next one is full, however small these were."""

    name: str
    fleet: Fleet
    region: str = ""
    begun: asyncio.Future[None] | None = None  # the turn for which a call waits already

    async def describe(self) -> ModelInfo:
        """See `EngineHandle`."""
        return self.fleet.info

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """See `EngineHandle`."""
        fleet = self.fleet
        fleet.calls, fleet.steps = fleet.calls + 1, fleet.steps + len(batch)
        if self.begun is not None:
            await self.begun
            yield fleet.meter.call(STAND_INS, draw, batch, fleet.params)
            return
        begun = self.begun = asyncio.get_running_loop().create_future()
        async with fleet.turn:
            self.begun = None
            begun.set_result(None)
            yield fleet.meter.call(STAND_INS, draw, batch, fleet.params)
            await asyncio.sleep(0)  # the shell has its turn


class Verifier:
    """Scores at once, by lot."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._lots = meter, np.random.default_rng(0)

    async def get_model(self, name: str, *, deadline_ms: int) -> pb.Model:
        """See `Client`."""
        return pb.Model(name=name, revision="1")

    async def score_columns(
        self, model: str, chains: ChainColumns, *, revision: str, last_only: bool, wait_for_ready: bool
    ) -> ColumnsScored:
        """See `Client`."""
        count = len(chains) if last_only else chains.step_count
        return ColumnsScored(self._meter.call(STAND_INS, self._lots.random, count, np.float32), [], revision)


class MeteredStore(Aside):
    """The store, with the time of what it does in other threads."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.workers = MeteredWorkers("store's worker")
        self._loop.set_default_executor(self.workers)


class MeteredShell(Shell):
    """A shell whose parts are charged for what they do."""

    def meter(self, meter: Meter) -> None:
        """To be called before it runs."""
        self.turns = 0
        for part, owner, names in (
            (CORE, self.shard, ("handle",)),
            (JOURNAL, self._journal, ("answer", "forget")),
            (JOURNAL, self._backlog, ("add", "begin", "end")),
            (PLACE, self._dispatcher, ("add", "withdraw")),
            (SEND, self._dispatcher, ("pump",)),
            (SCORING, self._scoring, ("add", "pump", "_done")),
        ):
            for name in names:
                setattr(owner, name, partial(meter.call, part, getattr(owner, name)))

    async def _turn(self) -> None:
        self.turns += 1
        await super()._turn()


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a run was, by all clocks."""

    at_s: float
    steps: int  # durable
    turns: int
    calls: int
    called: int  # steps, in those calls
    commits: int
    switches: int
    process_ns: int
    parts_ns: Counter[str]  # of the loop's thread
    threads_ns: dict[tuple[str, int], int]
    workers_ns: Counter[str]  # of the store's other threads, by function

    @classmethod
    def now(cls, shell: MeteredShell, fleet: Fleet, meter: Meter, workers: MeteredWorkers) -> "Mark":
        """As it stands."""
        return cls(
            time.monotonic(),
            shell.committed_steps,
            shell.turns,
            fleet.calls,
            fleet.steps,
            shell.commits,
            meter.switches,
            time.process_time_ns(),
            meter.spent_ns,
            threads_ns(),
            workers.spent_ns.copy(),
        )


async def submit(url: str, problems: int) -> None:
    """A store with a job in it."""
    database = Database(url)
    try:
        await database.migrate()
        search = job_pb2.Search(policy="beam", n=BRANCHES, keep=BRANCHES // 4, max_steps=MAX_STEPS, max_step_tokens=64)
        spec = job_pb2.JobSpec(generator="simulated", verifier="prm", search=fill_search(search, "\n"))
        uploads = Uploads(database)
        texts = [f"problem {index}" for index in range(problems)]
        new = [NewProblem(job_pb2.Problem(text=text), text) for text in texts]
        job = await uploads.create("bench", spec, spec, Chunk(0, new[:CHUNK], problems <= CHUNK), "bench")
        for start in range(CHUNK, problems, CHUNK):
            await uploads.append(job.job_id, Chunk(start, new[start : start + CHUNK], start + CHUNK >= problems), "bench")
    finally:
        await database.close()


async def measure(home: Path, chains: int, batch: int, seconds: float) -> tuple[Mark, Mark, float]:
    """The marks at both ends of what counts, and the nanoseconds that one look at the clock takes."""
    url, trees = f"sqlite+aiosqlite:///{home / 'state.db'}", chains // BRANCHES
    await submit(url, 3 * trees + int(seconds * STEPS_PER_S_MAX / BRANCHES / MAX_STEPS))
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix=ADMISSION))
    meter, store = Meter(ASYNCIO), MeteredStore(url)
    fleet = Fleet(batch, meter)
    shell = MeteredShell(store, "shard:0@bench", fleet.engines, Verifier(meter), ShellLimits(trees_max=trees))
    shell.meter(meter)
    meter.charge_tasks(loop, TASKS)
    run = loop.create_task(shell.run())
    try:
        async with asyncio.timeout(WARM_S_MAX):
            while shell.committed_steps < chains * MAX_STEPS:  # each tree has ended once, and they don't go in step any more
                await asyncio.wait({run}, timeout=0.1)
        first = Mark.now(shell, fleet, meter, store.workers)
        await asyncio.wait({run}, timeout=seconds)
        return first, Mark.now(shell, fleet, meter, store.workers), meter.switch_ns()
    finally:
        run.cancel()
        await asyncio.wait({run})
        await store.close()


def figures_of(first: Mark, last: Mark) -> dict[str, Any]:
    """Microseconds a step between two marks, by part."""
    steps, calls = max(1, last.steps - first.steps), max(1, last.calls - first.calls)
    spent = last.parts_ns - first.parts_ns
    here = threading.get_ident()
    others = {thread: ns - first.threads_ns.get(thread, 0) for thread, ns in last.threads_ns.items() if thread[1] != here}
    for (name, _), ns in others.items():
        spent[next((part for begin, part in THREADS.items() if name.startswith(begin)), SQLITE)] += ns
    for name, ns in (last.workers_ns - first.workers_ns).items():
        spent[ENCODE if name == encode.__qualname__ else ARCHIVE] += ns
        spent[STORE_LOOP] -= ns
    # What the interpreter knows nothing of.
    spent[ARROW] = max(
        0, last.process_ns - first.process_ns - sum((last.parts_ns - first.parts_ns).values()) - sum(others.values())
    )
    by_part = {part: round(spent[part] / steps / 1000, 3) for part in MEANING}
    return {
        "shell_us_per_step": round(sum(by_part.values()) - by_part[CORE], 2),
        "core_us_per_step": round(by_part[CORE], 2),
        "store_us_per_step": round(sum(by_part[part] for part in STORE), 2),
        "loop_us_per_step": round(sum(us for part, us in by_part.items() if part not in STORE), 2),
        "by_part": by_part,
        "stand_ins_us_per_step": round(spent[STAND_INS] / steps / 1000, 2),
        "steps": last.steps - first.steps,
        "steps_per_call": round((last.called - first.called) / calls, 1),
        "steps_per_turn": round((last.called - first.called) / max(1, last.turns - first.turns), 1),
        "steps_per_commit": round(steps / max(1, last.commits - first.commits)),
        "seconds": round(last.at_s - first.at_s, 1),
    }


def shell(
    chains: Annotated[int, typer.Option(min=BRANCHES * 64, help="Live chains.")] = 16_384,
    batch: Annotated[int, typer.Option(min=2, help="Steps of a call, at most.")] = 256,
    seconds: Annotated[float, typer.Option(min=1, help="How long to count, after the warm-up.")] = 15.0,
) -> None:
    """CPU time that the shell takes for each durable step, and where it goes: dispatch, scoring, writing, asyncio."""
    if chains < CHAINS_PER_STEP * batch:
        raise typer.BadParameter(
            f"{chains:,} chains would not fill calls of {batch:,} steps: give {CHAINS_PER_STEP * batch:,}, or more"
        )
    from ramify.scheduler.actors.shard_actor import SWITCH_S  # it imports Ray

    keep_freed_memory()  # both as a shard's actor does
    sys.setswitchinterval(SWITCH_S)
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as home:
        first, last, switch_ns = asyncio.run(measure(Path(home), chains, batch, seconds))
    figures: dict[str, Any] = {"chains": chains, "batch": batch, **figures_of(first, last)}
    figures["clock_us_per_step"] = round((last.switches - first.switches) * switch_ns / figures["steps"] / 1000, 3)
    table = Table("part", "µs a step", "what it does")
    for part, meaning in MEANING.items():
        table.add_row(part, f"{figures['by_part'][part]:.2f}", meaning)
    table.add_section()
    table.add_row("shell", f"{figures['shell_us_per_step']:.2f}", "all but the core")
    table.add_row("loop's thread", f"{figures['loop_us_per_step']:.2f}", "all but the other threads")
    make_console().print(table)
    print(json.dumps(figures))
