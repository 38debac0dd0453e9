"""One process of a shard in the simulated cluster: the real shell, and the eyes of the law on what it does."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.actors.shell import Shell
from ramify.scheduler.commands import Command, Commit, Generate
from ramify.scheduler.events import Event, StepsSampled
from ramify.scheduler.shard import ShardLimits
from ramify.store.errors import Fenced
from tests.simulation import laws
from tests.simulation.costs import Costs
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.memory_store import MemoryStore
from tests.simulation.memory_work import MemoryWork
from tests.simulation.outside import FAR, NEAR, TERMS, Pace, SimComparing, SimEngine, SimVerifier
from tests.simulation.storms import Storm
from tests.simulation.world import Work

CHECK_EVERY = 8  # turns of a shard, of which one is validated


class Around(Protocol):
    """What a process has to know of its cluster."""

    works: Sequence[Work]
    storm: Storm
    loop: VirtualLoop
    store: MemoryStore
    costs: Costs
    pace: Pace
    chance: random.Random

    def carry(self, call: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        """Take a call to the store, and its answer back."""

    def dies_at(self, point: str) -> bool:
        """Whether a process is to die at a point that it has come to."""
        ...

    def kill(self, member: "Member") -> None:
        """The process dies."""


class Member:
    """One incarnation of a shard."""

    def __init__(self, cluster: Around, name: str, owner: str) -> None:
        storm, loop = cluster.storm, cluster.loop
        skew = cluster.chance.uniform(-storm.clock_skew, storm.clock_skew)
        self.cluster, self.name, self.owner = cluster, name, owner
        self.process = Process(loop, owner, 1 + skew)
        self.buried = False
        limits = ShellLimits(
            trees_max=storm.trees_max,
            lease_ms=storm.lease_ms,
            shard=ShardLimits(flush_ms=storm.flush_ms, snapshot_steps_min=storm.snapshot_steps_min),
        )
        models = dict.fromkeys(["generator", *(each.model for work in cluster.works for each in work.plan.generators)])
        engines = [
            SimEngine(f"engine:{at}:{model}", owner, cluster.pace, cluster.costs, at, model)
            for model in models
            for at in (NEAR, FAR)
        ]
        work: Any = MemoryWork(cluster.store, self.wire)
        self.shell = Shell(
            work, owner, engines, SimVerifier(cluster.pace), limits, TERMS, now_s=self.process.now_s, sleep=self.process.sleep
        )
        comparing: Any = SimComparing(self.shell.post, cluster.pace)
        self.shell._comparing = comparing
        self._handle, self._turns = self.shell.shard.handle, 0
        self.shell.shard.handle = self.handle  # type: ignore[method-assign]
        self._pump = self.shell._dispatcher.pump
        self.shell._dispatcher.pump = self.pump  # type: ignore[method-assign]
        self.task = self.process.start(self.shell.run())

    def handle(self, events: Sequence[Event]) -> list[Command]:
        """As the shard does, under the eyes of the law."""
        shard, costs, now_s = self.shell.shard, self.cluster.costs, self.cluster.loop.time()
        fresh = [event for event in events if isinstance(event, StepsSampled) and not event.committed]
        wanted = [node for event in fresh for node in event.node_id[shard.growing(event.tree_id)[0]].tolist()]
        found = self._handle(events)
        forest = shard.forest
        for node in wanted:  # an answer to what was asked for before the slot went and came back is not taken
            if forest.finish[: forest.size][forest.node_id[: forest.size] == np.uint64(node)].any():
                costs.come(self.owner, node, now_s)
        self._turns += 1
        if self._turns % CHECK_EVERY == 0:
            shard.forest.validate()
            laws.check_budgets(shard)
        for command in found:
            if isinstance(command, Commit):
                costs.collected(self.owner, command, now_s)
            elif isinstance(command, Generate):
                costs.tree_of.update(zip(command.node_id.tolist(), command.tree_id.tolist(), strict=True))
        return found

    def pump(self) -> None:
        """As the dispatcher does: not while all leases may have ended."""
        self.cluster.costs.require(not self.shell.keeper.stale, f"{self.owner} has sampled without having heard of the store")
        self._pump()

    async def wire(self, name: str, call: Callable[[], Any]) -> Any:
        """Carries a call to the store."""
        await self.point(f"before {name}")
        answer = self.cluster.loop.create_future()
        self.cluster.carry(call, answer)
        try:
            found = await answer
        except Fenced:
            # What else is refused may be of slots that it has given up itself: the next beat says what was taken from it.
            self.cluster.costs.owner(self.owner).informed |= name.startswith(("commit", "recover"))
            await self.point(f"after {name}")
            raise
        if name == "beat":
            keeper = self.shell.keeper
            ours = {slot: epoch for slot, epoch in keeper.claim.epochs.items() if slot not in keeper._leaving}
            if any(found.held.get(slot) != epoch for slot, epoch in ours.items()):
                self.cluster.costs.owner(self.owner).informed = True
        await self.point(f"after {name}")
        return found

    async def point(self, name: str) -> None:
        """A point at which the process may die."""
        if self.buried:
            raise asyncio.CancelledError
        if self.cluster.dies_at(name):
            self.cluster.kill(self)
            await self.cluster.loop.create_future()
