"""`ramify bench verifier`: how many scores a scheduler gets through gRPC, what they cost, and what becomes of too many.

The verifier is the real process with the simulated model, whose scores are hashes: what is measured is the way there and back.
The chains grow as those of a search do: each call asks for the newest steps of chains whose earlier ones were scored before. With
it, what a real reward model saves by computing new steps only: see `prm`.
"""

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.table import Table

from ramify.cli.bench import prm
from ramify.cli.bench.open_loop import Outcome, open_loop
from ramify.cli.output import make_console
from ramify.local.child import Child
from ramify.scheduler.actors.scoring import CALLS_MAX
from ramify.verifier.client import VerifierClient
from ramify.verifier.columns import ChainColumns

BATCHES = (256, 1024)
STEPS = 16  # of a chain that is grown up; 8.5 on average
STEP_BYTES = (24, 40)  # also of a problem
LONG_BYTES = (150, 250)
ROUNDS = 5
MODEL = "sim-prm"
UNIT = 100_000  # scores that CPU seconds are given for
SLOW = "simulated?token_us=2"  # a machine that bears less than gRPC does: what is too much for it isn't too much for the bench
DEADLINE_MS = 250
OPEN_MAX = 96  # calls, where they come when they are due


class Growth:
    """Batches of chains that grow by a step from each to the next, and begin anew, with other problems, once grown up."""

    def __init__(self, chains: int, seed: int, step_bytes: tuple[int, int] = STEP_BYTES) -> None:
        rng = np.random.default_rng(seed)
        counts = rng.integers(step_bytes[0], step_bytes[1] + 1, (chains, 1 + STEPS)).astype(np.int32)
        text = rng.integers(97, 123, int(counts.sum()), np.uint8)
        ends = np.cumsum(counts).reshape(counts.shape)
        starts = ends[:, 0] - counts[:, 0]
        self._batches = list[tuple[ChainColumns, Any]]()
        for steps in range(1, STEPS + 1):
            mine = counts[:, : steps + 1]
            texts = [text[start:end] for start, end in zip(starts.tolist(), ends[:, steps].tolist(), strict=True)]
            columns = ChainColumns(np.concatenate(texts), mine.ravel(), np.full(chains, steps, np.int32))
            heads = (columns.byte_ends - mine.sum(axis=1))[:, None] + np.arange(8)
            self._batches.append((columns, heads))
        self._passes = seed << 32

    def __iter__(self) -> Iterator[ChainColumns]:
        while True:
            self._passes += 1
            name = np.frombuffer(self._passes.to_bytes(8, "little"), np.uint8)
            for columns, heads in self._batches:
                columns.text[heads] = name  # at each chain's begin: a problem that nobody has seen
                yield columns


@dataclass(frozen=True, slots=True)
class Place:
    """A verifier's process, and a client of it."""

    client: VerifierClient
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds of a core that the process has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    async def send(self, columns: ChainColumns, deadline_ms: int = 30_000) -> None:
        """Have a batch scored, as a scheduler does."""
        await self.client.score_columns(MODEL, columns, deadline_ms=deadline_ms, wait_for_ready=False)


