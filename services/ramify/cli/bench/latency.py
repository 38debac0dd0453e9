"""`ramify bench latency`: one problem alone on an idle fleet, with and without a barrier inside its tree.

What is sampled and how it scores comes from the tiny models, so that the accuracy is real. When it is there comes from a model of
an engine with long-tailed steps, on a virtual clock: a step takes `token_ms` for each of a number of tokens that is log-normal,
the same for a node in every run. The engine has room for all that one problem wants, so no step waits for another.
"""

import asyncio
import heapq
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from tokenizers import Tokenizer

from ramify.cli.bench.check import solves
from ramify.cli.output import make_console
from ramify.local.models import tiny24
from ramify.scheduler.actors.lanes import Rows
from ramify.scheduler.commands import Chains, Check, Commit, Generate, Score
from ramify.scheduler.engines.base import StepBatch, StepParams, StepResults
from ramify.scheduler.engines.columns import concatenate, take_rows
from ramify.scheduler.engines.onnx import OnnxEngine
from ramify.scheduler.events import AnswersChecked, Committed, Event, StepsScored, Tick, TreesAdmitted
from ramify.scheduler.forest.columns import TreeStatus
from ramify.scheduler.forest.ids import root_ids, tree_ids, uniforms
from ramify.scheduler.plan import Generator, JobPlan, Verdict, Verifier
from ramify.scheduler.policies.knobs import Knobs, Value
from ramify.scheduler.shard import Shard
from ramify.verifier.chains import Chain
from ramify.verifier.columns import ChainColumns
from ramify.verifier.loading import load_model

TOKEN_MS = 15.0  # of a 7B model on an idle GPU
STEP_TOKENS = 60.0  # median
SIGMA = 0.8  # of the logarithm of a step's tokens: one in a hundred has more than six times the median
VERIFY_MS = 30.0  # one call of the verifier

BEAM: dict[str, Value] = {"policy": "beam", "n": 16, "keep": 8, "aggregate": "prod", "max_steps": 8, "max_step_tokens": 32}
MODES: dict[str, dict[str, Value]] = {
    "level": BEAM | {"finished": "retire"},
    "none": BEAM | {"barrier": "none"},
    "none_speculating": BEAM | {"barrier": "none", "speculate": 4},
}


def duration_ms(node_id: NDArray[np.uint64]) -> NDArray[np.float64]:
    """`[R]` how long the steps take: log-normal, by Box and Muller's transform of two numbers of the node's."""
    normal = np.sqrt(-2 * np.log1p(-uniforms(node_id, 11))) * np.cos(2 * np.pi * uniforms(node_id, 12))
    return np.asarray(TOKEN_MS * STEP_TOKENS * np.exp(SIGMA * normal))


@dataclass(slots=True)
class Alone:
    """One problem, with a shard and a clock of its own."""

    problem: str
    shard: Shard = field(default_factory=Shard)
    now_ms: float = 0.0
    ended_ms: float = 0.0
    tokens: int = 0  # sampled, also for nothing
    solved: bool = False
    coming: list[tuple[float, int, Event]] = field(default_factory=list)  # a heap
    wanted: list[Generate | Score] = field(default_factory=list)  # what has to be made before the clock may go on
    made: int = 0

    def later(self, delay_ms: float, event: Event) -> None:
        """Have an event happen after a while."""
        self.made += 1
        heapq.heappush(self.coming, (self.now_ms + delay_ms, self.made, event))

    def turn(self) -> None:
        """Let the clock go on to what happens next."""
        self.now_ms = self.coming[0][0]
        events: list[Event] = []
        while self.coming and self.coming[0][0] == self.now_ms:
            events.append(heapq.heappop(self.coming)[2])
        while events:
            found = self.shard.handle([*events, Tick(int(self.now_ms))])
            events = []
            for command in found:
                match command:
                    case Generate() | Score():
                        self.wanted.append(command)
                    case Check():
                        self._check(command.chains)
                        events.append(AnswersChecked(command.chains.tree_id, np.array([Verdict.UNKNOWN], np.uint8)))
                    case Commit():
                        events.append(Committed(command.sequence))
                    case _:
                        pass  # what is withdrawn has begun here, and ends by itself
        if self.shard.forest.trees.status[0] != TreeStatus.GROWING:
            self.ended_ms = self.now_ms

    def _check(self, chains: Chains) -> None:
        (problem, steps), *_ = chains.texts()
        numbers, _, target = problem.partition(">")
        self.solved = solves([int(number) for number in numbers.split()], int(target), [step.rstrip("\n") for step in steps])


