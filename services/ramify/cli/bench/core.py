"""`ramify bench core`: how fast the pure core decides, and how many bytes a live chain takes.

One shard is fed by an engine and a verifier that answer at once, with columns that were made beforehand or from node ids; only
the time of a core inside of `Shard.handle` counts. Every chain is alive at once: all trees are admitted before any step lands.
"""

import gc
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from ramify.cli.output import make_console
from ramify.scheduler.commands import Command, Commit, Generate, Score
from ramify.scheduler.engines.base import Finish, StepParams
from ramify.scheduler.events import Committed, Event, StepsSampled, StepsScored, Tick, TreesAdmitted
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.ids import root_ids, tree_ids, uniforms
from ramify.scheduler.memory import keep_freed_memory
from ramify.scheduler.plan import Generator, JobPlan, Verifier
from ramify.scheduler.policies.knobs import Knobs
from ramify.scheduler.shard import Shard, ShardLimits

STEP_TOKENS = 16
STEP_BYTES = 32
PROMPT_TOKENS = 32
COMMIT_MS = 100  # of the virtual clock; a turn takes a millisecond of it

# name -> knobs. Chains of the level algorithms end after three steps, as those of the puzzles do.
ALGORITHMS: dict[str, dict[str, int | float | str]] = {
    "beam": {"policy": "beam", "n": 16},
    "dvts": {"policy": "dvts", "n": 16},
    "rebase": {"policy": "rebase", "n": 16},
    "best_of_n": {"policy": "best_of_n", "n": 16},
    "mcts": {"policy": "mcts", "iterations": 16, "branch": 4, "parallel": 4},
}


@dataclass(slots=True)
class Run:
    """One algorithm's run."""

    shard: Shard
    plan: JobPlan
    batch: int
    busy_s: float = 0.0  # of a core, inside of `handle`
    steps: int = 0
    chains: int = 0  # most nodes in flight or open at once
    bytes_: int = 0  # of the columns at that moment
    now_ms: int = 0
    todo: deque[Command] = field(default_factory=deque)

    def feed(self, events: list[Event]) -> None:
        """Have the shard handle events, on the clock."""
        began = time.process_time()
        found = self.shard.handle(events)
        self.busy_s += time.process_time() - began
        self.todo.extend(found)

    def go(self) -> None:
        """Answer commands until nothing is wanted any more."""
        while self.todo:
            self.now_ms += 1
            events = self.answers()
            self.measure()
            self.feed([*events, Tick(self.now_ms)])
        self.feed([Tick(self.now_ms + COMMIT_MS)])
        while self.todo:
            self.feed([*self.answers(), Tick(self.now_ms + 2 * COMMIT_MS)])

    def answers(self) -> list[Event]:
        """Answers to about a batch of steps."""
        events: list[Event] = []
        size = 0
        while self.todo and size < self.batch:
            command = self.todo.popleft()
            match command:
                case Generate():
                    rows = min(len(command.hint), self.batch - size)
                    if rows < len(command.hint):
                        self.todo.appendleft(tail(command, rows))
                    events.append(sampled(command, rows))
                    self.steps += rows
                    size += rows
                case Score():
                    events.append(scored(command))
                case Commit():
                    events.append(Committed(command.sequence))
                case _:
                    raise AssertionError(f"no {type(command).__name__} is expected")
        return events

    def measure(self) -> None:
        """Keep the size of the columns at the moment of the most chains."""
        forest = self.shard.forest
        if self.now_ms % 16 and self.chains:
            return
        status = forest.status[: forest.size]
        live = int(np.isin(status, (Status.SAMPLING, Status.SCORING, Status.OPEN)).sum())
        if live > self.chains:
            self.chains, self.bytes_ = live, forest.column_bytes


def tail(command: Generate, first: int) -> Generate:
    """The rows of a command from `first` on, for a fake engine: it looks at names alone, so the chains are left out."""
    none = np.empty(0, np.int32)
    return Generate(
        command.plan,
        command.generator,
        command.params,
        command.speculative,
        none,
        np.zeros(1, np.int64),
        command.parent_id,
        command.group[first:],
        command.hint[first:],
        command.tree_id[first:],
        command.node_id[first:],
        command.code[first:],
        command.attempt[first:],
        command.depth[first:],
    )


