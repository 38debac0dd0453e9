"""What a store must be for a shard, in memory; it rejects every commit that breaks its guarantees."""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from ramify.scheduler.commands import Commit, NodeRows, TreeResult
from ramify.scheduler.engines.base import Finish

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


class Store:
    """Committed steps, results and counters."""

    def __init__(self, root_of: dict[int, int]) -> None:
        """`root_of`: the root's id of each tree."""
        self.root_of = root_of
        self.steps: dict[Name, Step] = {}  # in the order of their commits
        self.results: dict[int, TreeResult] = {}
        self.step_count: Counter[str] = Counter()
        self.token_count: Counter[str] = Counter()

    def apply(self, commit: Commit) -> None:
        """Write a commit: all of it, or an AssertionError names the guarantee that it breaks."""
        for name, step in steps_of(commit.nodes).items():
            tree_id, _ = name
            assert name not in self.steps, f"{name} is committed twice"
            assert tree_id not in self.results, f"{name} is committed after its tree's result"
            above = self.root_of[tree_id] if step.depth == 1 else None
            assert (tree_id, step.parent_id) in self.steps or step.parent_id == above, f"{name} has no committed parent"
            self.steps[name] = step
        scores = commit.scores
        names = zip(scores.tree_id.tolist(), scores.node_id.tolist(), strict=True)
        for (tree_id, node_id), score, turn in zip(names, scores.score.tolist(), scores.turn.tolist(), strict=True):
            step = self.steps[tree_id, node_id]
            assert step.score is None or step.turn == 0, "a step is scored once"
            failed = math.isnan(score)
            finish = int(Finish.ERROR) if failed else step.finish
            self.steps[tree_id, node_id] = replace(step, score=None if failed else score, finish=finish, turn=turn)
        for delta in commit.jobs:
            self.step_count[delta.job_id] += delta.steps
            self.token_count[delta.job_id] += delta.tokens
            for result in delta.results:
                assert result.tree_id not in self.results, "a tree has one result"
                self.results[result.tree_id] = result

    def journal(self) -> NodeRows:
        """The steps of the trees without a result."""
        found = [(name, step) for name, step in self.steps.items() if name[0] not in self.results]
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

    def path(self, tree_id: int, node_id: int) -> list[Step]:
        """The steps of a chain, first step first."""
        found: list[Step] = []
        while node_id != self.root_of[tree_id]:
            found.append(self.steps[tree_id, node_id])
            node_id = found[-1].parent_id
        return found[::-1]


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