class Bench:
    """The models, and many problems that are each alone."""

    def __init__(self) -> None:
        self.engine = OnnxEngine(tiny24() / "generator")
        self.scorer = load_model("prm", str(tiny24() / "prm"))
        self.tokenizer = Tokenizer.from_str(self.engine.info.tokenizer_json)

    async def run(self, problems: Sequence[str], mode: dict[str, Value], seed: int) -> list[Alone]:
        """Every problem on a clock of its own; what they want sampled is sampled together."""
        found = [Alone(problem) for problem in problems]
        knobs = Knobs.fill(mode)
        params = StepParams(knobs["temperature"], knobs["top_p"], knobs["max_step_tokens"], "\n")
        plan = JobPlan("bench", knobs.build(), params, (Generator("g"),), (Verifier("v"),), "c", aggregate=knobs["aggregate"])
        for index, each in enumerate(found):
            prompt = self.engine.info.prompt_template.replace("{problem}", each.problem)
            tokens = np.array(self.tokenizer.encode(prompt, add_special_tokens=False).ids, np.int32)
            text = np.frombuffer(each.problem.encode(), np.uint8)
            number = np.array([index], np.int64)
            count = np.array([len(tokens)], np.int32), np.array([len(text)], np.int32)
            roots = root_ids(seed, number)
            each.later(0, TreesAdmitted(plan, tree_ids("bench", number), number, roots, tokens, count[0], text, count[1]))
        running = found
        while running:
            for each in running:
                each.turn()
            running = [each for each in running if not each.ended_ms]
            await self._sample(running)
            self._score(running)
        return found

    async def _sample(self, running: list[Alone]) -> None:
        asked = [(each, command) for each in running for command in each.wanted if isinstance(command, Generate)]
        if not asked:
            return
        commands = [command for _, command in asked]
        chains = np.cumsum([0, *(len(command.offsets) - 1 for command in commands)])
        tokens = np.cumsum([0, *(len(command.tokens) for command in commands)])
        batch = StepBatch(
            tokens=np.concatenate([command.tokens for command in commands]),
            offsets=np.concatenate([[0], *(command.offsets[1:] + tokens[i] for i, command in enumerate(commands))]),
            params=(commands[0].params,),
            group_params=np.zeros(chains[-1], np.int32),
            group=np.concatenate([command.group + chains[i] for i, command in enumerate(commands)]).astype(np.int32),
            code=np.concatenate([command.code for command in commands]),
            seed=np.concatenate([command.node_id for command in commands]),
        )
        parts: list[StepResults] = [part async for part in self.engine.generate(batch)]
        results = concatenate(parts)
        place = np.argsort(results.row)
        start = 0
        for each, command in asked:
            took = duration_ms(command.node_id)
            for row in range(len(command.hint)):
                one = take_rows(results, place[start + row : start + row + 1])
                one.row[:] = row
                each.tokens += int(one.token_count[0])
                each.later(float(took[row]), Rows.of([command]).sampled(one))
            start += len(command.hint)

    def _score(self, running: list[Alone]) -> None:
        asked = [(each, command) for each in running for command in each.wanted if isinstance(command, Score)]
        chains = [Chain(problem, tuple(steps)) for _, command in asked for problem, steps in command.chains.texts()]
        columns = ChainColumns.of(chains)
        scores = self.scorer.score_columns(columns).chains(columns)
        start = 0
        for each, command in asked:
            length = command.chains.length
            mine = scores[start : start + len(length)]
            start += len(length)
            flat = [score.scores or [np.nan] * count for score, count in zip(mine, length.tolist(), strict=True)]
            values = np.array([value for chain in flat for value in chain], np.float32)
            named = command.chains
            each.later(VERIFY_MS, StepsScored(named.hint, named.tree_id, named.node_id, values, length))
        for each in running:
            each.wanted.clear()


def latency(
    puzzles: Annotated[int, typer.Option(min=1, max=200, help="How many of the held-out puzzles, each of them alone.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """Latency of a beam of 16 for one problem alone: with a barrier at each level, without, and without but speculating."""
    bench = Bench()
    problems = [line for line in (tiny24() / "heldout.txt").read_text().split("\n") if line][:puzzles]
    figures: dict[str, object] = {"puzzles": len(problems), "seed": seed}
    table = Table("barrier", "median s", "p95 s", "solved", "tokens per puzzle")
    medians: dict[str, float] = {}
    tokens: dict[str, float] = {}

    async def measure() -> None:
        for name, mode in MODES.items():
            found = await bench.run(problems, mode, seed)
            ended = sorted(each.ended_ms / 1000 for each in found)
            medians[name], p95 = statistics.median(ended), ended[int(0.95 * (len(ended) - 1))]
            tokens[name] = statistics.fmean(each.tokens for each in found)
            solved = statistics.fmean(each.solved for each in found)
            figures[name] = {
                "median_s": round(medians[name], 2),
                "p95_s": round(p95, 2),
                "solved": solved,
                "tokens_per_puzzle": round(tokens[name], 1),
            }
            table.add_row(name, f"{medians[name]:.2f}", f"{p95:.2f}", f"{solved:.1%}", f"{tokens[name]:,.0f}")
        await bench.engine.close()

    asyncio.run(measure())
    for name in ("none", "none_speculating"):
        figures[f"speedup_{name}"] = round(medians["level"] / medians[name], 2)
        figures[f"extra_tokens_{name}"] = round(tokens[name] / tokens["level"] - 1, 3)
    figures["speedup"] = figures["speedup_none"]
    make_console().print(table)
    print(json.dumps(figures))