def sampled(command: Generate, rows: int) -> StepsSampled:
    """Steps of even length whose text is made of the node's id."""
    node_id = command.node_id[:rows]
    text = np.tile(node_id.view(np.uint8).reshape(rows, 8) % 26 + 97, STEP_BYTES // 8).reshape(-1)
    return StepsSampled(
        hint=command.hint[:rows],
        tree_id=command.tree_id[:rows],
        node_id=node_id,
        tokens=np.zeros(rows * STEP_TOKENS, np.int32),
        token_count=np.full(rows, STEP_TOKENS, np.int32),
        text=text,
        text_count=np.full(rows, STEP_BYTES, np.int32),
        logprob=-uniforms(node_id, 1).astype(np.float32),
        finish=np.full(rows, Finish.STEP, np.uint8),
        score=np.full(rows, np.nan, np.float32),
    )


def scored(command: Score) -> StepsScored:
    """Scores made of the nodes' ids; of a chain's earlier steps the shard knows them already."""
    chains = command.chains
    last = uniforms(chains.node_id, 3).astype(np.float32)
    scores = np.repeat(last, chains.length)
    return StepsScored(chains.hint, chains.tree_id, chains.node_id, scores, chains.length)


def admitted(plan: JobPlan, trees: int) -> TreesAdmitted:
    """Many problems at once."""
    index = np.arange(trees, dtype=np.int64)
    return TreesAdmitted(
        plan=plan,
        tree_id=tree_ids(plan.job_id, index),
        problem=index,
        root_id=root_ids(0, index),
        tokens=np.zeros(trees * PROMPT_TOKENS, np.int32),
        token_count=np.full(trees, PROMPT_TOKENS, np.int32),
        text=np.zeros(trees * PROMPT_TOKENS, np.uint8),
        text_count=np.full(trees, PROMPT_TOKENS, np.int32),
    )


def measure(name: str, chains: int, batch: int, depth: int) -> dict[str, Any]:
    """Run one algorithm to its end."""
    knobs = Knobs.fill({**ALGORITHMS[name], "max_steps": depth, "max_step_tokens": 64})
    params = StepParams(1.0, 1.0, 64, "\n")
    plan = JobPlan("bench", knobs.build(), params, (Generator("generator"),), (Verifier("verifier"),), "", cut="answer")
    live = 16 if name != "mcts" else knobs["branch"] * knobs["parallel"]
    run = Run(Shard(ShardLimits(flush_ms=COMMIT_MS)), plan, batch)
    gc.collect()
    gc.disable()
    run.feed([admitted(plan, max(1, chains // live))])
    run.go()
    gc.enable()
    decisions = run.steps / knobs["branch"] if name == "mcts" else run.steps
    found = {
        "steps_per_s": round(run.steps / run.busy_s),
        "bytes_per_chain": round(run.bytes_ / run.chains, 1),
        "chains": run.chains,
        "steps": run.steps,
        "seconds": round(run.busy_s, 2),
    }
    return found | ({"decisions_per_s": round(decisions / run.busy_s)} if name == "mcts" else {})


def core(
    chains: Annotated[int, typer.Option(min=16, help="Live chains.")] = 1_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Steps that land in one call.")] = 16_384,
    depth: Annotated[int, typer.Option(min=1, help="Steps of a chain.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Only these algorithms.")] = None,
) -> None:
    """Steps per second of the pure core, one process, and bytes per live chain apart from its tokens and text."""
    keep_freed_memory()  # as a shard's process does
    figures: dict[str, object] = {"chains": chains, "batch": batch, "depth": depth}
    table = Table("algorithm", "steps/s", "decisions/s", "bytes per chain", "live chains")
    # What a process allocates first costs page faults that it never pays again. A shard lives long: the first run doesn't count.
    measure(next(iter(only or ALGORITHMS)), chains, batch, depth)
    for name in only or ALGORITHMS:
        found = figures[name] = measure(name, chains, batch, depth)
        decisions = found.get("decisions_per_s")
        table.add_row(
            name,
            f"{found['steps_per_s']:,}",
            f"{decisions:,}" if decisions else "",
            f"{found['bytes_per_chain']:.0f}",
            f"{found['chains']:,}",
        )
    make_console().print(table)
    print(json.dumps(figures))
