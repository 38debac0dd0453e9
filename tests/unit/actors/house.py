"""Shells on a store, with engines and a verifier in this process, all of which do what the test says."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from ramify.scheduler.actors.engine_actor import BEGUN
from ramify.scheduler.actors.gate import Gate
from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.engines import base
from ramify.scheduler.engines.base import ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.scheduler.errors import EngineError
from ramify.scheduler.shard import ShardLimits
from ramify.scheduler.spec import fill_search
from ramify.store.audit import Actor
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.leases import Clock
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.submissions import Chunk, NewProblem
from ramify.store.uploads import Uploads
from ramify.store.work import Work
from ramify.v1 import job_pb2
from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.chains import Chain
from ramify.verifier.client import ColumnsScored
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import RevisionError, UnavailableError

PATIENCE_S = 60  # for what must come: an upper bound for a busy machine, never a delay
LEASE_MS = 600  # beats come every 150 ms
LIMITS = ShellLimits(lease_ms=LEASE_MS, shard=ShardLimits(flush_ms=5, snapshot_steps_min=40))
_incarnations = itertools.count(1)


@dataclass
class Engine:
    """An engine, a simulated one without time, which holds its answers back when it is told to."""

    name: str = "one"
    region: str = ""
    revision: str = "1"
    gone: bool = False
    batches_left: int = 1 << 30  # that it answers; the others wait
    sampled: int = 0  # steps
    seeds: set[int] = field(default_factory=set)  # of them: their nodes' ids
    more: asyncio.Event = field(default_factory=asyncio.Event)
    gate: Gate = field(default_factory=Gate)
    model: str = "simulated"  # what jobs call it
    engine: base.Engine = field(
        default_factory=lambda: SimulatedEngine(
            SimulatedParams(time_scale=0, step_lengths="uniform", step_tokens_min=2, step_tokens_max=6, slots=16)
        )
    )

    async def describe(self) -> ModelInfo:
        if self.gone:
            raise EngineError("it is away")
        return replace(self.engine.info, name=self.model, revision=self.revision)

    async def generate(self, batch: StepBatch, *, alone: bool = False) -> AsyncIterator[StepResults]:
        async with self.gate.passed(alone=alone):
            if alone:
                yield BEGUN
            while self.batches_left <= 0:
                self.more.clear()
                await self.more.wait()
            self.batches_left -= 1
            if self.gone:
                raise EngineError("it is away")
            async for results in self.engine.generate(batch):
                self.sampled += len(results.row)
                self.seeds.update(batch.seed[results.row].tolist())
                yield results

    def go_on(self, batches: int = 1 << 30) -> None:
        """Answer so many batches more."""
        self.batches_left = batches
        self.more.set()


@dataclass
class Verifier:
    """Scores a step by its text and the model's name."""

    revision: str = "7"
    gone: bool = False
    away: set[str] = field(default_factory=set)  # models
    of: dict[str, str] = field(default_factory=dict)  # revisions of models that have another
    scored: Counter[tuple[str, Chain]] = field(default_factory=Counter)  # how often, by model
    asked: set[str] = field(default_factory=set)  # revisions

    async def get_model(self, name: str, *, deadline_ms: int) -> pb.Model:
        if self.gone:
            raise UnavailableError("connection refused")
        return pb.Model(name=name, revision=self.of.get(name, self.revision))

    async def score_columns(
        self, model: str, chains: ChainColumns, *, revision: str, last_only: bool, wait_for_ready: bool
    ) -> ColumnsScored:
        self.asked.add(revision)
        if self.gone or model in self.away:
            raise UnavailableError("connection refused")
        mine = self.of.get(model, self.revision)
        if revision != mine:
            raise RevisionError(f"{model} is of revision {mine}, not {revision}")
        self.scored.update((model, chain) for chain in chains.chains())
        found = [[score_of(model, step) for step in chain.steps] for chain in chains.chains()]
        scores = [score for steps in found for score in (steps[-1:] if last_only else steps)]
        return ColumnsScored(np.array(scores, np.float32), [], mine)


def score_of(model: str, step: str) -> float:
    """What a model says of a step."""
    return sum((model + step).encode()) % 101 / 101


