"""A model of leases and segments beside a store: whatever shards do, in whatever order, the two must agree.

Shards come, beat, claim, recover, commit, release, stand still for longer than their leases, wake up, and are started anew, while
jobs are submitted and cancelled and what has ended is archived and swept.
"""

import asyncio
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from ramify.scheduler.forest.columns import NO_ROW
from ramify.scheduler.forest.parts import NODE_COLUMNS, TREE_COLUMNS, Part
from ramify.scheduler.slots import SLOTS
from ramify.store.errors import Fenced
from ramify.store.work import Claim, Recovered, Report
from ramify.v1 import job_pb2
from tests.unit.store.helpers import NO_SCORES, TTL_MS, Step, commit, delta, result, rows, scores, snapshot, tree_id
from tests.unit.store.stores import ShardStore, Store

PROBLEMS = 8
SHARDS = 3
ROOT = 1
LONG_MS = 3_600_000

indexes = st.lists(st.integers(0, PROBLEMS - 1), max_size=PROBLEMS, unique=True)


@dataclass
class Tree:
    """What a tree must hold."""

    steps: dict[int, tuple[int, float | None]] = field(default_factory=dict)  # parent and score by node, as they were committed
    ended: bool = False
    kept: set[int] = field(default_factory=set)  # nodes that a snapshot may hold in place of the journal


@dataclass
class Slot:
    """Who must hold a slot."""

    owner: str = ""
    epoch: int = 0
    expires_ms: int = 0


