"""What a store must be for a shard, in memory; it rejects every commit that breaks its guarantees."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ramify.scheduler.commands import Commit, NodeRows, ScoreRows, Snapshot, TreeResult
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.forest.parts import Part, some_trees, with_scores
from ramify.scheduler.slots import SLOTS

SNAPSHOTS_KEPT = 2  # of a slot

Wanted = Callable[[int, int], bool]
"""Whether what a segment holds of a tree is asked for."""

Name = tuple[int, int]  # tree_id, node_id


@dataclass(frozen=True)
class Step:
    """A committed step."""

    parent_id: int
    child_index: int
    depth: int
    tokens: tuple[int, ...]
    text: bytes
    logprob: float
    score: float | None
    finish: int
    turn: int


@dataclass
class Segment:
    """What a commit wrote of steps."""

    segment_id: int
    steps: dict[Name, Step]
    scores: ScoreRows
    damage: str = ""  # why it can't be read
    indexed: bool = True  # it is known all the same which trees it holds something of

    @property
    def trees(self) -> set[int]:
        """Trees that it holds something of."""
        return {tree for tree, _ in self.steps} | {*self.scores.tree_id.tolist()}


@dataclass
class Stored:
    """A snapshot, and where the steps of its trees begin."""

    segment_id: int
    snapshot: Snapshot
    first_segment: Mapping[int, int]
    damaged: bool = False


@dataclass(frozen=True)
class Lost:
    """A tree has lost its steps from a segment on."""

    tree_id: int
    segment_id: int
    reason: str


@dataclass(frozen=True)
class Recovered:
    """What a new life begins with."""

    parts: dict[str, list[Part]]  # by job
    journal: NodeRows
    first_segment: dict[int, int] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)  # found by this recovery
    segments_read: int = 0

    @property
    def trees(self) -> set[int]:
        """Trees that the parts hold."""
        return {tree for parts in self.parts.values() for part in parts for tree in part.trees["tree_id"].tolist()}


class Store:
    """Committed steps, results, counters and snapshots."""

    def __init__(self, root_of: dict[int, int], *, laws: bool = True) -> None:
        """`root_of`: the root's id of each tree; `laws`: whether what breaks a guarantee is an AssertionError."""
        self.root_of, self.laws = root_of, laws
        self.steps: dict[Name, Step] = {}  # those that count, with the last that is known of each
        self.results: dict[int, TreeResult] = {}
        self.gone: set[int] = set()  # trees without a result of jobs that were cancelled
        self.step_count: Counter[str] = Counter()
        self.token_count: Counter[str] = Counter()
        self.commits: list[Commit] = []
        self.segments: dict[int, Segment] = {}  # by id, rising
        self.snapshots: defaultdict[int, list[Stored]] = defaultdict(list)  # by slot, the newest last
        self.voids: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # by tree: spans of segments that don't count
        self.voided: list[tuple[Name, Step]] = []  # steps that were paid for and lost to damage
        self.log: list[Segment] = []  # all that was ever written, whatever became of it
        self._met: set[tuple[int, int]] = set()  # segment and slot of damage that has cost its trees already

    # --- commits ----------------------------------------------------------------------------------------------------

    def apply(self, commit: Commit, segment_id: int = 0, first_segment: Mapping[int, int] | None = None) -> None:
        """Write a commit: all of it, or an AssertionError names the guarantee that it breaks."""
        segment_id = segment_id or len(self.log) + 1
        segment = Segment(segment_id, steps_of(commit.nodes), commit.scores)
        if self.laws:
            self._check_steps(segment)
        self.segments[segment_id] = segment
        self.log.append(segment)
        self._merge(segment, self.steps)
        for delta in commit.jobs:
            self.step_count[delta.job_id] += delta.steps
            self.token_count[delta.job_id] += delta.tokens
            for result in delta.results:
                assert not self.laws or result.tree_id not in self.results, "a tree has one result"
                self.results.setdefault(result.tree_id, result)
        self.commits.append(commit)
        for snapshot in commit.snapshots:
            if self.laws:
                self._check_snapshot(snapshot)
            trees = {tree for tree, _ in steps_of(snapshot.steps)} | trees_of(snapshot)
            first = {tree: (first_segment or {}).get(tree, segment_id) for tree in trees}
            self.snapshots[snapshot.slot].append(Stored(segment_id, snapshot, first))
            del self.snapshots[snapshot.slot][:-SNAPSHOTS_KEPT]

    def _check_steps(self, segment: Segment) -> None:
        here = dict[Name, Step]()
        for name, step in segment.steps.items():
            tree_id, _ = name
            assert name not in self.steps, f"{name} is committed twice"
            assert tree_id not in self.results, f"{name} is committed after its tree's result"
            above = tree_id, step.parent_id
            first = step.depth == 1 and step.parent_id == self.root_of[tree_id]
            assert first or above in self.steps or above in here, f"{name} has no committed parent"
            here[name] = step
        for name, _, _ in scores_of(segment.scores):
            step = self.steps[name]
            assert step.score is None or step.turn == 0, "a step is scored once"

    def _check_snapshot(self, snapshot: Snapshot) -> None:
        """A snapshot holds all that is committed of its slot's open trees, and nothing else."""
        held = steps_of(snapshot.steps)
        for part in snapshot.parts.values():
            status, unpaid = part.nodes["status"], part.nodes["finish"] == 0  # roots, in flight, or lost and not missed
            grows = (part.trees["status"] == TreeStatus.GROWING)[part.nodes["tree"]]
            assert not (grows & (status == Status.SCORING)).any(), "what is with the verifier is told as still to be sampled"
            names = zip(part.trees["tree_id"][part.nodes["tree"]].tolist(), part.nodes["node_id"].tolist(), strict=True)
            for name, sampling, free in zip(names, (grows & (status == Status.SAMPLING)).tolist(), unpaid.tolist(), strict=True):
                assert free or name in self.steps, f"{name} is in a snapshot and not committed"
                assert not sampling or (name in held) == (name in self.steps), f"{name} is committed: a snapshot must hold it"
        trees = trees_of(snapshot)
        assert not trees & self.results.keys(), "a tree with a result is in a snapshot"
        assert all(tree % SLOTS == snapshot.slot for tree in trees), "a tree is in another slot's snapshot"
        for name in self.steps:
            missing = name[0] % SLOTS == snapshot.slot and name[0] not in self.results.keys() | self.gone | trees
            assert not missing or name in held, f"{name} is committed: the snapshot must hold it or its tree"

    # --- recovery ---------------------------------------------------------------------------------------------------

    def recover(self, gone: Iterable[int] = (), slots: Iterable[int] = range(SLOTS)) -> Recovered:
        """What the open trees of some slots go on from, less those that are `gone`.

        Of each slot the newest good snapshot is read, and the segments after it.
        """
        closed = {*self.results, *self.gone, *gone}
        newest = {slot: self._newest(slot) for slot in slots}
        after = {slot: stored.segment_id if stored else 0 for slot, stored in newest.items()}

        def wanted(tree: int, segment_id: int) -> bool:
            here = after.get(tree % SLOTS)
            return here is not None and segment_id > here and tree not in closed and self._counts(tree, segment_id)

        lost = self._void(wanted, after, [stored for stored in newest.values() if stored])
        found, first = dict[Name, Step](), dict[int, int]()
        for stored in newest.values():
            if stored:
                found |= steps_of(stored.snapshot.steps)
                first |= stored.first_segment
        read = 0
        for segment in self.segments.values():
            some = {name: step for name, step in segment.steps.items() if wanted(name[0], segment.segment_id)}
            read += any(wanted(tree, segment.segment_id) for tree in segment.trees)
            if not segment.damage:
                self._merge(replace(segment, steps=some), found, wanted)
                for tree, _ in some:
                    first.setdefault(tree, segment.segment_id)
        parts: dict[str, list[Part]] = {}
        for stored in newest.values():
            for job_id, part in stored.snapshot.parts.items() if stored else ():
                part = some_trees(part, np.array([tree not in closed for tree in part.trees["tree_id"].tolist()], np.bool_))
                if len(part):
                    parts.setdefault(job_id, []).append(self._with_scores(part, wanted))
        journal = rows_of({name: step for name, step in found.items() if name[0] not in closed})
        return Recovered(parts, journal, {tree: at for tree, at in first.items() if tree not in closed}, lost, read)

    def journal(self) -> NodeRows:
        """The steps of the trees without a result, from their roots."""
        return rows_of({name: step for name, step in self.steps.items() if name[0] not in self.results})

    def _newest(self, slot: int) -> Stored | None:
        self.snapshots[slot] = [stored for stored in self.snapshots[slot] if not stored.damaged]
        return self.snapshots[slot][-1] if self.snapshots[slot] else None

    def _with_scores(self, part: Part, wanted: Wanted) -> Part:
        for segment in self.segments.values():
            if not segment.damage and len(segment.scores.tree_id):
                scores = segment.scores
                mine = np.array([wanted(tree, segment.segment_id) for tree in scores.tree_id.tolist()], np.bool_)
                part = with_scores(part, scores.tree_id[mine], scores.node_id[mine], scores.score[mine])
        return part

    def _counts(self, tree: int, segment_id: int) -> bool:
        return not any(first <= segment_id <= last for first, last in self.voids[tree]) if tree in self.voids else True

    def _merge(self, segment: Segment, into: dict[Name, Step], wanted: Wanted = lambda tree, segment_id: True) -> None:
        """Add a segment's steps, the first of each name, and give those that are there the scores that came later."""
        for name, step in segment.steps.items():
            into.setdefault(name, step)
        for name, score, turn in scores_of(segment.scores):
            if name in into and wanted(name[0], segment.segment_id):
                finish = int(Finish.ERROR) if math.isnan(score) else into[name].finish
                into[name] = replace(into[name], score=None if math.isnan(score) else score, finish=finish, turn=turn)

    # --- damage -----------------------------------------------------------------------------------------------------

    def _void(self, wanted: Wanted, after: Mapping[int, int], snapshots: list[Stored]) -> list[Lost]:
        """Have the trees of which something damaged is still wanted lose their steps from there on, once and for all."""
        damaged = [segment for segment in self.segments.values() if segment.damage]
        if not damaged:
            return []
        good = [segment for segment in self.segments.values() if segment.indexed]
        known = {tree for segment in good for tree in segment.trees if wanted(tree, segment.segment_id)}
        known |= {tree for stored in snapshots for tree in stored.first_segment if wanted(tree, 1 + after[tree % SLOTS])}
        lost, unseen = dict[int, Segment](), dict[int, Segment]()
        for segment in damaged:
            mine = {tree for tree in segment.trees if wanted(tree, segment.segment_id)}
            for tree in mine if segment.indexed else known:
                if wanted(tree, segment.segment_id) and (segment.indexed or self._is_new(segment, tree)):
                    lost.setdefault(tree, segment)
            for tree in mine - known:  # nobody can tell that it ever began
                unseen.setdefault(tree, segment)
        for segment in damaged:
            mine_slots = {tree % SLOTS for tree, at in lost.items() if at is segment} if segment.indexed else {*after}
            self._met |= {(segment.segment_id, slot) for slot in mine_slots if after[slot] < segment.segment_id}
        last = max(self.segments)
        for tree, segment in (unseen | lost).items():
            self.voids[tree].append((segment.segment_id, last))
            self._forget(tree)
        return [Lost(tree, segment.segment_id, segment.damage) for tree, segment in lost.items()]

    def _is_new(self, segment: Segment, tree: int) -> bool:
        return (segment.segment_id, tree % SLOTS) not in self._met

    def _forget(self, tree: int) -> None:
        """Take the steps of a tree that don't count any more out of those that do."""
        before = {name: step for name, step in self.steps.items() if name[0] == tree}
        kept: dict[Name, Step] = {}
        for segment in self.log:
            if self._counts(tree, segment.segment_id):
                some = {name: step for name, step in segment.steps.items() if name[0] == tree}
                self._merge(replace(segment, steps=some), kept, lambda other, _: other == tree)
        self.voided += [(name, step) for name, step in before.items() if name not in kept]
        self.steps = {name: step for name, step in self.steps.items() if name[0] != tree} | kept

    # --- what is there ----------------------------------------------------------------------------------------------

    def path(self, tree_id: int, node_id: int) -> list[Step]:
        """The steps of a chain, first step first."""
        found: list[Step] = []
        while node_id != self.root_of[tree_id]:
            found.append(self.steps[tree_id, node_id])
            node_id = found[-1].parent_id
        return found[::-1]