class House:
    """A store, what is around it, and the shells that work on it."""

    def __init__(self, database: Database, work: Callable[[Database, Clock], Work] = Work, engines: int = 1) -> None:
        self.now_ms = 1_700_000_000_000  # by the store's clock: a lease ends when the test says so, however busy the machine is
        self.database, self.jobs = database, Jobs(database, self._clock)
        self._work = work
        self.engines = [Engine(f"engine {index}") for index in range(engines)]
        self.verifier = Verifier()
        self.running: dict[Shell, asyncio.Task[None]] = {}

    def start(self, shard: int = 0, limits: ShellLimits = LIMITS) -> Shell:
        """A new incarnation of a shard is set to work."""
        self.now_ms += 1
        owner = f"shard:{shard}@{next(_incarnations):08x}"
        shell = Shell(self._work(self.database, self._clock), owner, self.engines, self.verifier, limits)
        self.running[shell] = asyncio.create_task(shell.run())
        return shell

    async def _clock(self, _: AsyncConnection) -> int:
        return self.now_ms

    async def crash(self, shell: Shell) -> None:
        """It is gone in the middle of what it does."""
        run = self.running.pop(shell)
        run.cancel()
        await asyncio.wait({run})

    async def drain(self, shell: Shell) -> None:
        shell.stop()
        async with asyncio.timeout(PATIENCE_S):
            await self.running.pop(shell)

    async def ended(self, shell: Shell) -> BaseException | None:
        """What a shell has died of."""
        run = self.running.pop(shell)
        await asyncio.wait({run}, timeout=PATIENCE_S)
        return run.exception()

    async def submit(
        self,
        problems: int = 12,
        name: str = "a job",
        prompt: job_pb2.Prompt | None = None,
        text: str = "problem {}",
        generators: Mapping[str, float] | None = None,
        verifiers: Sequence[job_pb2.Verifier] = (),
        tenant: str = DEFAULT_TENANT,
        priority: int = 0,
        **knobs: Any,
    ) -> str:
        """A job that runs."""
        given: dict[str, Any] = {"policy": "beam", "n": 8, "keep": 4, "max_steps": 5, "seed": 3} | knobs
        search = fill_search(job_pb2.Search(**given), "\n")
        several = [job_pb2.Generator(model=model, weight=weight) for model, weight in (generators or {}).items()]
        generator = "" if several else "simulated"
        verifier = "" if verifiers else "prm"
        spec = job_pb2.JobSpec(name=name, generator=generator, generators=several, verifier=verifier, verifiers=verifiers)
        spec.MergeFrom(job_pb2.JobSpec(checker="rule", search=search, prompt=prompt, priority=priority))
        texts = [text.format(index) for index in range(problems)]
        new = [NewProblem(job_pb2.Problem(text=text, reference=f"answer to {text}"), text) for text in texts]
        job = await Uploads(self.database, by=Actor(tenant)).create(name, spec, spec, Chunk(0, new, True), "call")
        return job.job_id

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for what must come."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                for shell, run in self.running.items():
                    assert not run.done(), f"{shell.keeper.owner} has ended: {run!r}"
                await asyncio.sleep(0.002)

    async def job(self, job_id: str) -> job_pb2.Job:
        return await self.jobs.get(job_id)

    async def steps(self, job_id: str) -> int:
        """Committed ones."""
        return (await self.job(job_id)).progress.steps

    async def done(self, job_id: str) -> job_pb2.Job:
        """Wait for a job's end."""

        async def ends() -> bool:
            return (await self.job(job_id)).state == job_pb2.JOB_STATE_DONE

        await self.until(ends)
        return await self.job(job_id)

    async def outcome(self, job_id: str) -> list[Any]:
        """Trees and results, comparable from job to job."""
        found: list[Any] = []
        for index in range((await self.job(job_id)).progress.problems_total):
            tree = await self.jobs.tree(job_id, index)
            nodes, result = tree.nodes, tree.result
            assert result is not None
            order = np.argsort(nodes.node_id)
            ends = np.cumsum(nodes.text_count)
            texts = [nodes.text[end - count : end].tobytes() for end, count in zip(ends, nodes.text_count, strict=True)]
            columns: list[Any] = [nodes.node_id, nodes.parent_id, nodes.token_count, nodes.finish]
            plain = [column[order].tolist() for column in columns]
            scores = [round(score, 5) for score in np.nan_to_num(nodes.score[order], nan=-1).tolist()]
            found.append([plain, scores, [texts[at] for at in order], list(result.steps), result.verdict, result.tokens])
        return found

    async def notices(self, job_id: str) -> list[str]:
        """What has happened to a job."""
        return [event.notice.text for event in (await self.jobs.history(job_id, 0)).events if event.HasField("notice")]

    async def close(self) -> None:
        for shell in [*self.running]:
            await self.crash(shell)


@asynccontextmanager
async def house(url: str, work: Callable[[Database, Clock], Work] = Work, engines: int = 1) -> AsyncIterator[House]:
    """A house on an empty store."""
    database = Database(url)
    await database.migrate()
    found = House(database, work, engines)
    try:
        yield found
    finally:
        await found.close()
        await database.close()
