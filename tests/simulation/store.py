"""What a store must be for a shard, in memory; it rejects every commit that breaks its guarantees."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ramify.scheduler.commands import Commit, NodeRows, ScoreRows, Snapshot, TreeResult
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.forest.parts import Part, some_trees, with_scores
from ramify.scheduler.slots import SLOTS

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


@dataclass(frozen=True)
class Recovered:
    """What a new life begins with."""

    parts: dict[str, list[Part]]  # by job
    journal: NodeRows

    @property
    def trees(self) -> set[int]:
        """Trees that the parts hold."""
        return {tree for parts in self.parts.values() for part in parts for tree in part.trees["tree_id"].tolist()}


class Store:
    """Committed steps, results, counters and snapshots."""

    def __init__(self, root_of: dict[int, int]) -> None:
        """`root_of`: the root's id of each tree."""
        self.root_of = root_of
        self.steps: dict[Name, Step] = {}  # in the order of their commits
        self.results: dict[int, TreeResult] = {}
        self.step_count: Counter[str] = Counter()
        self.token_count: Counter[str] = Counter()
        self.commits: list[Commit] = []  # from 1
        self.snapshots: dict[int, tuple[int, Snapshot]] = {}  # by slot, the newest, and the number of its commit

    def apply(self, commit: Commit) -> None:
        """Write a commit: all of it, or an AssertionError names the guarantee that it breaks."""
        for name, step in steps_of(commit.nodes).items():
            tree_id, _ = name
            assert name not in self.steps, f"{name} is committed twice"
            assert tree_id not in self.results, f"{name} is committed after its tree's result"
            above = self.root_of[tree_id] if step.depth == 1 else None
            assert (tree_id, step.parent_id) in self.steps or step.parent_id == above, f"{name} has no committed parent"
            self.steps[name] = step
        for name, _, _ in scores_of(commit.scores):
            assert self.steps[name].score is None or self.steps[name].turn == 0, "a step is scored once"
        put_scores(self.steps, commit.scores)
        for delta in commit.jobs:
            self.step_count[delta.job_id] += delta.steps
            self.token_count[delta.job_id] += delta.tokens
            for result in delta.results:
                assert result.tree_id not in self.results, "a tree has one result"
                self.results[result.tree_id] = result
        self.commits.append(commit)
        for snapshot in commit.snapshots:
            self._check(snapshot)
            self.snapshots[snapshot.slot] = len(self.commits), snapshot

    def _check(self, snapshot: Snapshot) -> None:
        """A snapshot holds all that is committed of its slot's open trees, and nothing else."""
        held = steps_of(snapshot.steps)
        for parts in snapshot.parts.values():
            status, unpaid = parts.nodes["status"], parts.nodes["finish"] == 0  # roots, in flight, or lost and not missed
            grows = (parts.trees["status"] == TreeStatus.GROWING)[parts.nodes["tree"]]
            assert not (grows & (status == Status.SCORING)).any(), "what is with the verifier is told as still to be sampled"
            names = zip(parts.trees["tree_id"][parts.nodes["tree"]].tolist(), parts.nodes["node_id"].tolist(), strict=True)
            for name, sampling, free in zip(names, (grows & (status == Status.SAMPLING)).tolist(), unpaid.tolist(), strict=True):
                assert free or name in self.steps, f"{name} is in a snapshot and not committed"
                assert not sampling or (name in held) == (name in self.steps), f"{name} is committed: a snapshot must hold it"
        trees = Recovered({job: [part] for job, part in snapshot.parts.items()}, snapshot.steps).trees
        assert not trees & self.results.keys(), "a tree with a result is in a snapshot"
        assert all(tree % SLOTS == snapshot.slot for tree in trees), "a tree is in another slot's snapshot"
        for name in self.steps:
            missing = name[0] % SLOTS == snapshot.slot and name[0] not in self.results and name[0] not in trees
            assert not missing or name in held, f"{name} is committed: the snapshot must hold it or its tree"

    def recover(self, gone: Iterable[int] = ()) -> Recovered:
        """What the trees without a result go on from, less those that are `gone`; the newest snapshot of each slot first."""
        found: dict[Name, Step] = {}
        closed = {*self.results, *gone}
        parts: dict[str, list[Part]] = {}
        for number, snapshot in self.snapshots.values():
            found |= steps_of(snapshot.steps)
            for job_id, part in snapshot.parts.items():
                for commit in self.commits[number:]:
                    part = with_scores(part, commit.scores.tree_id, commit.scores.node_id, commit.scores.score)
                part = some_trees(part, np.array([tree not in closed for tree in part.trees["tree_id"].tolist()], np.bool_))
                if len(part):
                    parts.setdefault(job_id, []).append(part)
        for number, commit in enumerate(self.commits, 1):
            for name, step in steps_of(commit.nodes).items():
                if number > self._newest(name[0]):
                    found.setdefault(name, step)
            put_scores(found, commit.scores)
        return Recovered(parts, rows_of({name: step for name, step in found.items() if name[0] not in closed}))

    def _newest(self, tree_id: int) -> int:
        return self.snapshots[tree_id % SLOTS][0] if tree_id % SLOTS in self.snapshots else 0

    def journal(self) -> NodeRows:
        """The steps of the trees without a result, from their roots."""
        return rows_of({name: step for name, step in self.steps.items() if name[0] not in self.results})

    def path(self, tree_id: int, node_id: int) -> list[Step]:
        """The steps of a chain, first step first."""
        found: list[Step] = []
        while node_id != self.root_of[tree_id]:
            found.append(self.steps[tree_id, node_id])
            node_id = found[-1].parent_id
        return found[::-1]


def scores_of(scores: ScoreRows) -> list[tuple[Name, float, int]]:
    """Columns as rows: name, score, turn."""
    names = zip(scores.tree_id.tolist(), scores.node_id.tolist(), strict=True)
    return list(zip(names, scores.score.tolist(), scores.turn.tolist(), strict=True))


def put_scores(steps: dict[Name, Step], scores: ScoreRows) -> None:
    """Give the steps that are here the scores that came later."""
    for name, score, turn in scores_of(scores):
        if name in steps:
            finish = int(Finish.ERROR) if math.isnan(score) else steps[name].finish
            steps[name] = replace(steps[name], score=None if math.isnan(score) else score, finish=finish, turn=turn)


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
