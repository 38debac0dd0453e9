"""The store in memory: jobs, slots under leases on a clock of its own, and all that is committed.

It is the database; what a shard's process sees of it is `memory_work.MemoryWork`. With `laws` a commit that breaks a guarantee is
an AssertionError.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ramify.scheduler.commands import Commit, JobDelta, TreeResult
from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.slots import SLOTS, SlotView
from ramify.store import commits
from ramify.store.archive import EMPTY_JOBS_A_CALL, GRACE_MS, Swept
from ramify.store.errors import Fenced
from ramify.store.leases import FORGET_TTLS, Beat, Claim, Report, Wait, shard_of
from ramify.store.ledger import Ledger
from ramify.store.recovery import Recovered, Restarted
from ramify.store.schema import DEFAULT_TENANT
from ramify.store.tenants import DAY_MS, Tenant
from ramify.store.work import OpenJob, Pins, WaitingProblem
from ramify.v1 import job_pb2
from tests.simulation.store import Store

RUNNING, DONE, CANCELLED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_DONE, job_pb2.JOB_STATE_CANCELLED
COUNTERS = ("steps", "tokens", "retries", "wasted_tokens", "done", "solved", "failed", "takeovers", "restarts")


@dataclass(frozen=True)
class Told:
    """An event of a job's history."""

    cursor: int
    at_ms: int
    state: int
    counters: Mapping[str, int]
    notice: tuple[int, str] | None  # kind and text


@dataclass
class Ended:
    """A problem with a result."""

    result: TreeResult
    first: int  # segment
    archived: bool = False


@dataclass
class Job:
    """A job and its problems, by index."""

    number: int
    job_id: str
    request_id: str
    spec: job_pb2.JobSpec
    problems: Mapping[int, WaitingProblem]
    started_ms: int
    floor: int  # no segment up to this one holds a step of it
    state: int = RUNNING
    finished_ms: int | None = None
    pins: Pins = field(default_factory=Pins)
    counters: Counter[str] = field(default_factory=Counter)
    events: list[Told] = field(default_factory=list)
    ended: dict[int, Ended] = field(default_factory=dict)  # by index
    leftovers: set[int] = field(default_factory=set)  # slots in which a cancelled job's trees are archived
    restarted: dict[int, str] = field(default_factory=dict)  # by index: why
    tenant: str = DEFAULT_TENANT

    def __post_init__(self) -> None:
        indexes = np.array(sorted(self.problems), np.int64)
        self.trees: dict[int, int] = dict(zip(tree_ids(self.job_id, indexes).tolist(), indexes.tolist(), strict=True))

    @property
    def settled(self) -> bool:
        """Whether nothing of it is left to be archived."""
        return self.state != CANCELLED or len(self.leftovers) == SLOTS

    def open_job(self) -> OpenJob:
        """As a shard sees it."""
        total = max(self.problems, default=-1) + 1
        return OpenJob(self.number, self.job_id, self.spec, total, self.started_ms, self.pins, self.tenant, self.spec.priority)


@dataclass
class Slot:
    """A slot's lease."""

    epoch: int = 0
    owner: str = ""
    expires_ms: int = 0
    load: int = 0
    floor: int = 0
    former: str = ""


@dataclass
class Shard:
    """What a shard has told of itself."""

    started_ms: int
    seen_ms: int
    expires_ms: int
    draining: bool
    waits: Sequence[Wait] = ()


