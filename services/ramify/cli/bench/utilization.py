"""`ramify bench utilization`: how busy a fleet is, and how often a step meets the cache that its chain has warmed.

A shard and its dispatcher, as they are, and simulated engines, on a virtual clock: nothing waits, and a run comes out the same
each time. The best hit rate is that of one cache without bound for the whole fleet: it computes each prompt once, and of each
chain that is continued what goes beyond its last whole block of tokens. The ideal schedule has every slot in use from the first
step to the last, and prefills as much as that. Hits are counted by tokens, which is what they save, and by look-ups, one for
each group of siblings.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from ramify.cli.bench._virtual import VirtualLoop
from ramify.cli.output import make_console
from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.actors.homes import Place
from ramify.scheduler.commands import Check, Command, Commit, Generate, Score, Withdraw
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepParams, StepResults
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.scheduler.events import AnswersChecked, Committed, Event, StepsSampled, StepsScored, Tick, TreesAdmitted, joined
from ramify.scheduler.forest.ids import root_ids, tree_ids, uniforms
from ramify.scheduler.placement import Fleet, place
from ramify.scheduler.plan import Generator, JobPlan, Verdict, Verifier
from ramify.scheduler.policies.knobs import Knobs, Value
from ramify.scheduler.shard import Shard

VERIFY_S = 0.03  # one call of the verifier
TURN_S = 0.02  # from one turn of the shard to the next, all ways included: what comes meanwhile waits. A real one is faster
ORDER = {StepsSampled: 1, StepsScored: 2}  # in which events of a turn are handled, those of a kind as one; others before them
PROMPT_TOKENS = 400  # of a problem, with instructions
ALGORITHMS: dict[str, dict[str, Value]] = {
    "beam": {"policy": "beam", "n": 16, "keep": 4, "max_steps": 8, "max_step_tokens": 256},
    "mcts": {"policy": "mcts", "iterations": 32, "branch": 4, "parallel": 8, "max_steps": 8, "max_step_tokens": 256},
}


class Here:
    """An engine in this process, as a dispatcher sees it."""

    region = ""

    def __init__(self, name: str, params: SimulatedParams) -> None:
        self.name, self.engine = name, SimulatedEngine(params)
        self.tails = 0  # tokens of the chains that no cache holds: what of each goes beyond its last whole block

    async def describe(self) -> ModelInfo:
        """What its model is."""
        return self.engine.info

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        """See `EngineHandle.generate`; nobody is ever alone here."""
        length = np.diff(batch.offsets)[batch.group]
        self.tails += int(((length - 1) % self.engine.params.block_tokens + 1).sum())
        async for results in self.engine.generate(batch):
            yield results


@dataclass(slots=True)
class Drive:
    """A job on a fleet."""

    engines: list[Here]
    choose: Place
    knobs: Knobs
    shard: Shard = field(default_factory=Shard)
    inbox: list[Event] = field(default_factory=list)

    def post(self, event: Event) -> None:
        """Hand the shard an event."""
        self.inbox.append(event)

    async def run(self, problems: int, seed: int) -> float:
        """Grow all trees to their end; seconds that it took."""
        loop = asyncio.get_running_loop()
        dispatcher = Dispatcher(self.engines, self.post, now_s=loop.time, place=self.choose)
        dispatcher.begin()
        await asyncio.sleep(1)  # until all engines are found
        began_s = loop.time()
        self.post(self._admitted(problems, seed))
        while True:
            inbox, self.inbox = sorted(self.inbox, key=lambda event: ORDER.get(type(event), 0)), []
            events: list[Event] = [*joined(inbox), Tick(int(1000 * loop.time()))]
            for command in self.shard.handle(events):
                self._carry_out(command, dispatcher)
            dispatcher.pump()
            await asyncio.sleep(TURN_S)
            if not self.shard.live_trees and not self.inbox:
                break
        ended_s = loop.time()
        await dispatcher.close()
        for each in self.engines:
            await each.engine.close()
        return ended_s - began_s

    def _admitted(self, problems: int, seed: int) -> TreesAdmitted:
        knobs = self.knobs
        params = StepParams(knobs["temperature"], knobs["top_p"], knobs["max_step_tokens"], "\n")
        plan = JobPlan(
            "bench", knobs.build(), params, (Generator("simulated"),), (Verifier("v"),), "", aggregate=knobs["aggregate"]
        )
        number = np.arange(problems)
        tokens = np.random.default_rng(seed).integers(256, size=problems * PROMPT_TOKENS, dtype=np.int32)
        text = np.frombuffer(b"?" * problems, np.uint8)
        counts = np.full(problems, PROMPT_TOKENS, np.int32), np.ones(problems, np.int32)
        return TreesAdmitted(plan, tree_ids("bench", number), number, root_ids(seed, number), tokens, counts[0], text, counts[1])

    def _carry_out(self, command: Command, dispatcher: Dispatcher) -> None:
        loop = asyncio.get_running_loop()
        match command:
            case Generate():
                dispatcher.add(command)
            case Withdraw():
                dispatcher.withdraw(command)
            case Score():
                named = command.chains
                scores = np.repeat(uniforms(named.node_id, 7), named.length).astype(np.float32)
                event = StepsScored(named.hint, named.tree_id, named.node_id, scores, named.length)
                loop.call_later(VERIFY_S, self.post, event)
            case Check():
                named = command.chains
                self.post(AnswersChecked(named.tree_id, np.full(len(named.tree_id), Verdict.UNKNOWN, np.uint8)))
            case Commit():
                self.post(Committed(command.sequence))
            case _:
                raise AssertionError(f"none of the algorithms compares answers, but here is a {type(command).__name__}")


def at_random(seed: int) -> Place:
    """Anywhere, another place each time: as a balancer does that knows no trees."""
    chance = np.random.default_rng(seed)

    def choose(keys: NDArray[np.uint64], count: NDArray[np.int64], home: NDArray[np.int64], fleet: Fleet) -> NDArray[np.int64]:
        return chance.integers(len(fleet.key), size=len(keys))

    return choose


def figures_of(fleet: list[Here], took_s: float, problems: int) -> dict[str, float]:
    """What a run comes to, against the ideal schedule and the best cache."""
    params, stats = fleet[0].engine.params, [each.engine.stats() for each in fleet]
    hits, misses = sum(each.prefix_hits for each in stats), sum(each.prefix_misses for each in stats)
    cached, prefilled = sum(each.tokens_cached for each in stats), sum(each.tokens_prefilled for each in stats)
    sampled, read = sum(each.tokens_sampled for each in stats), sum(each.engine.context_tokens_read for each in fleet)
    blocks_of_prompts = problems * ((PROMPT_TOKENS - 1) // params.block_tokens * params.block_tokens)
    needed = blocks_of_prompts + sum(each.tails for each in fleet)
    token_ms = (params.token_ms + params.token_extra_ms * (params.slots - 1)) / params.slots  # of an engine that is full
    decode_s = sampled * token_ms / 1e3 + read * params.context_token_ns / 1e9
    ideal_s, stricter_s = (decode_s + each / params.prefill_tokens_per_s for each in (needed, problems * PROMPT_TOKENS))
    figures = {
        "busy": ideal_s / len(fleet) / took_s,
        "busy_against_a_cache_of_tokens": stricter_s / len(fleet) / took_s,  # not of blocks, as engines have
        "hit_rate": cached / (cached + prefilled),
        "best_hit_rate": 1 - needed / (cached + prefilled),
        "hit_gap": (prefilled - needed) / (cached + prefilled),
        "lookup_hit_rate": hits / (hits + misses),
        "lookup_best_hit_rate": 1 - problems / (hits + misses),
        "lookup_hit_gap": (misses - problems) / (hits + misses),
        "tokens_prefilled": prefilled,
        "tokens_prefilled_again": prefilled - needed,
        "tokens_sampled": sampled,
        "took_s": took_s,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def utilization(
    problems: Annotated[int, typer.Option(min=1, help="Problems of the job.")] = 1000,
    engines: Annotated[int, typer.Option(min=1, help="Engines of the fleet.")] = 8,
    slots: Annotated[int, typer.Option(min=1, help="Sequences that each runs at once.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """How busy a fleet is against the ideal schedule; prefix-cache hits against the best possible; beside random placement."""
    params = SimulatedParams(slots=slots, waiting_rows_max=1 << 24)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    table = Table(
        "algorithm", "placement", "busy", "tokens found", "best", "look-ups that hit", "best", "prefilled again", "virtual s"
    )
    for name, knobs in ALGORITHMS.items():
        figures[name] = {}
        for placement, choose in {"affinity": place, "random": at_random(seed)}.items():
            fleet = [Here(f"engine {index}", params) for index in range(engines)]
            drive = Drive(fleet, choose, Knobs.fill(knobs))
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                took_s = runner.run(drive.run(problems, seed))
            found = figures[name][placement] = figures_of(fleet, took_s, problems)
            rates = ("busy", "hit_rate", "best_hit_rate", "lookup_hit_rate", "lookup_best_hit_rate")
            counts = ("tokens_prefilled_again", "took_s")
            table.add_row(name, placement, *(f"{found[key]:.1%}" for key in rates), *(f"{found[key]:,.0f}" for key in counts))
    make_console().print(table)
    ours = [found["affinity"] for found in figures.values()]
    gap = max(each[key] for each in ours for key in ("hit_gap", "lookup_hit_gap"))
    ends = {"busy": min(each["busy"] for each in ours), "hit_gap": gap}
    print(json.dumps({"problems": problems, "engines": engines, "slots": slots, "seed": seed, **ends, **figures}))
