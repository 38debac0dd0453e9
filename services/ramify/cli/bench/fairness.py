"""`ramify bench fairness`: how much later a tenant's jobs have their first step while another tenant floods the system.

All of it is real but the models: a gateway that asks for keys, a shard and an engine as Ray actors, the verifier behind gRPC,
commits to SQLite. The engine is the model of a GPU, at its own speed. A small job counts from when the gateway has acknowledged
it to its first durable step, both by the store's clock. Jobs alone and jobs within the flood take turns, so that a machine that
becomes slower makes both slower.

A GPU with a full batch decodes each token more slowly than one with a few sequences, whoever asks: `engine_growth` is how much,
by the model. No scheduler can take that back but by leaving slots empty. So the same jobs are measured a third time beside a
tenant that keeps the engine busy and has no queue, for a quota bounds it to the engine's slots: `growth_over_busy` is what a
flood adds to that.

For comparison the same flood in the same tenant: there a later job waits for the earlier one, unless its priority is higher. At
the end two tenants flood together, with weights of 1 and 3.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ramify.cli.bench.simulated import BRANCHES, VERIFIER, engine_stats, problems, search, shard_actor, shard_status
from ramify.cli.output import make_console
from ramify.client import Client
from ramify.local.system import LocalConfig, LocalSystem
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.store.database import Database
from ramify.store.keys import Keys, Role
from ramify.store.tenants import STORE, Tenant, Tenants
from ramify.v1 import job_pb2

SMALL = 4 * BRANCHES  # chains of a small job
SMALL_STEPS, FLOOD_STEPS = 3, 16  # of a chain
PROMPT_TOKENS = 64  # of a context, beside the steps; about
TENANTS: Mapping[str, float] = {"flood": 1.0, "busy": 1.0, "small": 1.0, "heavy": 3.0}  # and their weights
BUSY = 0.7  # of the engine's slots; what is being scored has none
LOOK_S = 0.1
WAIT_S_MAX = 120.0
OWN_FLOOD_S_MAX = 10.0  # so long a job is waited for that stands behind a flood of its own tenant
SETTLE_S = 3.0  # of a flood at work, before anything counts


@dataclass(slots=True)
class Bench:
    """A system with a key for each tenant."""

    clients: Mapping[str, Client]
    flood_chains: int
    slots: int
    alone_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    flooded_s: list[float] = field(default_factory=list)

    def first_step_s(self, priority: int = 0, most_s: float = WAIT_S_MAX) -> float | None:
        """How long a small job waits for its first step; None: longer than `most_s`. Returns once the job has ended."""
        client = self.clients["small"]
        fields = search(SMALL_STEPS)
        fields["priority"] = priority
        job = client.submit(problems(SMALL), **fields)
        began = time.monotonic()
        while not (event := first_step(client, job)):
            if time.monotonic() - began > most_s:
                client.cancel(job.job_id)
                return None
            time.sleep(LOOK_S)
        for _ in client.watch(job.job_id, event.cursor):
            pass
        return (event.time.ToMilliseconds() - job.start_time.ToMilliseconds()) / 1000

    def several(self, jobs: int, found: list[float]) -> None:
        """Measure some small jobs, one after the other."""
        for _ in range(jobs):
            took_s = self.first_step_s()
            if took_s is None:
                raise RuntimeError(f"a small job had no step within {WAIT_S_MAX:.0f} s")
            found.append(took_s)

    @contextmanager
    def flood(self, *tenants: str) -> Iterator[list[job_pb2.Job]]:
        """Tenants want more than there is, of which the engine is full, or as full as their quota lets it be."""
        jobs = [self.clients[tenant].submit(problems(self.flood_chains), **search(FLOOD_STEPS)) for tenant in tenants]
        try:
            wait(lambda: engine_stats(0).rows_waiting > 0 or engine_stats(0).rows_running > BUSY * self.slots)
            time.sleep(SETTLE_S)
            yield jobs
        finally:
            for tenant, job in zip(tenants, jobs, strict=True):
                self.clients[tenant].cancel(job.job_id)
            wait(lambda: not chains() and not engine_stats(0).rows_running)

    def shares(self, seconds: float) -> dict[str, float]:
        """What two tenants of weights 1 and 3 are given of a fleet that both want more of."""
        tenants = ("flood", "heavy")
        with self.flood(*tenants) as jobs:
            first = [self.clients[tenant].job(job.job_id).progress for tenant, job in zip(tenants, jobs, strict=True)]
            time.sleep(seconds)
            last = [self.clients[tenant].job(job.job_id).progress for tenant, job in zip(tenants, jobs, strict=True)]
        light, heavy = (after.tokens - before.tokens for before, after in zip(first, last, strict=True))
        return {"weight_1_tokens": light, "weight_3_tokens": heavy, "ratio": round(heavy / max(1, light), 3)}


def first_step(client: Client, job: job_pb2.Job) -> job_pb2.JobEvent | None:
    """The event that tells of a job's first durable step, if there is one yet."""
    if not client.job(job.job_id).progress.steps:
        return None
    return next(event for event in client.watch(job.job_id) if event.progress.steps)


