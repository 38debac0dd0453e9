"""`ramify bench quality`: how many of the 200 held-out puzzles each way of spending compute solves."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ramify.cli.bench.check import solves
from ramify.cli.local import running
from ramify.cli.output import make_console
from ramify.cli.watch import follow, summary
from ramify.client import Client
from ramify.local.models import tiny24
from ramify.local.system import LocalConfig

LIMITS: dict[str, int] = {"max_steps": 8, "max_step_tokens": 32}

# name -> knobs; `beam16.solved` is a figure that DESIGN.md section 10 holds us to
METHODS: dict[str, dict[str, object]] = {
    "greedy": {"policy": "best_of_n", "n": 1, "temperature": 0.0},
    "one_sample": {"policy": "best_of_n", "n": 1},
    "best_of_16": {"policy": "best_of_n", "n": 16, "aggregate": "prod"},
    "best_of_16_spread": {"policy": "best_of_n", "n": 16, "aggregate": "prod", "siblings": "spread"},
    "beam16": {"policy": "beam", "n": 16, "keep": 8, "aggregate": "prod", "threshold": 0.3},
}


def quality(
    puzzles: Annotated[int, typer.Option(min=1, max=200, help="How many of the held-out puzzles.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """Greedy, one sample, best-of-16 and beam 16 on the held-out puzzles: solved, and tokens spent."""
    console = make_console()
    lines = [line for line in (tiny24() / "heldout.txt").read_text().split("\n") if line][:puzzles]
    figures: dict[str, object] = {"puzzles": len(lines), "seed": seed}
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as home:
        config = LocalConfig(Path(home), "127.0.0.1:0", dashboard=False)
        with running(config, console) as system, Client(system.address) as client:
            for name, knobs in METHODS.items():
                console.print(Text(name, "bold"))
                job = client.submit(lines, name=name, checker="countdown", seed=seed, **LIMITS, **knobs)  # type: ignore[arg-type]
                job = follow(client, job.job_id, console)
                console.print(summary(job))
                results = list(client.results(job.job_id))
                solved = sum(solves(*read(result.problem.text), result.steps) for result in results)
                if solved != job.progress.problems_solved:
                    raise AssertionError(f"two checkers disagree: {solved} and {job.progress.problems_solved}")
                took = job.finish_time.ToMilliseconds() - job.start_time.ToMilliseconds()
                figures[name] = {
                    "solved": solved / len(lines),
                    "tokens_per_puzzle": round(job.progress.tokens / len(lines), 1),
                    "seconds": took / 1000,
                }
    console.print(table(figures))
    print(json.dumps(figures))


def read(problem: str) -> tuple[list[int], int]:
    """Numbers and target of a puzzle such as `4 5 6 10>24`."""
    numbers, _, target = problem.partition(">")
    return [int(number) for number in numbers.split()], int(target)


def table(figures: dict[str, object]) -> Table:
    """The figures for people."""
    found = Table("method", "solved", "tokens per puzzle", "seconds")
    for name, each in figures.items():
        if isinstance(each, dict):
            found.add_row(name, f"{each['solved']:.1%}", f"{each['tokens_per_puzzle']:,}", f"{each['seconds']:.1f}")
    return found
