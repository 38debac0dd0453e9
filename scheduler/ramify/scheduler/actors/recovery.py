"""Brings back what was committed of slots that come, while the work on other slots goes on."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import numpy as np

from ramify.scheduler.actors.admission import NO_TREES, Admission
from ramify.scheduler.actors.again import again
from ramify.scheduler.actors.meters import Meters
from ramify.scheduler.events import Event, TreesRestored
from ramify.scheduler.forest.parts import Part, some_trees
from ramify.scheduler.journal import Journal, Told
from ramify.scheduler.plan import JobPlan
from ramify.store.leases import Claim
from ramify.store.work import OpenJob, Work

log = logging.getLogger(__name__)

NODES_A_TURN = 65_536  # of restored trees: some tens of milliseconds
LOOK_S = 0.5  # between two looks whether a job's models can be told


class Recovery:
    """See the module. One claim after the other, so that what is read at once stays bounded."""

    def __init__(
        self,
        work: Work,
        admission: Admission,
        journal: Journal,
        first_segment: dict[int, int],
        *,
        post: Callable[[Event], None],
        turned: Callable[[], Awaitable[None]],
        settled: Callable[[Sequence[int]], None],
        meters: Meters | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Restore into the shard and what is around it.

        Args:
            work: the store.
            admission: admits the trees that do not come restored.
            journal: is told of the steps that do.
            first_segment: see `Work.commit`; is added to.
            post: takes the restored trees.
            turned: returns when what was posted is handled.
            settled: hears of slots of which all is here.
            meters: hears how long it took.
            sleep: waits for a number of seconds.
        """
        self._work, self._admission, self._journal, self._first_segment = work, admission, journal, first_segment
        self._post, self._turned, self._settled, self._sleep = post, turned, settled, sleep
        self._meters = meters or Meters()
        self._claims: asyncio.Queue[Claim] = asyncio.Queue()
        self.reading = False  # which needs the interpreter, and nobody else works on these slots meanwhile

    def add(self, claim: Claim) -> None:
        """Slots have come."""
        self._claims.put_nowait(claim)

    async def run(self) -> None:
        """Bring back, until cancelled.

        Raises:
            Fenced: the slots are another's by now.
        """
        while True:
            await self._bring(await self._claims.get())

    async def _bring(self, claim: Claim) -> None:
        began_s, self.reading = time.monotonic(), True
        try:
            recovered = await again("recovery", lambda: self._work.recover(claim), sleep=self._sleep)
            named = await again("recovery", lambda: self._work.named(recovered.snapshots.keys()), sleep=self._sleep)
            jobs = {job.job_id: job for job in named}
            told = await asyncio.to_thread(Told, recovered.steps)
        finally:
            self.reading = False  # also where a drain cuts it short, which must not be slow
        # Before the first tree: what it then wants sampled may be in there.
        self._journal.extend(told)
        self._first_segment |= recovered.first_segment
        restored = [NO_TREES]
        for job_id, parts in recovered.snapshots.items():
            if job_id in jobs:
                trees = np.concatenate([part.trees["tree_id"] for part in parts])
                await self._restore(jobs[job_id], claim.slots, parts)
                restored.append(trees)
        self._admission.add(claim.slots, np.concatenate(restored))
        self._settled(claim.slots)
        took_s = time.monotonic() - began_s
        self._meters.took("recovery_seconds", took_s)
        log.log(
            logging.WARNING if len(recovered.first_segment) else logging.INFO,
            "%s has %d slots: %d trees restored, %d steps to be told again, %d trees restarted (%.1f s, %d segments, %d KiB)",
            claim.owner,
            len(claim.slots),
            sum(map(len, restored)),
            told.count,
            len(recovered.restarted),
            took_s,
            recovered.segments_read,
            recovered.bytes_read >> 10,
        )

    async def _restore(self, job: OpenJob, slots: Sequence[int], parts: Sequence[Part]) -> None:
        """Hand a job's trees to the shard, some at a time."""
        plan = await self._plan(job)
        if plan.checker:
            index = np.concatenate([part.trees["problem"] for part in parts])
            await again("recovery", lambda: self._admission.read_references(job, slots, index), sleep=self._sleep)
        nodes = 0
        for part in await asyncio.to_thread(list, in_pieces(parts)):
            if self._admission.jobs.get(job.job_id) is not plan:  # it has ended meanwhile
                return
            self._post(TreesRestored(plan, part))
            nodes += len(part.nodes["node_id"])
            if nodes > NODES_A_TURN:
                nodes = 0
                await self._turned()

    async def _plan(self, job: OpenJob) -> JobPlan:
        while (plan := await again("recovery", lambda: self._admission.begin(job), sleep=self._sleep)) is None:
            await self._sleep(LOOK_S)
        return plan


def in_pieces(parts: Sequence[Part]) -> Iterator[Part]:
    """The same trees in parts that hold no more than `NODES_A_TURN` nodes, unless one tree does."""
    for part in parts:
        size = np.bincount(part.nodes["tree"], minlength=len(part))
        piece = np.cumsum(size) // NODES_A_TURN
        for each in np.unique(piece).tolist():
            yield some_trees(part, piece == each)
