"""A cluster in one loop: the real shells of several shards over a store in memory, with everything around them that can fail.

All chance comes from one seed. A shard's process can die at every point before and after each of its calls of the store, stand
still, or run twice; calls and answers get lost or come late; clocks are wrong; the store is away or damaged. What must be true is
checked as it goes along (`MemoryStore`, `Costs`) and at the end.
"""

import asyncio
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.actors import admission, housekeeping
from ramify.scheduler.forest.ids import root_ids
from ramify.store.errors import Fenced, StoreUnavailable
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.work import WaitingProblem
from ramify.v1 import job_pb2
from tests.simulation import laws
from tests.simulation.costs import Costs
from tests.simulation.loop import VirtualLoop
from tests.simulation.member import Member
from tests.simulation.memory_store import DONE, RUNNING, MemoryStore
from tests.simulation.outside import NEAR, Pace, seed_of
from tests.simulation.store import Name, Step
from tests.simulation.storms import CALM, MANY, Storm
from tests.simulation.world import Work, plan

START_MS = 1_700_000_000_000
LOOK_S = 0.03  # between two looks whether all is done
END_S_MAX = 60.0  # after the storm
REST_S, SWEEP_S = 0.2, 0.5  # between two rounds of housekeeping: jobs here last a second or two


def commit() -> str:
    """The commit that is checked out: with the seed, it brings a failure back."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


class Cluster:
    """See the module."""

    def __init__(self, works: Sequence[Work], storm: Storm = CALM, seed: int = 0) -> None:
        self.works, self.storm, self.seed = works, storm, seed
        self.chance = random.Random(f"cluster {seed}")
        self.loop = VirtualLoop(seed_of("loop", seed))
        self.jump_ms = 0
        self.store = MemoryStore(self.clock)
        self.costs = Costs(self.store)
        pace = random.Random(f"pace {seed}")
        self.pace = Pace(pace, storm.step_ms_max, storm.batch_max, fails=storm.engine_fails, away=storm.verifier_away)
        self.members: list[Member] = []  # that live
        self.every: list[Member] = []  # that ever did
        self.points: Counter[str] = Counter()  # how often each was passed
        self.happened: Counter[str] = Counter()
        self.calm = self.down = False
        self.broken: list[str] = []
        self._context = copy_context()
        self.decoys = [Work(plan(f"decoy-{index}", n=4, keep=2), (0, 1), seed=100 + index) for index in range(storm.decoys)]
        for work in (*works, *self.decoys):
            roots = root_ids(work.seed, np.array(work.problems, np.int64)).tolist()
            self.store.data.root_of.update(zip(work.trees, roots, strict=True))

    def __repr__(self) -> str:
        works = [work.plan for work in self.works]
        return f"Cluster(seed={self.seed}, storm={self.storm}, works={works}) at commit {commit()}; {dict(self.happened)}"

    def clock(self) -> int:
        """The store's, in milliseconds."""
        return START_MS + int(1000 * self.loop.time()) + self.jump_ms

    # --- a run ------------------------------------------------------------------------------------------------------

    def run(self) -> "Cluster":
        """Go on until every job has ended, and check what must be true then."""
        plans = {work.plan.job_id: work.plan for work in (*self.works, *self.decoys)}
        state = random.getstate()
        random.seed(self.seed)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(admission, "plan_of", lambda job_id, *_: plans[job_id])
                patch.setattr(housekeeping, "REST_S", REST_S)
                patch.setattr(housekeeping, "SWEEP_S", SWEEP_S)
                self.loop.run_until_complete(self._main())
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            random.setstate(state)
            self.loop.close()
        self._check()
        return self

    async def _main(self) -> None:
        for index in range(self.storm.shards):
            self.start(f"shard:{index}")
        for work in self.works:
            self._submit(work)
        storms = [self.loop.create_task(self._again_and_again(kind)) for kind in self.storm.kinds]
        storms += [self.loop.create_task(self._decoy(index, work)) for index, work in enumerate(self.decoys)]
        try:
            while any(job.state == RUNNING for job in self.store.jobs.values()) and not self.failed:
                await asyncio.sleep(LOOK_S)
                if self.loop.time() >= self.storm.calm_after_s and not self.calm:
                    self._calm_down()
                if self.loop.time() > self.storm.calm_after_s + END_S_MAX:
                    self.broken.append("a job does not end")
            if not self.failed:
                await self._end()
        finally:
            for storm in storms:
                storm.cancel()
            await asyncio.gather(*storms, return_exceptions=True)
            await self._bury()

    def _submit(self, work: Work) -> None:
        problems = {problem: WaitingProblem(problem, f"problem {problem}", "") for problem in work.problems}
        plan = work.plan
        spec = job_pb2.JobSpec(generator="generator", verifier="verifier", checker=plan.checker, priority=plan.priority)
        spec.search.seed = work.seed
        self.store.create(plan.job_id, problems, spec, tenant=plan.tenant or DEFAULT_TENANT)

    async def _decoy(self, index: int, work: Work) -> None:
        await asyncio.sleep(self.chance.uniform(0, 1))
        self._submit(work)
        if index % 2 == 0:
            await asyncio.sleep(self.chance.uniform(0, 1))
            self.happened["cancel"] += self.store.jobs[work.plan.job_id].state == RUNNING
            self.store.cancel(work.plan.job_id)

    @property
    def moved_tokens(self) -> int:
        """Of chains that went on elsewhere, by all that lived to tell."""
        return sum(member.shell._dispatcher.moved_tokens for member in self.every)

    @property
    def failed(self) -> bool:
        """Whether a law is broken."""
        return bool(self.broken or self.costs.broken or self.loop.errors)

    def _check(self) -> None:
        assert not self.failed, f"{[*self.broken, *self.costs.broken, *self.loop.errors][:3]}: {self!r}"
        ended = [work for work in (*self.works, *self.decoys) if self._state(work) == DONE]
        assert {*self.works} <= {*ended}
        laws.check_ended(self.store.data, ended)
        costs = self.costs
        chains = {(costs.tree_of[node], node): chain for node, chain in costs.chains.items()}
        prompts = {
            tree: [*f"problem {problem}".encode()]
            for work in (*self.works, *self.decoys)
            for tree, problem in zip(work.trees, work.problems, strict=True)
        }
        laws.check_chains(self.store.data, chains, prompts)
        assert costs.twice <= costs.bound, repr(self)
        for job in self.store.jobs.values():
            assert [event.cursor for event in job.events] == [*range(1, len(job.events) + 1)]
            assert job.counters["done"] == sum(tree in self.store.data.results for tree in job.trees)
            assert job.events[-1].state == job.state

    def _state(self, work: Work) -> int:
        return self.store.jobs[work.plan.job_id].state if work.plan.job_id in self.store.jobs else RUNNING

    def outcome(self) -> tuple[dict[int, Any], dict[Name, Step]]:
        """Results and trees of its jobs, comparable."""
        mine = {tree for work in self.works for tree in work.trees}
        results, steps = laws.outcome(self.store.data)
        return {tree: each for tree, each in results.items() if tree in mine}, {
            name: step for name, step in steps.items() if name[0] in mine
        }

    # --- processes --------------------------------------------------------------------------------------------------

    def start(self, name: str) -> Member:
        """Start a shard's process, again or for the first time."""
        owner = f"{name}@{sum(member.name == name for member in self.every) + 1}"
        member = Member(self, name, owner)
        self.members.append(member)
        self.every.append(member)
        member.task.add_done_callback(lambda task: self._ended(member, task), context=self._context)
        return member

    def kill(self, member: Member) -> None:
        """A process dies; it may be started again, after a while."""
        member.process.kill()
        self._gone(member)

    def _gone(self, member: Member) -> None:
        if member in self.members:
            self.members.remove(member)
            again = self.calm or self.chance.random() >= self.storm.stays_dead
            if again:
                delay_s = self.chance.uniform(0, 2 * self.storm.lease_ms) / 1000
                self.loop.call_later(delay_s, self._return, member.name, context=self._context)

    def _return(self, name: str) -> None:
        if not any(member.name == name for member in self.members):
            self.start(name)

    def _ended(self, member: Member, task: asyncio.Task[None]) -> None:
        """A process has ended by itself."""
        if member.buried or task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Fenced):
            self.happened["fenced"] += 1
        elif error is not None:
            self.broken.append(f"{member.owner}: {error!r}")
        member.process.kill()
        self._gone(member)

    def dies_at(self, point: str) -> bool:
        """Whether a process is to die at a point that it has come to."""
        self.points[point] += 1
        if self.storm.crash_at == (point, self.points[point]):
            self.happened[point] += 1
            return True
        share = self.storm.crash / (10 if point in MANY else 1)
        if not self.calm and share and self.chance.random() < share:
            self.happened[point] += 1
            return True
        return False

    async def _bury(self) -> None:
        left = [member for member in self.every if not member.task.done()]
        for member in left:
            member.buried = True
            member.process.bury()
            member.task.cancel()
        if left:
            await asyncio.wait([member.task for member in left])

    # --- the store --------------------------------------------------------------------------------------------------

    def carry(self, call: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        """Take a call to the store and its answer back, if nothing is in the way."""
        there_s, back_s = (self.chance.uniform(0, self.storm.store_ms_max) / 1000 for _ in range(2))
        fails = not self.calm and self.chance.random() < self.storm.store_fails
        fate = self.chance.choice(("lost", "unanswered", "late")) if fails else "fine"

        def later(delay_s: float, work: Callable[..., object], *args: Any) -> None:
            self.loop.call_later(delay_s, work, *args, context=self._context)

        def give(found: Any, error: Exception | None) -> None:
            if not answer.done():
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(found)

        def arrive() -> None:
            if self.down or fate == "lost":
                later(back_s, give, None, StoreUnavailable("the store is away"))
                return
            found, error = self._do(call)
            unheard = fate == "unanswered" or (self.storm.outages > 0 and self.down)
            later(back_s, give, found, StoreUnavailable("the answer is lost") if unheard else error)

        if fate == "late":
            self.happened["late call"] += 1
            later(there_s, give, None, StoreUnavailable("it takes too long"))
            later(self.chance.uniform(0, 2 * self.storm.lease_ms) / 1000, self._do, call)
        else:
            later(there_s, arrive)

    def _do(self, call: Callable[[], Any]) -> tuple[Any, Exception | None]:
        try:
            found = call()
        except Fenced as error:
            return None, error
        except Exception as error:
            self.broken.append(f"{type(error).__name__}: {error}")
            return None, error
        self.costs.recovered()
        return found, None

    # --- the storm --------------------------------------------------------------------------------------------------

    async def _again_and_again(self, kind: str) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(getattr(self.storm, kind)))
            if self.calm:
                return
            work = getattr(self, f"_{kind}")()
            if work is not None:
                await work

    def _calm_down(self) -> None:
        self.calm, self.pace.calm, self.down = True, True, False
        self.pace.cut.clear()
        for member in self.members:
            member.process.go_on()
        if not any(member.shell._draining is None for member in self.members):
            self.start("shard:0")

    def _some(self) -> Member | None:
        return self.chance.choice(self.members) if self.members else None

    def _kills(self) -> None:
        if member := self._some():
            self.happened["kill"] += 1
            self.kill(member)

    async def _pauses(self) -> None:
        if member := self._some():
            self.happened["pause"] += 1
            member.process.stop()
            await asyncio.sleep(self.chance.uniform(0, 2 * self.storm.lease_ms) / 1000)
            member.process.go_on()

    def _twins(self) -> None:
        if member := self._some():
            self.happened["twin"] += 1
            self.start(member.name)

    async def _outages(self) -> None:
        self.happened["outage"] += 1
        self.down = True
        await asyncio.sleep(self.chance.uniform(0, self.storm.lease_ms) / 1000)
        self.down = False

    def _drains(self) -> None:
        member = self._some()
        if member is not None and member.shell._draining is None:
            self.happened["drain"] += 1
            member.process.call(member.shell.stop)

    async def _cuts(self) -> None:
        self.happened["cut"] += 1
        self.pace.cut.add(NEAR)
        await asyncio.sleep(self.chance.uniform(0, self.storm.lease_ms) / 1000)
        self.pace.cut.discard(NEAR)
        self.pace.backs += 1

    def _clock_jumps(self) -> None:
        self.happened["clock jump"] += 1
        self.jump_ms += self.chance.randint(-self.storm.lease_ms, 2 * self.storm.lease_ms)

    def _damages(self) -> None:
        data = self.store.data
        stored = [each for slot in sorted(data.snapshots) for each in data.snapshots[slot] if not each.damaged]
        good = [segment for segment in data.segments.values() if not segment.damage][-8:]
        if stored and (not good or self.chance.random() < 0.5):
            self.happened["damaged snapshot"] += 1
            self.chance.choice(stored).damaged = True
        elif good:
            self.happened["damaged segment"] += 1
            segment = self.chance.choice(good)
            segment.damage, segment.indexed = "a bit is flipped", self.chance.random() < 0.6

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """All that live are told to end, which they do in order."""
        if not self.calm:
            self._calm_down()
        there = [member for member in self.members if member.process.alive]
        if self.chance.random() < 0.5:
            return
        for member in there:
            member.process.call(member.shell.stop)
        until_s = self.loop.time() + END_S_MAX
        while any(member.process.alive and not member.task.done() for member in there):  # it may die of it
            await asyncio.sleep(LOOK_S)
            if self.loop.time() > until_s:
                self.broken.append("a drain does not end")
                return
