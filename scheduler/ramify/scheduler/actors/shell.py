"""The asyncio shell around one shard: it carries out commands and feeds the outcomes back as events."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from ramify.scheduler.actors.admission import Admission
from ramify.scheduler.actors.comparing import Comparing
from ramify.scheduler.actors.dispatch import Dispatcher
from ramify.scheduler.actors.lanes import EngineHandle
from ramify.scheduler.actors.scoring import Scoring
from ramify.scheduler.commands import Check, Command, Commit, Compare, Generate, Score, Withdraw
from ramify.scheduler.events import Committed, Event, Tick
from ramify.scheduler.forest.columns import TreeStatus
from ramify.scheduler.journal import Journal
from ramify.scheduler.shard import Shard, ShardLimits
from ramify.store import segments
from ramify.store.clock import now_ms
from ramify.store.work import Claim, Work
from ramify.verifier.client import VerifierClient

log = logging.getLogger(__name__)

CYCLE_S = 0.02  # time passes for the shard at least this often
ADMIT_S = 0.05  # between two looks for new jobs
RETRY_S = 0.5  # between two tries of a commit
COMMIT_LAG_MS_MAX = 5_000  # a commit that takes longer stops further sampling: what is not durable stays bounded


@dataclass(frozen=True, slots=True)
class ShellLimits:
    """Bounds of a shell."""

    trees_max: int = 4096  # open at once
    shard: ShardLimits = field(default_factory=ShardLimits)


class Shell:
    """One shard at work on the slots that it has claimed."""

    def __init__(
        self,
        work: Work,
        claim: Claim,
        engines: Sequence[EngineHandle],
        verifier: VerifierClient,
        limits: ShellLimits | None = None,
    ) -> None:
        self.claim = claim
        self.shard = Shard((limits or ShellLimits()).shard)
        self._limits = limits or ShellLimits()
        self._work, self._engines, self._verifier = work, engines, verifier
        self._inbox: list[Event] = []
        self._wake = asyncio.Event()
        self._stopping = False
        self._commit: asyncio.Task[None] | None = None
        self._commit_began_ms = 0
        self._first_segment: dict[int, int] = {}
        self.commits = 0

    def post(self, event: Event) -> None:
        """Hand the shard an event; it is handled in the loop's next turn."""
        self._inbox.append(event)
        self._wake.set()

    def stop(self) -> None:
        """Commit what is there, then end `run`."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            Fenced: another shard has taken the slots over.
        """
        dispatcher = Dispatcher(self._engines, self.post)
        dispatcher.begin()
        admission = Admission(self._work, self.claim, dispatcher.info, self.post)
        scoring = Scoring(self._verifier, admission.references, self.post)
        comparing = Comparing(self.post)
        recovered, self._first_segment = await admission.recover()
        journal = Journal(segments.concat(recovered))
        admitting = asyncio.create_task(self._admit(admission))
        try:
            while not (self._stopping and self._commit is None and not self._unwritten()):
                await self._turn(dispatcher, scoring, comparing, journal)
                for task in (admitting, self._commit):
                    if task is not None and task.done():
                        task.result()
                if self._commit is not None and self._commit.done():
                    self._commit = None
        finally:
            admitting.cancel()
            if self._commit is not None:
                self._commit.cancel()
            await asyncio.gather(admitting, *([self._commit] if self._commit else []), return_exceptions=True)
            await dispatcher.close()
            await scoring.close()
            await comparing.close()

    async def _turn(self, dispatcher: Dispatcher, scoring: Scoring, comparing: Comparing, journal: Journal) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), CYCLE_S)
        self._wake.clear()
        events, self._inbox = [*self._inbox, Tick(now_ms())], []
        while events:
            commands, events = journal.answer(self.shard.handle(events), self.shard.growing)
            for command in commands:
                self._carry_out(command, dispatcher, scoring, comparing)
        if not self._stopping and not self._lags():
            dispatcher.pump()
            scoring.pump()
            comparing.pump()

    def _carry_out(self, command: Command, dispatcher: Dispatcher, scoring: Scoring, comparing: Comparing) -> None:
        match command:
            case Generate():
                dispatcher.add(command)
            case Withdraw():
                dispatcher.withdraw(command)
            case Score() | Check():
                scoring.add(command)
            case Compare():
                comparing.add(command)
            case Commit():
                self._commit_began_ms = now_ms()
                self._commit = asyncio.create_task(self._write(command))

    async def _write(self, commit: Commit) -> None:
        while True:
            try:
                await self._work.commit(self.claim, commit, self._first_segment)
                break
            except SQLAlchemyError as error:
                log.error("commit %d failed, trying again: %s", commit.sequence, error)
                await asyncio.sleep(RETRY_S)
        for delta in commit.jobs:
            for result in delta.results:
                self._first_segment.pop(result.tree_id, None)
        self.commits += 1
        self.post(Committed(commit.sequence))

    async def _admit(self, admission: Admission) -> None:
        while True:
            try:
                await admission.admit(self._limits.trees_max - self.shard.live_trees)
            except SQLAlchemyError as error:
                log.error("the store does not answer, trying again: %s", error)
            await asyncio.sleep(ADMIT_S)

    def _lags(self) -> bool:
        return self._commit is not None and now_ms() - self._commit_began_ms > COMMIT_LAG_MS_MAX

    def _unwritten(self) -> bool:
        forest, trees = self.shard.forest, self.shard.forest.trees
        return bool(forest.dirty[: forest.size].any() or (trees.status[: trees.size] == TreeStatus.FINISHED).any())
