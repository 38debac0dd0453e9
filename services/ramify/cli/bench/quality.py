"""`ramify bench quality`: how many of the 200 held-out puzzles each way of spending compute solves, at equal budgets.

A budget is some chains' worth of tokens, and is enforced: nothing that could overrun it is dispatched. Each algorithm has the
knobs that let it use the budget; what it really spent is reported beside what it solved.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ramify.cli.bench.check import solves
from ramify.cli.bench.plot import plot
from ramify.cli.local import running
from ramify.cli.output import make_console
from ramify.cli.watch import follow, summary
from ramify.client import Client
from ramify.local.models import tiny24
from ramify.local.system import LocalConfig

CHAIN_TOKENS = 48  # a chain's worth: three steps of at most 16 tokens, as nearly all are
LIMITS: dict[str, object] = {"max_steps": 8, "max_step_tokens": 24}
SINGLE: dict[str, dict[str, object]] = {
    "greedy": {"policy": "best_of_n", "n": 1, "temperature": 0.0},
    "one_sample": {"policy": "best_of_n", "n": 1},
}


def methods(chains: int) -> dict[str, dict[str, object]]:
    """Every algorithm with the knobs that use some chains' worth of tokens; three steps make a chain."""
    branch = 2 * math.isqrt(chains)  # of the searches that have to find a good first step among few children
    expansions = 3 * chains // branch
    return {
        "best_of_n": {"policy": "best_of_n", "n": chains, "aggregate": "prod"},
        "best_of_n_spread": {"policy": "best_of_n", "n": chains, "aggregate": "prod", "siblings": "spread"},
        "self_consistency": {"policy": "self_consistency", "n": chains, "parallel": chains, "stop": "never"},
        "beam": {"policy": "beam", "n": chains, "keep": chains // 2, "aggregate": "prod", "threshold": 0.3},
        "dvts": {"policy": "dvts", "n": chains, "branch": 2, "aggregate": "prod"},
        "lookahead": {"policy": "lookahead", "n": chains // 2, "branch": 2, "aggregate": "prod"},
        "rebase": {"policy": "rebase", "n": chains, "aggregate": "prod"},
        "particle": {"policy": "particle", "n": chains},
        "mcts": {"policy": "mcts", "iterations": expansions, "branch": branch, "parallel": 1},
        "ab_mcts": {"policy": "ab_mcts", "iterations": 3 * chains, "parallel": 2, "aggregate": "prod"},
        "best_first": {"policy": "best_first", "iterations": expansions, "branch": branch},
        "revise": {"policy": "revise", "iterations": 2 * chains, "aggregate": "prod"},
    }


def quality(
    puzzles: Annotated[int, typer.Option(min=1, max=200, help="How many of the held-out puzzles.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    chains: Annotated[
        list[int] | None, typer.Option(min=4, help="Budgets in chains' worth of tokens; 4, 16 and 64 by default.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only these algorithms.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="Draw accuracy against tokens into this PNG.")] = None,
) -> None:
    """Every algorithm on the held-out puzzles at equal token budgets: solved, and tokens spent."""
    budgets = chains or [4, 16, 64]
    known = methods(4)
    for name in only or []:
        if name not in known:
            raise typer.BadParameter(f"there is no algorithm {name}; there are {', '.join(known)}")
    console = make_console()
    lines = [line for line in (tiny24() / "heldout.txt").read_text().split("\n") if line][:puzzles]
    figures: dict[str, object] = {"puzzles": len(lines), "seed": seed, "chain_tokens": CHAIN_TOKENS}
    with tempfile.TemporaryDirectory(prefix="ramify-bench-") as home:
        config = LocalConfig(Path(home), "127.0.0.1:0", dashboard=False)
        with running(config, console) as system, Client(system.address) as client:

            def measure(name: str, knobs: dict[str, object]) -> None:
                console.print(Text(name, "bold"))
                job = client.submit(lines, name=name, checker="countdown", seed=seed, **{**LIMITS, **knobs})  # type: ignore[arg-type]
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

            for name, knobs in SINGLE.items():
                measure(name, knobs)
            for budget in budgets:
                for name, knobs in methods(budget).items():
                    if not only or name in only:
                        measure(f"{name}{budget}", {**knobs, "tokens_per_problem_max": budget * CHAIN_TOKENS})
    console.print(table(figures, [name for name in known if not only or name in only], budgets))
    if picture:
        plot(figures, budgets, picture)
    print(json.dumps(figures))


def read(problem: str) -> tuple[list[int], int]:
    """Numbers and target of a puzzle such as `4 5 6 10>24`."""
    numbers, _, target = problem.partition(">")
    return [int(number) for number in numbers.split()], int(target)


def table(figures: dict[str, object], names: list[str], budgets: list[int]) -> Table:
    """The figures for people: solved, and in brackets the tokens a puzzle."""

    def cell(name: str) -> str:
        each = figures.get(name)
        return f"{each['solved']:.1%} ({each['tokens_per_puzzle']:,.0f})" if isinstance(each, dict) else ""

    found = Table("algorithm", *(f"{budget} chains' worth" for budget in budgets))
    for name in names:
        found.add_row(name, *(cell(f"{name}{budget}") for budget in budgets))
    for name in SINGLE:
        found.add_row(name, cell(name))
    return found