def trees_of(snapshot: Snapshot) -> set[int]:
    """Trees that the parts of a snapshot hold."""
    return {tree for part in snapshot.parts.values() for tree in part.trees["tree_id"].tolist()}


def scores_of(scores: ScoreRows) -> list[tuple[Name, float, int]]:
    """Columns as rows: name, score, turn."""
    names = zip(scores.tree_id.tolist(), scores.node_id.tolist(), strict=True)
    return list(zip(names, scores.score.tolist(), scores.turn.tolist(), strict=True))


def rows_of(steps: dict[Name, Step]) -> NodeRows:
    """Objects as columns."""
    found = [*steps.items()]
    return NodeRows(
        tree_id=np.array([tree_id for (tree_id, _), _ in found], np.uint64),
        node_id=np.array([node_id for (_, node_id), _ in found], np.uint64),
        parent_id=np.array([step.parent_id for _, step in found], np.uint64),
        child_index=np.array([step.child_index for _, step in found], np.int32),
        depth=np.array([step.depth for _, step in found], np.int16),
        tokens=np.array([token for _, step in found for token in step.tokens], np.int32),
        token_count=np.array([len(step.tokens) for _, step in found], np.int32),
        text=np.frombuffer(b"".join(step.text for _, step in found), np.uint8),
        text_count=np.array([len(step.text) for _, step in found], np.int32),
        logprob=np.array([step.logprob for _, step in found], np.float32),
        score=np.array([math.nan if step.score is None else step.score for _, step in found], np.float32),
        finish=np.array([step.finish for _, step in found], np.uint8),
        turn=np.array([step.turn for _, step in found], np.int32),
    )


def steps_of(nodes: NodeRows) -> dict[Name, Step]:
    """Columns as objects."""
    tokens, text, found = nodes.tokens.tolist(), nodes.text.tobytes(), dict[Name, Step]()
    token_at = text_at = 0
    for at in range(len(nodes.node_id)):
        token_end, text_end = token_at + int(nodes.token_count[at]), text_at + int(nodes.text_count[at])
        score = float(nodes.score[at])
        name = int(nodes.tree_id[at]), int(nodes.node_id[at])
        assert name not in found, f"{name} is twice in one commit"
        found[name] = Step(
            parent_id=int(nodes.parent_id[at]),
            child_index=int(nodes.child_index[at]),
            depth=int(nodes.depth[at]),
            tokens=tuple(tokens[token_at:token_end]),
            text=text[text_at:text_end],
            logprob=float(nodes.logprob[at]),
            score=None if math.isnan(score) else score,
            finish=int(nodes.finish[at]),
            turn=int(nodes.turn[at]),
        )
        token_at, text_at = token_end, text_end
    return found
