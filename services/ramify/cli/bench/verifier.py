"""`ramify bench verifier`: how many scores a scheduler gets through gRPC, and what they cost it and the verifier.

The verifier is the real process with the simulated model, whose scores are hashes: what is measured is the way there and back. A
score is that of a chain's newest step, for which a search asks; those of the earlier steps, which come along, do not count.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.table import Table

from ramify.cli.output import make_console
from ramify.local.child import Child
from ramify.scheduler.actors.scoring import CALLS_MAX
from ramify.verifier.client import VerifierClient
from ramify.verifier.columns import ChainColumns

BATCHES = (256, 1024)
STEPS = (6, 10)  # of a chain
STEP_BYTES = (24, 40)  # also of a problem
VARIETY = 16  # batches that differ, sent in turn
ROUNDS = 5
MODEL = "sim-prm"
UNIT = 100_000  # scores that CPU seconds are given for

Send = Callable[[int], Awaitable[object]]  # scores the batch of that number


def batch_of(chains: int, seed: int) -> ChainColumns:
    """Chains of letters, about as long as those of a search."""
    rng = np.random.default_rng(seed)
    length = rng.integers(STEPS[0], STEPS[1] + 1, chains).astype(np.int32)
    text_count = rng.integers(STEP_BYTES[0], STEP_BYTES[1] + 1, chains + int(length.sum())).astype(np.int32)
    return ChainColumns(rng.integers(97, 123, int(text_count.sum()), np.uint8), text_count, length)


async def one_round(send: Send, chains: int, calls: int, seconds: float) -> tuple[int, float]:
    """Scores that came within the time, and how long they really took."""
    began, scores, number = time.perf_counter(), 0, 0

    async def go() -> None:
        nonlocal scores, number
        while time.perf_counter() < began + seconds:
            number += 1
            await send(number % VARIETY)
            scores += chains

    await asyncio.gather(*(go() for _ in range(calls)))
    return scores, time.perf_counter() - began


async def measure(send: Send, chains: int, calls: int, seconds: float, server: psutil.Process) -> dict[str, Any]:
    """Figures of one way of asking, in batches of so many chains."""
    await one_round(send, chains, calls, seconds / 4)  # warms up
    client_s, server_s = time.process_time(), cpu_s(server)
    rounds = [await one_round(send, chains, calls, seconds) for _ in range(ROUNDS)]
    client_s, server_s = time.process_time() - client_s, cpu_s(server) - server_s
    rates, total = [scores / elapsed for scores, elapsed in rounds], sum(scores for scores, _ in rounds)
    return {
        "scores_per_s": round(max(rates)),
        "scores_per_s_median": round(statistics.median(rates)),
        "client_cpu_s_per_100k": round(client_s / total * UNIT, 3),
        "server_cpu_s_per_100k": round(server_s / total * UNIT, 3),
    }


async def measure_all(address: str, pid: int, calls: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Figures by name: of columns in batches of each size, and of an object for each chain."""
    found: dict[str, dict[str, Any]] = {}
    server = psutil.Process(pid)
    async with VerifierClient(address) as client:
        for chains in BATCHES:
            columns = [batch_of(chains, seed) for seed in range(VARIETY)]
            found[str(chains)] = await measure(columns_sender(client, columns), chains, calls, seconds, server)
        objects = [batch_of(BATCHES[0], seed).chains() for seed in range(VARIETY)]

        async def send(number: int) -> object:
            return await client.score(MODEL, objects[number])

        found["objects"] = await measure(send, BATCHES[0], calls, seconds, server)
    return found


def columns_sender(client: VerifierClient, batches: Sequence[ChainColumns]) -> Send:
    """What sends one of the batches, as a scheduler does."""

    async def send(number: int) -> object:
        return await client.score_columns(MODEL, batches[number], wait_for_ready=False)

    return send


def cpu_s(process: psutil.Process) -> float:
    """Seconds of a core that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def verifier(
    seconds: Annotated[float, typer.Option(min=0.01, help=f"Of each of the {ROUNDS} rounds.")] = 1.0,
    calls: Annotated[int, typer.Option(min=1, max=64, help="Open at once.")] = CALLS_MAX,
) -> None:
    """Scores per second through gRPC, of chains of about 8 steps of 32 bytes, and the CPU time of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child("ramify.verifier", ["--model", f"{MODEL}=simulated"], "127.0.0.1:0", Path(folder))
        child.start()
        try:
            child.wait_ready()
            assert child.pid is not None
            found = asyncio.run(measure_all(child.address, child.pid, calls, seconds))
        finally:
            child.stop()
    table = Table("batch", "scores/s", "median", "client CPU s per 100k", "verifier CPU s per 100k")
    for name, figures in found.items():
        title = f"{BATCHES[0]}, as objects" if name == "objects" else f"{int(name):,}"
        cost = figures["client_cpu_s_per_100k"], figures["server_cpu_s_per_100k"]
        table.add_row(title, f"{figures['scores_per_s']:,}", f"{figures['scores_per_s_median']:,}", *map(str, cost))
    make_console().print(table)
    print(json.dumps({"calls": calls, "scores_per_s": found[str(BATCHES[0])]["scores_per_s"], "batch": found}))