@contextlib.asynccontextmanager
async def a_verifier(model: str = "simulated") -> AsyncIterator[Place]:
    """The real process, with a simulated model."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child("ramify.verifier", ["--model", f"{MODEL}={model}"], "127.0.0.1:0", Path(folder))
        child.start()
        try:
            await asyncio.to_thread(child.wait_ready)
            assert child.pid is not None
            async with VerifierClient(child.address) as client:
                yield Place(client, psutil.Process(child.pid))
        finally:
            await asyncio.to_thread(child.stop)


async def one_round(place: Place, growths: list[Iterator[ChainColumns]], seconds: float) -> tuple[int, float]:
    """Scores that came within the time, with a call open for each growth, and how long they really took."""
    began, scores = time.perf_counter(), 0

    async def go(growth: Iterator[ChainColumns]) -> None:
        nonlocal scores
        while time.perf_counter() < began + seconds:
            columns = next(growth)
            await place.send(columns)
            scores += len(columns)

    await asyncio.gather(*map(go, growths))
    return scores, time.perf_counter() - began


async def measure(place: Place, growths: list[Iterator[ChainColumns]], seconds: float) -> dict[str, Any]:
    """Figures of asking as fast as answers come."""
    await one_round(place, growths, seconds / 4)  # warms up
    client_s, server_s = time.process_time(), place.cpu_s()
    rounds = [await one_round(place, growths, seconds) for _ in range(ROUNDS)]
    client_s, server_s = time.process_time() - client_s, place.cpu_s() - server_s
    rates, total = [scores / elapsed for scores, elapsed in rounds], sum(scores for scores, _ in rounds)
    return {
        "scores_per_s": round(max(rates)),
        "scores_per_s_median": round(statistics.median(rates)),
        "client_cpu_s_per_100k": round(client_s / total * UNIT, 3),
        "server_cpu_s_per_100k": round(server_s / total * UNIT, 3),
    }


async def at_half_load(place: Place, growths: list[Iterator[ChainColumns]], rate: float, seconds: float) -> Outcome:
    """What calls take that come at half of the best rate, each when it is due."""
    return await open_loop(place.send, growths, BATCHES[0], rate / 2, ROUNDS * seconds)


async def too_much(calls: int, seconds: float) -> dict[str, Any]:
    """Twice the load that a verifier bears, with deadlines: what comes in time of what could."""

    async def send(columns: ChainColumns) -> None:
        await place.send(columns, DEADLINE_MS)

    async with a_verifier(SLOW) as place:
        growths = [iter(Growth(BATCHES[0], seed)) for seed in range(OPEN_MAX)]
        best = (await measure(place, growths[:calls], seconds))["scores_per_s_median"]
        found = await open_loop(send, growths, BATCHES[0], 2 * best, ROUNDS * seconds, late_ms=DEADLINE_MS)
    return {
        "bears_scores_per_s": best,
        "goodput": round(found.good / found.elapsed_s / best, 3),
        "refused": round(found.refused / found.sent, 3),
        "expired": round(found.expired / found.sent, 3),
        "unsent": found.unsent,
        "longest_ms": round(max(found.latencies_ms), 1),
        "deadline_ms": DEADLINE_MS,
    }


async def measure_all(calls: int, seconds: float) -> dict[str, Any]:
    """All figures but those of real models."""
    found: dict[str, Any] = {}
    async with a_verifier() as place:
        for chains in BATCHES:
            growths = [iter(Growth(chains, seed)) for seed in range(calls)]
            found[str(chains)] = await measure(place, growths, seconds)
        growths = [iter(Growth(BATCHES[0], seed, LONG_BYTES)) for seed in range(calls)]
        found[f"{BATCHES[0]}, long"] = await measure(place, growths, seconds)
        growths = [iter(Growth(BATCHES[0], seed)) for seed in range(OPEN_MAX)]
        half = await at_half_load(place, growths, found[str(BATCHES[0])]["scores_per_s_median"], seconds)
    at_half = {f"p{share}_ms": round(half.percentile_ms(share), 1) for share in (50, 90, 99)}
    return {"batch": found, "half_load": at_half, "twice_the_load": await too_much(calls, seconds)}


def saved(figures: dict[str, Any] | str) -> str:
    """What a model saves, for people; or why it was not measured."""
    if isinstance(figures, str):
        return figures
    return ", ".join(f"{figures[steps]['cpu_ratio']} times less up to step {steps}" for steps in figures if steps.isdecimal())


def verifier(
    seconds: Annotated[float, typer.Option(min=0.01, help=f"Of each of the {ROUNDS} rounds.")] = 1.0,
    calls: Annotated[int, typer.Option(min=1, max=64, help="Open at once.")] = 2 * CALLS_MAX,  # as two shards have
    models: Annotated[
        bool, typer.Option(help="Measure what real models save by computing new steps only; it takes a minute or two.")
    ] = True,
) -> None:
    """Scores per second through gRPC and their cost, delays at half load, and what comes of twice the load."""
    found = asyncio.run(measure_all(calls, seconds))
    found |= {"incremental": prm.measure()} if models else {}
    table = Table("batch", "scores/s", "median", "client CPU s per 100k", "verifier CPU s per 100k")
    for name, figures in found["batch"].items():
        cost = figures["client_cpu_s_per_100k"], figures["server_cpu_s_per_100k"]
        table.add_row(name, f"{figures['scores_per_s']:,}", f"{figures['scores_per_s_median']:,}", *map(str, cost))
    console = make_console()
    console.print(table)
    half, twice = found["half_load"], found["twice_the_load"]
    console.print(f"at half of that load: p50 {half['p50_ms']} ms, p99 {half['p99_ms']} ms")
    console.print(f"at twice what a slower model bears: {twice['goodput']:.0%} of its best comes in time")
    for name in ("tiny24", "decoder") if models else ():
        console.print(f"CPU time of {name}, new steps only: {saved(found['incremental'][name])}")
    print(json.dumps({"calls": calls, "scores_per_s": found["batch"][str(BATCHES[0])]["scores_per_s"], **found}))