class MemoryStore:
    """See the module."""

    def __init__(self, clock: Callable[[], int], *, laws: bool = True) -> None:
        """`clock`: milliseconds since the epoch."""
        self.clock, self.laws = clock, laws
        self.data = Store({}, laws=laws)
        self.jobs: dict[str, Job] = {}
        self.slots = [Slot() for _ in range(SLOTS)]
        self.shards: dict[str, Shard] = {}
        self.written: dict[tuple[str, int], int] = {}  # segment by owner and sequence
        self.writers: list[
            tuple[int, int, str]
        ] = []  # of every commit, each slot that it touched, with its epoch, and who it was
        self.newest = 0  # segment
        self.tenants: dict[str, Tenant] = {}
        self.spent: dict[tuple[str, int], Counter[str]] = {}  # steps and tokens, by tenant and day
        self.ended_holds: Callable[[str, Collection[int]], None] = lambda owner, slots: None  # hears of slots that change hands

    # --- jobs -------------------------------------------------------------------------------------------------------

    def create(
        self,
        job_id: str,
        problems: Mapping[int, WaitingProblem],
        spec: job_pb2.JobSpec,
        request_id: str = "",
        tenant: str = DEFAULT_TENANT,
    ) -> Job:
        """A job that runs."""
        number = len(self.jobs) + 1
        job = Job(number, job_id, request_id or job_id, spec, problems, self.clock(), self.newest, tenant=tenant)
        self.jobs[job_id] = job
        self.tell(job)
        return job

    def cancel(self, job_id: str) -> None:
        """End a job early."""
        job = self.jobs[job_id]
        if job.state == RUNNING:
            job.state, job.finished_ms = CANCELLED, self.clock()
            self.data.gone.update(tree for tree, index in job.trees.items() if index not in job.ended)
            self.tell(job)

    def tell(self, job: Job, notice: tuple[int, str] | None = None) -> None:
        """Write a job's state and counters into its history."""
        told = Told(len(job.events) + 1, self.clock(), job.state, {name: job.counters[name] for name in COUNTERS}, notice)
        if self.laws and job.events:
            last = job.events[-1]
            assert last.state == RUNNING, f"the history of {job.job_id} has ended"
            assert all(told.counters[name] >= last.counters[name] for name in COUNTERS), "counters only rise"
        job.events.append(told)

    def running(self) -> list[Job]:
        """Jobs that run, the oldest first."""
        return [job for job in self.jobs.values() if job.state == RUNNING]

    def waiting(self, job_id: str, slots: Collection[int], after: int, limit: int) -> list[WaitingProblem]:
        """See `Work.waiting`."""
        job, mine = self.jobs[job_id], {*slots}
        waits = [index for tree, index in job.trees.items() if index > after and tree % SLOTS in mine and index not in job.ended]
        return [job.problems[index] for index in waits[:limit]]

    def pin(self, claim: Claim, job_id: str, given: Pins) -> Pins:
        """See `Work.pin`."""
        self.check(claim, claim.slots)
        if job_id not in self.jobs:
            return given
        known = self.jobs[job_id].pins
        held = Pins(known.generator or given.generator, known.verifier or given.verifier, known.checker or given.checker)
        self.jobs[job_id].pins = held
        return held

    # --- leases -----------------------------------------------------------------------------------------------------

    def beat(self, owner: str, ttl_ms: int, report: Report) -> Beat:
        """See `Work.beat`."""
        now = self.clock()
        known = self.shards.get(owner, Shard(now, now, now, report.draining))
        self.shards[owner] = Shard(known.started_ms, now, now + ttl_ms, report.draining, report.waits)
        self.shards = {name: shard for name, shard in self.shards.items() if shard.seen_ms >= now - FORGET_TTLS * ttl_ms}
        for number, slot in enumerate(self.slots):
            if slot.owner == owner:
                slot.expires_ms, slot.load = now + ttl_ms, report.loads.get(number, slot.load)
        self._tell_waits(owner, known.waits, report.waits)
        alive = {name: shard for name, shard in self.shards.items() if shard.expires_ms > now}
        newest = {shard_of(name): name for name in sorted(alive, key=lambda name: (alive[name].started_ms, name))}

        def holder(slot: Slot) -> str:
            return "" if slot.expires_ms <= now else newest.get(shard_of(slot.owner), slot.owner)

        return Beat(
            now_ms=now,
            held={number: slot.epoch for number, slot in enumerate(self.slots) if slot.owner == owner},
            slots=[SlotView(number, holder(slot), slot.load) for number, slot in enumerate(self.slots)],
            shards=sorted(name for name in newest.values() if not alive[name].draining),
        )

    def claim(self, owner: str, wanted: Sequence[int], ttl_ms: int) -> Claim:
        """See `Work.claim`."""
        now, mine = self.clock(), shard_of(owner)
        found = {number: self.slots[number] for number in sorted({*wanted})}
        taken = {
            number: slot
            for number, slot in found.items()
            if not slot.owner or slot.expires_ms <= now or shard_of(slot.owner) == mine
        }
        lost = [(number, slot.owner) for number, slot in taken.items() if slot.owner not in ("", owner)]
        for former in sorted({former for _, former in lost}):
            self.ended_holds(former, [number for number, holder in lost if holder == former])
        moved = [slot.former for slot in taken.values() if not slot.owner and slot.former and shard_of(slot.former) != mine]
        for slot in taken.values():
            slot.epoch, slot.owner, slot.expires_ms, slot.former = slot.epoch + 1, owner, now + ttl_ms, ""
        for job in self.running() if lost or moved else ():
            if lost:
                job.counters["takeovers"] += 1
                text = f"{mine} took over {many(len(lost), 'slot')} from {whom(mine, [shard_of(former) for _, former in lost])}"
                self.tell(job, (job_pb2.NOTICE_KIND_TAKEOVER, text))
            else:
                givers = " and ".join(sorted({shard_of(former) for former in moved}))
                self.tell(job, (job_pb2.NOTICE_KIND_MOVE, f"{many(len(moved), 'slot')} moved from {givers} to {mine}"))
        return Claim(owner, {number: slot.epoch for number, slot in taken.items()})

    def release(self, claim: Claim, slots: Sequence[int]) -> None:
        """See `Work.release`."""
        mine = [number for number in slots if self._holds(claim, number)]
        self.ended_holds(claim.owner, mine)
        for number in mine:
            slot = self.slots[number]
            slot.owner, slot.expires_ms, slot.former = "", 0, claim.owner

    def leave(self, owner: str) -> None:
        """See `Work.leave`."""
        self.shards.pop(owner, None)

    def check(self, claim: Claim, slots: Collection[int]) -> None:
        """Raise `Fenced` unless the claim holds all of some slots."""
        if lost := [number for number in sorted(slots) if not self._holds(claim, number)]:
            raise Fenced(claim.owner, lost)

    def _holds(self, claim: Claim, number: int) -> bool:
        return self.slots[number].owner == claim.owner and self.slots[number].epoch == claim.epochs.get(number)

    def _tell_waits(self, owner: str, before: Sequence[Wait], after: Sequence[Wait]) -> None:
        old, new = ({(wait.job_id, wait.what): wait for wait in waits} for waits in (before, after))
        shard = shard_of(owner)
        runs = {job.job_id: job for job in self.running()}
        for job_id, what in sorted(new.keys() - old.keys()):
            if job_id in runs:
                wait = new[job_id, what]
                verb = "waits" if wait.count == 1 else "wait"
                text = f"{many(wait.count, 'chain')} of {shard} {verb} for the {what}: {wait.reason}"
                self.tell(runs[job_id], (job_pb2.NOTICE_KIND_WAIT, text))
        for job_id, what in sorted(old.keys() - new.keys()):
            if job_id in runs:
                text = f"no chain of {shard} waits for the {what} any more"
                self.tell(runs[job_id], (job_pb2.NOTICE_KIND_RESUMED, text))

    # --- commits ----------------------------------------------------------------------------------------------------

    def commit(self, claim: Claim, commit: Commit, first_segment: Mapping[int, int]) -> int:
        """See `Work.commit`."""
        if not self.laws:
            commits.encode(commit, {})  # what can't be written is not
        name = claim.owner, commit.sequence
        if name in self.written:
            return self.written[name]
        touched = commits.touched_slots(commit) or claim.slots
        self.check(claim, touched)
        self.writers += [(number, self.slots[number].epoch, claim.owner) for number in touched]
        segment = self.newest = self.newest + 1
        self.written[name] = segment
        stale = {result.tree_id for delta in commit.jobs for result in delta.results if not self._is_open(delta, result)}
        self.data.apply(drop_results(commit, stale), segment, first_segment)
        for delta in commit.jobs:
            if delta.job_id in self.jobs:
                self._add(self.jobs[delta.job_id], delta, segment, first_segment)
        self.ended_holds(claim.owner, commit.released)
        for number in commit.released:
            slot = self.slots[number]
            slot.owner, slot.expires_ms, slot.former = "", 0, claim.owner
        return segment

    def _is_open(self, delta: JobDelta, result: TreeResult) -> bool:
        job = self.jobs.get(delta.job_id)
        return job is not None and job.state == RUNNING and result.problem not in job.ended

    def _add(self, job: Job, delta: JobDelta, segment: int, first_segment: Mapping[int, int]) -> None:
        new = [result for result in delta.results if self._is_open(delta, result)]
        new = [*{result.problem: result for result in reversed(new)}.values()][::-1]
        job.counters.update(steps=delta.steps, tokens=delta.tokens, retries=delta.retries, done=len(new))
        spent = self.spent.setdefault((job.tenant, self.clock() // DAY_MS), Counter())
        spent.update(steps=delta.steps, tokens=delta.tokens)
        for result in new:
            job.ended[result.problem] = Ended(result, first_segment.get(result.tree_id, segment))
            job.counters.update(
                wasted_tokens=result.wasted_tokens,
                solved=result.verdict == job_pb2.VERDICT_CORRECT,
                failed=result.outcome == job_pb2.OUTCOME_FAILED,
            )
        if job.state != RUNNING:
            return
        if len(job.ended) == len(job.problems):
            job.state, job.finished_ms = DONE, self.clock()
        lost = [result for result in new if result.message.startswith(commits.LOST)]
        more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        notice = f"problem {lost[0].problem} was set aside{more}: {lost[0].message}" if lost else ""
        self.tell(job, (job_pb2.NOTICE_KIND_SET_ASIDE, notice) if notice else None)

    # --- recovery ---------------------------------------------------------------------------------------------------

    def recover(self, claim: Claim) -> Recovered:
        """See `Work.recover`."""
        self.check(claim, claim.slots)
        open_trees = {tree: job for job in self.running() for tree in job.trees}
        known = {tree for segment in self.data.segments.values() for tree in segment.trees}
        known |= {tree for each in self.data.snapshots.values() for stored in each for tree in stored.first_segment}
        found = self.data.recover(known - open_trees.keys(), claim.slots)
        restarted = list[Restarted]()
        for lost in found.lost:
            job = open_trees[lost.tree_id]
            index = job.trees[lost.tree_id]
            job.restarted.setdefault(index, lost.reason)
            restarted.append(Restarted(job.job_id, index, lost.segment_id, lost.reason))
        for job in self.running():
            if count := sum(each.job_id == job.job_id for each in restarted):
                job.counters["restarts"] += count
                text = f"{count} {'tree goes' if count == 1 else 'trees go'} on from before the damage"
                self.tell(job, (job_pb2.NOTICE_KIND_RESTART, text))
        return Recovered(found.parts, found.journal, found.first_segment, restarted, 0, found.segments_read)

    # --- what has ended ---------------------------------------------------------------------------------------------

    def archive(self, claim: Claim, ledger: Ledger, limit: int) -> int:
        """See `Work.archive`."""
        for _ in range(EMPTY_JOBS_A_CALL):
            if (moved := self._archive(claim, ledger, limit)) != 0:
                return moved or 0
        return 0

    def _archive(self, claim: Claim, ledger: Ledger, limit: int) -> int | None:
        """How many trees were moved; None: nothing was to be moved."""
        mine = ledger.known(claim.epochs)
        floors = ledger.floors(self.newest)
        ended = [
            (job, tree, job.ended[index]) for job in self.jobs.values() for tree, index in job.trees.items() if index in job.ended
        ]
        boxed = [(tree, each) for _, tree, each in ended if not each.archived and tree % SLOTS in mine][:limit]
        left = None if boxed else self._cancelled(mine)
        for _, tree, each in ended:
            if not each.archived:
                floors[tree % SLOTS] = min(floors[tree % SLOTS], each.first)
        unsettled = [job.floor + 1 for job in self.jobs.values() if not job.settled and {*mine} - job.leftovers]
        floors = np.minimum(floors, min(unsettled, default=floors.max()))
        rising = [number for number in mine if floors[number] > self.slots[number].floor]
        if not (boxed or left or rising):
            return None
        self.check(claim, mine)
        for number in rising:
            self.slots[number].floor = int(floors[number])
        for _, each in boxed:
            each.archived = True
        trees = {tree for tree, _ in boxed}
        if left is not None:
            trees = {tree for tree, _ in self.data.steps if tree in left.trees and tree % SLOTS in {*mine} - left.leftovers}
            trees -= {tree for tree, index in left.trees.items() if index in left.ended}
            left.leftovers |= {*mine}
        ledger.close(trees)
        return len(trees) if boxed or left else None

    def _cancelled(self, mine: Collection[int]) -> Job | None:
        late = self.clock() - GRACE_MS
        found = (job for job in self.jobs.values() if not job.settled and {*mine} - job.leftovers)
        return next((job for job in found if job.finished_ms is not None and job.finished_ms < late), None)

    def sweep(self, retention_ms: int | None) -> Swept:
        """See `Work.sweep`."""
        for number, stored in self.data.snapshots.items():
            self.data.snapshots[number] = [each for each in stored if each.segment_id >= self.slots[number].floor]
        lowest = min(slot.floor for slot in self.slots)
        gone = [segment for segment in self.data.segments if segment < lowest]
        for segment in gone:
            del self.data.segments[segment]
        late = -1 if retention_ms is None else self.clock() - retention_ms
        old = [
            job_id for job_id, job in self.jobs.items() if job.settled and job.finished_ms is not None and job.finished_ms < late
        ]
        for job_id in old:
            del self.jobs[job_id]
        return Swept(len(gone), len(old))


def drop_results(commit: Commit, trees: Collection[int]) -> Commit:
    """The commit less the results of some trees."""
    kept = [[result for result in delta.results if result.tree_id not in trees] for delta in commit.jobs]
    return replace(commit, jobs=[replace(delta, results=results) for delta, results in zip(commit.jobs, kept, strict=True)])


def many(number: int, what: str) -> str:
    """A number of things, for people."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def whom(mine: str, former: Sequence[str]) -> str:
    """Whose slots a shard has taken over, for people."""
    others = sorted({*former} - {mine})
    told = (
        [" and ".join(others) + (", whose lease had ended" if len(others) == 1 else ", whose leases had ended")] if others else []
    )
    return " and from ".join([*(["its predecessor"] if mine in former else []), *told])
