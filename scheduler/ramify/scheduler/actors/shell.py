"""The asyncio shell around one shard: it carries out commands and feeds the outcomes back as events."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from ramify import tracing
from ramify.scheduler.actors.admission import Admission
from ramify.scheduler.actors.again import again
from ramify.scheduler.actors.backlog import Backlog
from ramify.scheduler.actors.comparing import Comparing
from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.actors.housekeeping import Housekeeping
from ramify.scheduler.actors.lanes import EngineHandle
from ramify.scheduler.actors.leases import LeaseKeeper
from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.actors.meters import Meters
from ramify.scheduler.actors.pins import Client, PinnedVerifier
from ramify.scheduler.actors.recovery import Recovery
from ramify.scheduler.actors.scoring import Scoring
from ramify.scheduler.actors.standings import Standings
from ramify.scheduler.actors.status import ShellStatus
from ramify.scheduler.actors.store_time import StoreTime
from ramify.scheduler.actors.waits import waits
from ramify.scheduler.commands import Check, Command, Commit, Compare, Generate, Score, Withdraw
from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.events import Committed, Event, SlotsReleased, StepsLost, StepsSampled, Tick, joined
from ramify.scheduler.forest.columns import TreeStatus
from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.journal import Journal
from ramify.scheduler.placement import Terms
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.shard import Shard
from ramify.scheduler.slots import SLOTS, in_slots, slot_of
from ramify.store.errors import DiskFull
from ramify.store.leases import Claim, Report
from ramify.store.wakeup import Channel, Listener, Wakeups
from ramify.store.work import Wait, Work

log = logging.getLogger(__name__)

CYCLE_S = 0.02  # time passes for the shard at least this often
ADMIT_S = 0.05  # between two looks for problems that wait, while a job is open
STAND_BACK = 3  # times as long as a turn has taken, while slots are coming back
STAND_BACK_S_MAX = 0.25
IDLE_S = 0.2  # else, where nobody tells of new jobs: a look costs a query
LOAD_MIN = 256  # live chains of a slot below which it is not worth moving for its load
DRAIN_SLOTS = 8  # given up at once in a drain: if that is cut short, some are handed over


class Shell:
    """One shard at work on the slots that it holds."""

    def __init__(
        self,
        work: Work,
        owner: str,
        engines: Sequence[EngineHandle],
        verifier: Client,
        limits: ShellLimits | None = None,
        terms: Terms | None = None,
        *,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Make a shell that `run` sets to work.

        Args:
            work: the store; one for each shell.
            owner: the shard's name with its incarnation, e.g. `shard:0@9f2c04d1`.
            engines: all that there are.
            verifier: all that score.
            limits: bounds.
            terms: what regions cost.
            now_s: the monotonic clock.
            sleep: waits for a number of seconds.
        """
        limits = self._limits = limits or ShellLimits()
        self.shard, self._journal, self._time = Shard(limits.shard), Journal(), StoreTime(now_s)
        self._work, self._now_s, self._sleep = work, now_s, sleep
        self._inbox: list[Event] = []
        self._wake, self._turned = asyncio.Event(), asyncio.Event()
        self._backlog = Backlog(limits, now_s)
        self._first_segment: dict[int, int] = {}
        self._commit: asyncio.Task[None] | None = None
        self._disk_full = False
        self._tasks: list[asyncio.Task[Any]] = []
        self._draining: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self.commits = self.committed_steps = 0
        self.meters = Meters()
        self.keeper = LeaseKeeper(
            work,
            owner,
            limits.lease_ms,
            report=self._report,
            gained=self._gained,
            give_up=self._give_up,
            store_time=self._time,
            meters=self.meters,
            now_s=now_s,
            sleep=sleep,
        )
        self._standings = Standings(work, now_s)
        weight, tries_max = self._standings.weight, limits.shard.tries_max
        self._dispatcher = Dispatcher(
            engines, self.post, terms or Terms(), tries_max=tries_max, weight=weight, now_s=now_s, sleep=sleep
        )
        scorer = PinnedVerifier(verifier, now_s)
        self._admission = Admission(
            work, lambda: self.keeper.settled_claim, self._dispatcher, scorer, self.post, self._standings, now_s
        )
        references = self._admission.references
        self._scoring = Scoring(scorer, references, self.post, weight=weight, meters=self.meters, now_s=now_s)
        self._comparing = Comparing(self.post)
        self._recovery = Recovery(
            work,
            self._admission,
            self._journal,
            self._first_segment,
            post=self.post,
            turned=self._turn_over,
            settled=self.keeper.settled,
            meters=self.meters,
            sleep=sleep,
        )
        self._housekeeping = Housekeeping(work, lambda: self.keeper.settled_claim, limits.retention_ms, now_s=now_s, sleep=sleep)

    def post(self, event: Event) -> None:
        """Hand the shard an event; it is handled in the loop's next turn."""
        self._inbox.append(event)
        self._wake.set()

    def use(self, engines: Sequence[EngineHandle], terms: Terms) -> None:
        """See `Dispatcher.use`."""
        self._dispatcher.use(engines, terms)
        self._wake.set()

    def stop(self) -> None:
        """Commit what is there, give up all slots, then end `run`. It takes as long as the store does; `run` may be cancelled."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    @property
    def paused(self) -> str:
        """Why nothing is sampled or scored now; empty: it is."""
        if self._draining is not None:
            return "draining"
        if self.keeper.stale:
            return "the store has not been heard of for so long that the leases may have ended"
        if self._disk_full:
            return self._backlog.stuck
        return self._backlog.full

    @property
    def status(self) -> ShellStatus:
        """How it stands."""
        return ShellStatus(
            owner=self.keeper.owner,
            state=self.paused or "working",
            slots=len(self.keeper.slots),
            settling=len(self.keeper.busy),
            trees=self.shard.live_trees,
            chains=self.shard.live_chains,
            uncommitted_steps=self._backlog.steps,
            committed_steps=self.committed_steps,
            commits=self.commits,
            waits=tuple(self._waits()),
            lanes=self._dispatcher.lanes,
            queued=self._dispatcher.queued(),
            tenant_trees=dict(self._tenant_trees()),  # `asdict` makes nonsense of a Counter
            moved_tokens=self._dispatcher.moved_tokens,
            unscored_chains=self._scoring.chains,
            models_away=self._scoring.models_away,
            commit_lag_s=self._backlog.lag_s,
            store_silent_s=self.keeper.silent_s,
            store_full=self._disk_full,
            tenants=self._standings.known,
        )

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            Fenced: another shard has taken slots over.
            IllegalEvent: see `Shard`; what is committed is not touched by it.
        """
        self._dispatcher.begin()
        self._tasks = [asyncio.create_task(work) for work in self._works()]
        try:
            while self._draining is None or not self._draining.done():
                began_s = self._now_s()
                await self._turn()
                if self._recovery.reading:  # a busy shard must not starve it
                    await self._sleep(min(STAND_BACK * (self._now_s() - began_s), STAND_BACK_S_MAX))
            self._draining.result()
        finally:
            await end(*self._tasks, self._commit, self._draining)
            for part in (self._dispatcher, self._scoring, self._comparing):
                await part.close()

    def _works(self) -> list[Coroutine[Any, Any, None]]:
        """What is done beside the turns."""
        return [self.keeper.run(), self._recovery.run(), self._admit(), self._housekeeping.run()]

    async def _turn(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CYCLE_S):  # not `wait_for`, in which Python 3.11 loses a cancellation now and then
                await self._wake.wait()
        self._wake.clear()
        events, self._inbox = [*self._inbox, Tick(self._time.now_ms())], []
        for event in events:
            if isinstance(event, StepsSampled):
                self._backlog.add(event)
            elif isinstance(event, StepsLost):
                self.meters.count("lost_steps", len(event.hint))
        events = joined(events)
        while events:
            commands, events = self._journal.answer(self._handle(events), self.shard.growing)
            for command in commands:
                self._carry_out(command)
        for task in (*self._tasks, self._commit):  # before more is spent: who has heard that slots are lost stops at once
            if task is not None and task.done() and not task.cancelled():
                task.result()
        if self.keeper.stale:
            self.keeper.hurry()
        if not self.paused:
            self._dispatcher.pump()
            self._scoring.pump()
            self._comparing.pump()
        self._turned.set()

    async def _turn_over(self) -> None:
        """Wait until all that was posted is handled."""
        self._turned.clear()
        self._wake.set()
        await self._turned.wait()

    def _handle(self, events: list[Event]) -> list[Command]:
        began_ns = time.time_ns()
        try:
            commands = self.shard.handle(events)
        except IllegalEvent as error:
            log.critical("%s ends by an illegal event: %s; what came with it: %s", self.keeper.owner, error, summary(events))
            raise
        jobs = (command.plan.job_id for command in commands if isinstance(command, Generate | Score | Check | Compare))
        tracing.was("shard.decide", jobs, began_ns, events=len(events), commands=len(commands))
        return commands

    def _carry_out(self, command: Command) -> None:
        match command:
            case Generate():
                self._dispatcher.add(command)
            case Withdraw():
                self._dispatcher.withdraw(command)
            case Score() | Check():
                self._scoring.add(command)
            case Compare():
                self._comparing.add(command)
            case Commit():
                self._backlog.begin()
                # A snapshot of a slot that has not come entirely would lack what is still to come.
                whole = [snapshot for snapshot in command.snapshots if snapshot.slot not in self.keeper.busy]
                self._commit = asyncio.create_task(self._write(replace(command, snapshots=whole), self.keeper.claim))

    # --- the store --------------------------------------------------------------------------------------------------

    async def _write(self, commit: Commit, claim: Claim) -> None:
        began_s = self._now_s()

        def failed(error: SQLAlchemyError) -> None:
            self.meters.count("store_failures", 1)
            self._backlog.stuck, self._disk_full = str(error), isinstance(error, DiskFull)

        jobs = (delta.job_id for delta in commit.jobs)
        with tracing.span("shard.commit", jobs, steps=len(commit.nodes.node_id)):
            await again(
                f"commit {commit.sequence}",
                lambda: self._work.commit(claim, commit, self._first_segment),
                failed=failed,
                sleep=self._sleep,
            )
        self._disk_full = False
        self._backlog.end()
        self.meters.took("commit_seconds", self._now_s() - began_s)
        self.meters.committed(commit)
        self.commits += 1
        self.committed_steps += len(commit.nodes.node_id)
        done = [(delta.job_id, result.tree_id) for delta in commit.jobs for result in delta.results]
        for job_id, tree in done:
            self._first_segment.pop(tree, None)
            self._admission.done(job_id, tree)
        if done:
            self._journal.forget(np.array([tree for _, tree in done], np.uint64))
        if commit.released:
            self._journal.release(commit.released)
            self._forget(lambda trees: in_slots(trees, commit.released))
            self.keeper.gone(commit.released)
        self.post(Committed(commit.sequence))
        if done and self._listener is not None:
            self._listener.wake()

    def _forget(self, gone: Callable[[Any], Any]) -> None:
        """Trees that `gone` marks are not open here any more."""
        trees = np.fromiter(self._first_segment, np.uint64, len(self._first_segment))
        for tree in trees[gone(trees)].tolist():
            del self._first_segment[tree]

    async def _admit(self) -> None:
        wakeups = Wakeups(self._work.database, Channel.JOBS)
        with wakeups.listener() as self._listener:
            while True:
                with contextlib.suppress(SQLAlchemyError):  # it has been logged: it is looked at again soon
                    for job in await self._admission.admit(self._limits.trees_max, self._live_trees()):
                        trees = tree_ids(job.job_id, np.arange(job.problems_total))
                        self._journal.forget(trees)
                        self._forget(partial(np.isin, test_elements=trees))
                await self._listener.wait(ADMIT_S if self._admission.jobs else IDLE_S)

    # --- slots ------------------------------------------------------------------------------------------------------

    def _gained(self, claim: Claim) -> None:
        log.info("%s takes %d slots", claim.owner, len(claim.epochs))
        self._recovery.add(claim)

    def _give_up(self, slots: Sequence[int]) -> None:
        self._admission.release(slots)
        self.post(SlotsReleased(tuple(slots)))

    async def _drain(self) -> None:
        """Give up all slots, some at a time, and leave."""
        await end(*self._tasks[1:])  # all but the keeper
        await self.keeper.take_no_more()
        while slots := self.keeper.slots[:DRAIN_SLOTS]:
            if new := self.keeper.leaving(slots):
                self._give_up(new)
            while self.keeper.slots[:1] == slots[:1]:
                await self._turn_over()
                if self._commit is not None:
                    await asyncio.wait({self._commit})
        await end(self._tasks[0])
        await again("leaving", lambda: self._work.leave(self.keeper.owner))

    def _report(self) -> Report:
        return Report(self._draining is not None, self._loads(), self._waits())

    def _loads(self) -> dict[int, int]:
        """Live chains of each slot, as far as they are worth to be evened out."""
        trees = self.shard.forest.trees
        grows = np.flatnonzero(trees.status[: trees.size] == TreeStatus.GROWING)
        loads = np.bincount(slot_of(trees.tree_id[grows]), trees.outstanding[grows], SLOTS).astype(np.int64)
        loads[loads < LOAD_MIN] = 0
        return {slot: int(loads[slot]) for slot in self.keeper.slots}

    def _tenant_trees(self) -> Counter[str]:
        trees = Counter[str]()
        for plan, count in self._live_trees():
            trees[plan.tenant] += count
        return trees

    def _live_trees(self) -> list[tuple[JobPlan, int]]:
        """Open trees of each job."""
        trees, plans = self.shard.forest.trees, self.shard.plans
        count = np.bincount(trees.plan[: trees.size][trees.status[: trees.size] != TreeStatus.FREE], minlength=len(plans))
        return [(plan, trees) for plan, trees in zip(plans, count.tolist(), strict=True) if trees]

    def _waits(self) -> list[Wait]:
        paused = "" if self._draining is not None else self.paused
        return waits(self._admission, self._dispatcher, self._scoring, self._backlog, paused, self._time, self._now_s())


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended."""
    there = [task for task in tasks if task is not None]
    for task in there:
        task.cancel()
    await asyncio.gather(*there, return_exceptions=True)


def summary(events: Sequence[Event], limit: int = 20) -> str:
    """Some events in a line: kinds, sizes, first names."""
    found = []
    for event in events[:limit]:
        names = getattr(event, "tree_id", None)
        nodes = getattr(event, "node_id", None)
        told = "" if names is None or not len(names) else f" of tree {int(names[0])}"
        told += "" if nodes is None or not len(nodes) else f", node {int(nodes[0])}"
        found.append(f"{type(event).__name__}({'' if names is None else len(names)}{told})")
    return "; ".join(found) + (f"; and {len(events) - limit} more" if len(events) > limit else "")