@dataclass
class Process:
    """A shard's process: what it believes, be it so or not."""

    owner: str
    work: ShardStore
    epochs: dict[int, int] = field(default_factory=dict)
    recovered: set[int] = field(default_factory=set)  # slots
    sequence: int = 0
    first: dict[int, int] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """See the module. Subclassed with a way to open an empty store, and a way to run what is asynchronous."""

    runner: asyncio.Runner
    processes = Bundle("processes")

    @abstractmethod
    def fresh(self) -> Store:
        """An empty store."""

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    @initialize(target=processes)
    def begin(self) -> Process:
        self.store = self.fresh()
        self.now_ms, self.incarnations, self.nodes = 0, 0, ROOT
        self.slots = {slot: Slot() for slot in range(SLOTS)}
        self.done: dict[tuple[str, int], int] = {}  # segment of each durable commit, by owner and sequence
        self.counters, self.alive = Counter[str](), list[Process]()
        self.cancelled = False
        self.job = self.run(self.store.submit(PROBLEMS, "request"))
        self.trees = [Tree() for _ in range(PROBLEMS)]
        self.slot_of = [tree_id(self.job, index) % SLOTS for index in range(PROBLEMS)]
        return self._start(0, ready=True)

    # --- shards -----------------------------------------------------------------------------------------------------

    @rule(target=processes, shard=st.integers(0, SHARDS - 1), ready=st.booleans())
    def start(self, shard: int, ready: bool) -> Process:
        """Another process of a shard, which may at once take what it can get; the one before may go on all the same."""
        return self._start(shard, ready)

    def _start(self, shard: int, ready: bool) -> Process:
        self.incarnations += 1
        process = Process(f"shard:{shard}@{self.incarnations}", self.store.other_work())
        self.alive.append(process)
        if ready:
            self._claim(process, range(SLOTS))
            self._recover(process)
        return process

    @rule(process=processes, draining=st.booleans())
    def beat(self, process: Process, draining: bool) -> None:
        beat = self.run(process.work.beat(process.owner, TTL_MS, Report(draining, dict.fromkeys(process.epochs, 1))))
        for slot in self.slots.values():
            if slot.owner == process.owner:
                slot.expires_ms = self.now_ms + TTL_MS
        assert beat.held == {number: slot.epoch for number, slot in self.slots.items() if slot.owner == process.owner}
        assert [view.slot for view in beat.slots] == [*range(SLOTS)]
        for view in beat.slots:
            assert (view.owner == "") == self.is_free(self.slots[view.slot]), view
        assert (process.owner in beat.shards) <= (not draining)
        process.epochs = {slot: epoch for slot, epoch in process.epochs.items() if beat.held.get(slot) == epoch}

    @rule(process=processes, wanted=indexes, every=st.booleans(), ready=st.booleans())
    def claim(self, process: Process, wanted: list[int], every: bool, ready: bool) -> None:
        self._claim(process, range(SLOTS) if every else sorted({self.slot_of[index] for index in wanted}))
        if ready:
            self._recover(process)

    def _claim(self, process: Process, slots: Sequence[int]) -> None:
        shard = process.owner.partition("@")[0]
        taken = [slot for slot in slots if self.is_free(self.slots[slot]) or self.slots[slot].owner.partition("@")[0] == shard]
        claim = self.run(process.work.claim(process.owner, slots, TTL_MS))
        lost = False
        for slot in taken:
            lost |= self.slots[slot].owner not in ("", process.owner)
            self.slots[slot] = Slot(process.owner, self.slots[slot].epoch + 1, self.now_ms + TTL_MS)
        assert claim == Claim(process.owner, {slot: self.slots[slot].epoch for slot in taken})
        process.epochs |= claim.epochs
        process.recovered -= {*taken}
        self.counters["takeovers"] += lost and not self.cancelled

    @rule(process=processes, wanted=indexes)
    def release(self, process: Process, wanted: list[int]) -> None:
        slots = {self.slot_of[index] for index in wanted}
        self.run(process.work.release(Claim(process.owner, process.epochs), sorted(slots)))
        for slot in slots:
            if self.holds(process, slot):
                self.slots[slot] = Slot("", self.slots[slot].epoch)

    @rule(milliseconds=st.sampled_from([1, TTL_MS // 2, TTL_MS, LONG_MS]))
    def wait(self, milliseconds: int) -> None:
        self.store.advance(milliseconds)
        self.now_ms += milliseconds

    # --- steps ------------------------------------------------------------------------------------------------------

    @rule(process=processes)
    def recover(self, process: Process) -> None:
        self._recover(process)

    def _recover(self, process: Process) -> None:
        slots = {*process.epochs} - process.recovered
        claim = Claim(process.owner, {slot: process.epochs[slot] for slot in slots})
        if lost := sorted(slot for slot in slots if not self.holds(process, slot)):
            self.is_fenced(process.work.recover(claim), lost)
            return
        found: Recovered = self.run(process.work.recover(claim))
        assert found.restarted == []
        self.check(found, slots)
        process.recovered |= slots
        process.first.update(found.first_segment)

    def check(self, found: Recovered, slots: set[int]) -> None:
        """What was recovered is what was committed of the open trees, and each step is there once."""
        parts: dict[int, list[int]] = {}
        for part in found.snapshots.get(self.job.job_id, ()):
            names = part.trees["tree_id"][part.nodes["tree"]].tolist()
            for tree, node in zip(names, part.nodes["node_id"].tolist(), strict=True):
                if node != ROOT:
                    parts.setdefault(tree, []).append(node)
        steps: dict[int, dict[int, tuple[int, float | None]]] = {}
        for tree, node, parent, score in zip(
            found.steps.tree_id.tolist(),
            found.steps.node_id.tolist(),
            found.steps.parent_id.tolist(),
            found.steps.score.tolist(),
            strict=True,
        ):
            assert node not in steps.setdefault(tree, {}), "a step is there twice"
            steps[tree][node] = parent, None if np.isnan(score) else score
        names = dict(zip((tree_id(self.job, index) for index in range(PROBLEMS)), self.trees, strict=True))
        open_trees = {
            tree: each for tree, each in names.items() if tree % SLOTS in slots and not each.ended and not self.cancelled
        }
        assert {*parts, *steps, *found.first_segment} <= {*open_trees}
        for tree, each in open_trees.items():
            kept, told = set(parts.get(tree, ())), steps.get(tree, {})
            assert kept | {*told} == {*each.steps}
            assert not kept & {*told}, "a step is in the snapshot and in the journal"
            assert kept <= each.kept
            assert told == {node: each.steps[node] for node in told}
            assert all(parent in {ROOT, *kept, *told} for parent, _ in told.values()), "a step has lost its ancestors"
            assert tree in found.first_segment or not each.steps

    @rule(process=processes, grown=indexes, again=st.booleans(), data=st.data())
    def grow(self, process: Process, grown: list[int], again: bool, data: st.DataObject) -> None:
        self.commit(process, data, grown=grown or [*range(PROBLEMS)], again=again)

    @rule(process=processes, grown=indexes, data=st.data())
    def score(self, process: Process, grown: list[int], data: st.DataObject) -> None:
        self.commit(process, data, grown=grown, score=True)

    @rule(process=processes, finished=st.integers(0, PROBLEMS - 1), grown=indexes, again=st.booleans(), data=st.data())
    def finish(self, process: Process, finished: int, grown: list[int], again: bool, data: st.DataObject) -> None:
        self.commit(process, data, grown=grown, finished=[finished], again=again)

    @rule(process=processes, copied=indexes, grown=indexes, data=st.data())
    def copy(self, process: Process, copied: list[int], grown: list[int], data: st.DataObject) -> None:
        self.commit(process, data, grown=grown, copied=copied or [*range(PROBLEMS)])

    @rule(process=processes, released=indexes, copied=indexes, grown=indexes, again=st.booleans(), data=st.data())
    def hand_over(
        self, process: Process, released: list[int], copied: list[int], grown: list[int], again: bool, data: st.DataObject
    ) -> None:
        self.commit(process, data, grown=grown, copied=copied, released=released, again=again)

    def commit(
        self,
        process: Process,
        data: st.DataObject,
        *,
        grown: Sequence[int] = (),
        finished: Sequence[int] = (),
        copied: Sequence[int] = (),
        released: Sequence[int] = (),
        score: bool = False,
        again: bool = False,
    ) -> None:
        """What a shard writes of the slots that it believes to hold, and has recovered; with `again`, twice."""
        mine = [index for index in range(PROBLEMS) if self.slot_of[index] in process.recovered]
        grown, copied = self.growing(grown, mine), [index for index in copied if index in mine]
        finished = self.growing(finished, mine)
        gone = sorted({self.slot_of[index] for index in released if index in mine})
        parents = {index: data.draw(st.sampled_from([ROOT, *self.trees[index].steps]), label="parent") for index in grown}
        new = {index: Step(tree_id(self.job, index), self.nodes + at, parents[index]) for at, index in enumerate(grown, 1)}
        self.nodes += len(grown)
        steps = [Step(each.tree, each.node, each.parent, depth=1, score=float("nan")) for each in new.values()]
        late = self.unscored(mine) if score else []
        wanted = {
            slot: [index for index in range(PROBLEMS) if self.slot_of[index] == slot and index not in finished]
            for slot in {self.slot_of[index] for index in copied}
        }
        process.sequence += 1
        one = commit(
            process.sequence,
            delta(self.job, *(result(self.job, index) for index in finished), steps=len(new), tokens=len(new), retries=1),
            nodes=rows(*steps),
            late=scores(*((tree_id(self.job, index), node, 0.5) for index, node in late)) if late else NO_SCORES,
            snapshots=[snapshot(slot, self.parts(inside, new)) for slot, inside in sorted(wanted.items())],
            released=tuple(gone),
        )
        touched = {self.slot_of[index] for index in (*grown, *finished, *(index for index, _ in late))} | {*wanted, *gone}
        claim = Claim(process.owner, dict(process.epochs))
        if lost := sorted(slot for slot in touched or {*process.epochs} if not self.holds(process, slot)):
            self.is_fenced(process.work.commit(claim, one, process.first), lost)
            return
        segment = self.run(process.work.commit(claim, one, process.first))
        assert segment > max(self.done.values(), default=0)
        self.done[process.owner, process.sequence] = segment
        self.apply(new, finished, late, wanted, gone)
        for slot in gone:
            process.epochs.pop(slot)
            process.recovered.discard(slot)
        if again:
            assert self.run(process.work.commit(claim, one, process.first)) == segment

    def growing(self, some: Sequence[int], mine: Sequence[int]) -> list[int]:
        return [index for index in some if index in mine and not self.trees[index].ended and not self.cancelled]

    def unscored(self, mine: Sequence[int]) -> list[tuple[int, int]]:
        """Steps that wait for a score; not those that a snapshot holds as they were."""
        return [
            (index, node)
            for index in self.growing(range(PROBLEMS), mine)
            for node, (_, score) in self.trees[index].steps.items()
            if score is None and node not in self.trees[index].kept
        ]

    def parts(self, inside: Sequence[int], new: dict[int, Step]) -> dict[str, Part]:
        """A slot's open trees as they are with the steps that are `new`."""
        open_trees = [index for index in inside if not self.trees[index].ended and not self.cancelled]
        nodes = {index: [ROOT, *self.trees[index].steps, *([new[index].node] if index in new else [])] for index in open_trees}
        return {self.job.job_id: part_of(self.job, nodes)} if nodes else {}

    def apply(
        self,
        new: dict[int, Step],
        finished: Sequence[int],
        late: Sequence[tuple[int, int]],
        copied: dict[int, list[int]],
        released: Sequence[int],
    ) -> None:
        """The commit is durable: so it must be seen from now on."""
        for index, step in new.items():
            self.trees[index].steps[step.node] = step.parent, None
        for index, node in late:
            self.trees[index].steps[node] = self.trees[index].steps[node][0], 0.5
        for inside in copied.values():
            for index in inside:
                self.trees[index].kept = {*self.trees[index].steps}
        if not self.cancelled:
            for index in finished:
                self.trees[index].ended = True
            self.counters["problems_done"] += len(finished)
        self.counters.update(steps=len(new), tokens=len(new), retries=1)
        for slot in released:
            self.slots[slot] = Slot("", self.slots[slot].epoch)

    # --- jobs -------------------------------------------------------------------------------------------------------

    @rule(sure=st.integers(0, 9))
    def cancel(self, sure: int) -> None:
        if sure == 0 and not all(tree.ended for tree in self.trees):
            self.run(self.store.cancel(self.job.job_id))
            self.cancelled = True

    @rule(process=processes, limit=st.sampled_from([1, PROBLEMS]), every=st.booleans())
    def tidy(self, process: Process, limit: int, every: bool) -> None:
        """Archive, and delete what nobody is said to need; with `every`, all that have slots have archived before."""
        owners = {slot.owner for slot in self.slots.values()}
        for each in [other for other in self.alive if other.owner in owners] if every else [process]:
            claim = Claim(each.owner, dict(each.epochs))
            known = [slot for slot in each.epochs if slot in each.recovered]
            if lost := sorted(slot for slot in known if not self.holds(each, slot)):
                self.run(may_be_fenced(each.work.archive(claim, limit), lost))
                continue
            while self.run(each.work.archive(claim, limit)):
                pass
        self.run(self.store.work.sweep(None))

    @rule(index=st.integers(0, PROBLEMS - 1))
    def look(self, index: int) -> None:
        """Whoever looks at a tree sees all of it, wherever it lies."""
        found = self.run(self.store.tree(self.job.job_id, index))
        steps = zip(found.node_id.tolist(), found.parent_id.tolist(), found.score.tolist(), strict=True)
        seen = [(node, (parent, None if np.isnan(score) else score)) for node, parent, score in steps]
        assert seen == [*self.trees[index].steps.items()]

    @invariant()
    def counters_are_sums_over_distinct_commits(self) -> None:
        if not hasattr(self, "job"):
            return
        progress = self.run(self.store.job(self.job.job_id)).progress
        for name in ("steps", "tokens", "retries", "problems_done", "takeovers"):
            assert getattr(progress, name) == self.counters[name], name

    @invariant()
    def histories_have_no_gap(self) -> None:
        if not hasattr(self, "job"):
            return
        history = self.run(self.store.history(self.job.job_id))
        assert [event.cursor for event in history] == [*range(1, len(history) + 1)]
        if self.cancelled:
            assert history[-1].state == job_pb2.JOB_STATE_CANCELLED

    # --- the model --------------------------------------------------------------------------------------------------

    def is_free(self, slot: Slot) -> bool:
        return not slot.owner or slot.expires_ms <= self.now_ms

    def holds(self, process: Process, slot: int) -> bool:
        return (self.slots[slot].owner, self.slots[slot].epoch) == (process.owner, process.epochs.get(slot))

    def is_fenced(self, call: Any, lost: list[int]) -> None:
        with pytest.raises(Fenced) as caught:
            self.run(call)
        assert [*caught.value.slots] == lost


async def may_be_fenced(call: Any, lost: list[int]) -> None:
    """It is, if there is anything to be written to slots of which it knows; what was lost long ago may be forgotten."""
    try:
        await call
    except Fenced as error:
        fenced_by = {*error.slots}
    else:
        return
    assert fenced_by <= {*lost}


def part_of(job: job_pb2.Job, nodes: dict[int, list[int]]) -> Part:
    """Trees of a job with some nodes each, the root first."""
    trees: dict[str, Any] = {name: np.zeros(len(nodes), dtype) for name, dtype in TREE_COLUMNS.items()}
    trees["tree_id"] = np.array([tree_id(job, index) for index in nodes], np.uint64)
    trees["problem"] = np.array([*nodes], np.int64)
    sizes = [len(each) for each in nodes.values()]
    trees["root"] = (np.cumsum(sizes) - sizes).astype(np.int32)
    trees["best"] = np.full(len(nodes), NO_ROW, np.int32)
    columns: dict[str, Any] = {name: np.zeros(sum(sizes), dtype) for name, dtype in NODE_COLUMNS.items()}
    columns["node_id"] = np.array([node for each in nodes.values() for node in each], np.uint64)
    columns["tree"] = np.repeat(np.arange(len(nodes), dtype=np.int32), sizes)
    first = np.isin(np.arange(sum(sizes)), trees["root"])
    columns["parent"] = np.where(first, NO_ROW, trees["root"][columns["tree"]]).astype(np.int32)
    return Part(trees, columns, np.empty(0, np.int32), np.empty(0, np.uint8))