def chains() -> int:
    """That live in the shard."""
    shell = shard_status(shard_actor(0)).shell
    return shell.chains if shell else 0


def wait(condition: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the system did not come so far within {WAIT_S_MAX:.0f} s")
        time.sleep(LOOK_S)


def token_ms(params: SimulatedParams, rows: int) -> float:
    """What a token of a sequence takes among so many."""
    context = rows * (PROMPT_TOKENS + params.step_tokens_median * SMALL_STEPS / 2)
    return params.token_ms + params.token_extra_ms * (rows - 1) + context * params.context_token_ns / 1e6


async def keys(home: Path, slots: int) -> dict[str, str]:
    """Make the tenants, of which one may have as many chains as the engine has slots, and a key for each."""
    database = Database(f"sqlite+aiosqlite:///{home / 'state.db'}")
    try:
        for name, weight in TENANTS.items():
            await Tenants(database).put(Tenant(name, weight, live_chains_max=slots if name == "busy" else None))
        return {name: (await Keys(database).create(STORE, name, Role.SUBMIT, "bench"))[1] for name in TENANTS}
    finally:
        await database.close()


def measure(bench: Bench, rounds: int, jobs: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures."""
    bench.first_step_s()  # the first one of all has models pinned, code loaded
    for at in range(rounds):
        bench.several(jobs, bench.alone_s)
        with bench.flood("busy"):
            bench.several(jobs, bench.busy_s)
        with bench.flood("flood"):
            bench.several(jobs, bench.flooded_s)
        parts = {"alone": bench.alone_s, "busy": bench.busy_s, "flooded": bench.flooded_s}
        say(f"round {at + 1}: " + ", ".join(f"{name} {found[-jobs:]}" for name, found in parts.items()))
    with bench.flood("small"):
        urgent_s = bench.first_step_s(priority=1)
        same_s = bench.first_step_s(most_s=OWN_FLOOD_S_MAX)
    alone_s, busy_s, flooded_s = map(statistics.median, (bench.alone_s, bench.busy_s, bench.flooded_s))
    return {
        "growth": round(flooded_s / alone_s - 1, 3),
        "growth_over_busy": round(flooded_s / busy_s - 1, 3),
        "alone_s": round(alone_s, 3),
        "busy_s": round(busy_s, 3),
        "flooded_s": round(flooded_s, 3),
        "flooded_max_s": max(bench.flooded_s),
        "same_tenant_s": same_s,
        "same_tenant_waited_s": OWN_FLOOD_S_MAX if same_s is None else same_s,
        "same_tenant_higher_priority_s": urgent_s,
        "shares": bench.shares(seconds),
    }


def fairness(
    rounds: Annotated[int, typer.Option(min=1, help="Times that the flood comes and goes.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Small jobs of a round, alone and again within the flood.")] = 5,
    engine: Annotated[str, typer.Option(help="What all share; its own speed is what counts.")] = "simulated?slots=256",
    flood: Annotated[int, typer.Option(min=BRANCHES, help="Chains that the flood wants.")] = 320_000,
    trees_max: Annotated[int, typer.Option(min=1, help="Places for trees in the shard.")] = 4096,
    seconds: Annotated[float, typer.Option(min=1, help="How long shares are counted.")] = 15.0,
) -> None:
    """Time to a tenant's first step, alone and while another floods the system; tokens of two tenants of weights 1 and 3."""
    model = load_engine(engine)
    if not isinstance(model, SimulatedEngine):
        raise typer.BadParameter("its speed must be known: give a simulated engine")
    params, console = model.params, make_console()
    full, few = token_ms(params, params.slots), token_ms(params, min(SMALL, params.slots))
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as folder:
        home = Path(folder)
        config = LocalConfig(
            home,
            listen="127.0.0.1:0",
            engines=(engine,),
            verifier_models=(VERIFIER,),
            dashboard=False,
            trees_max=trees_max,
            keys=True,
        )
        with LocalSystem(config) as system:
            clients = {name: Client(system.address, api_key=key) for name, key in asyncio.run(keys(home, params.slots)).items()}
            try:
                figures = measure(Bench(clients, flood, params.slots), rounds, jobs, seconds, console.print)
            finally:
                for client in clients.values():
                    client.close()
    print(json.dumps({**figures, "engine": engine, "engine_growth": round(full / few - 1, 3), "jobs": rounds * jobs}))
