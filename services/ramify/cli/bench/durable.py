"""`ramify bench durable`: steps a second from end to end, durable, with a million live chains; and the same without commits.

All of it is real but the models: a gateway, a shard and an engine as Ray actors, the verifier behind gRPC, commits to SQLite. The
engine and the reward model are simulated and take no time of their own, so what is measured is the system around them, which
has to share the machine's cores with them.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from ramify.cli.bench.simulated import VERIFIER, engine, problems, search, shard_actor, shard_status
from ramify.cli.output import make_console
from ramify.client import Client
from ramify.local.system import LocalConfig, LocalSystem
from ramify.scheduler.commands import Commit
from ramify.store.work import Claim, Work

if TYPE_CHECKING:  # else every command would import Ray, and before its settings are set
    from ramify.scheduler.actors.status import ShellStatus

LOOK_S = 0.25
FULL = 0.95  # of the chains that are wanted: from then on it counts
STEPS_MAX = 64  # of a chain: none is to end by it
SLOTS = 8192  # of the engine
FILL_S_MAX = 600.0


class NotWritten(Work):
    """A store that says yes to every commit and writes none: what a run costs without them."""

    async def commit(self, claim: Claim, commit: Commit, first_segment: dict[int, int]) -> int:
        """Nothing."""
        return commit.sequence


@dataclass(frozen=True, slots=True)
class Sample:
    """How far a shard was."""

    at_s: float
    cpu_s: float  # of the shard's process so far
    rss_bytes: int
    shell: "ShellStatus"


@dataclass(frozen=True, slots=True)
class Run:
    """What one run has shown."""

    steps_per_s: float
    cpu_us_per_step: float  # of the shard's process
    chains: int  # most at once
    commits: int
    rss_gib: float  # of the shard's process, at its most


def measure(chains: int, seconds: float, work: type[Work], say: Callable[[str], None]) -> Run:
    """Fill a system with chains, and count for `seconds`."""
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as home:
        config = LocalConfig(
            Path(home),
            listen="127.0.0.1:0",
            engines=(engine(SLOTS),),
            verifier_models=(VERIFIER,),
            dashboard=False,
            trees_max=chains,
            work=work,
        )
        with LocalSystem(config) as system, Client(system.address) as client:
            job = client.submit(problems(chains), **search(STEPS_MAX))
            try:
                return summary(watch(chains, seconds, say))
            finally:
                client.cancel(job.job_id)


def watch(chains: int, seconds: float, say: Callable[[str], None]) -> list[Sample]:
    """Look at the shard until it has been full for so long."""
    actor = shard_actor(0)
    samples: list[Sample] = []
    process: psutil.Process | None = None
    began = time.monotonic()
    full_s: float | None = None
    while full_s is None or samples[-1].at_s < full_s + seconds:
        status = shard_status(actor)
        shell, process = status.shell, process or psutil.Process(status.pid)
        if shell is None:
            raise RuntimeError(f"the shard does not work: {status.failure}")
        times = process.cpu_times()
        cpu_s, rss = times.user + times.system, process.memory_info().rss
        samples.append(Sample(time.monotonic() - began, cpu_s, rss, shell))
        if full_s is None and shell.chains >= FULL * chains:
            full_s = samples[-1].at_s
            say(f"{shell.chains:,} chains alive after {full_s:.0f} s")
        if full_s is None and samples[-1].at_s > FILL_S_MAX:
            raise typer.BadParameter(f"only {shell.chains:,} of {chains:,} chains came alive in {FILL_S_MAX:.0f} s: give fewer")
        time.sleep(LOOK_S)
    return [sample for sample in samples if sample.at_s >= full_s]


def summary(samples: Sequence[Sample]) -> Run:
    """Rates between the first and the last look."""
    first, last = samples[0], samples[-1]
    steps = last.shell.committed_steps - first.shell.committed_steps
    return Run(
        steps_per_s=steps / (last.at_s - first.at_s),
        cpu_us_per_step=(last.cpu_s - first.cpu_s) / max(1, steps) * 1e6,
        chains=max(sample.shell.chains for sample in samples),
        commits=last.shell.commits - first.shell.commits,
        rss_gib=max(sample.rss_bytes for sample in samples) / 2**30,
    )


def durable(
    chains: Annotated[int, typer.Option(min=16, help="Live chains.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(min=1, help="How long to count, once all chains are alive.")] = 30.0,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs, with and without commits.")] = 1,
) -> None:
    """Durable steps a second from end to end, and what commits cost."""
    console = make_console()
    found: dict[str, list[Run]] = {"durable": [], "not_written": []}
    kinds: dict[str, type[Work]] = {"durable": Work, "not_written": NotWritten}
    for _ in range(rounds):
        for name, work in kinds.items():
            found[name].append(measure(chains, seconds, work, partial(_say, console, name)))
    best = {name: max(runs, key=lambda run: run.steps_per_s) for name, runs in found.items()}
    table = Table("", "steps/s", "shard's CPU per step", "live chains", "commits", "shard's memory")
    for name, run in best.items():
        cpu, rss = f"{run.cpu_us_per_step:.1f} µs", f"{run.rss_gib:.2f} GiB"
        table.add_row(name, f"{run.steps_per_s:,.0f}", cpu, f"{run.chains:,}", str(run.commits), rss)
    console.print(table)
    with_, without = best["durable"], best["not_written"]
    figures: dict[str, Any] = {
        "chains": with_.chains,
        "steps_per_s": round(with_.steps_per_s),
        "steps_per_s_without_commits": round(without.steps_per_s),
        "commit_cost": round(1 - with_.steps_per_s / without.steps_per_s, 3),
        "commit_cost_cpu": round(1 - without.cpu_us_per_step / with_.cpu_us_per_step, 3),
        "shard_rss_gib": round(with_.rss_gib, 2),
        "cpu_us_per_step": round(with_.cpu_us_per_step, 2),
    }
    print(json.dumps(figures))


def _say(console: Console, name: str, said: str) -> None:
    console.print(f"{name}: {said}")
