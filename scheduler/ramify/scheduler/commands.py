"""What a shard wants done. The shell carries it out and feeds the outcome back as events."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.plan import JobPlan


@dataclass(frozen=True, slots=True)
class Generate:
    """Sample R steps of one job: G chains, each continued one or more times. Answer: `StepsSampled` or `StepsLost`."""

    plan: JobPlan
    tokens: NDArray[np.int32]  # the chains' tokens, prompt first, one chain after the other
    offsets: NDArray[np.int64]  # [G+1]
    group: NDArray[np.int32]  # [R] which chain each step continues, ascending
    row: NDArray[np.int32]  # [R]
    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R] also the seeds
    code: NDArray[np.float64]  # [R] see `ids.sibling_codes` and `ids.node_codes`


@dataclass(frozen=True, slots=True)
class Chains:
    """R chains as text."""

    row: NDArray[np.int32]  # [R] last node of each chain
    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R]
    problem: list[str]  # R
    steps: list[list[str]]  # R

    @classmethod
    def of(cls, forest: Forest, rows: Rows) -> Self:
        """The chains that end in `rows` `[R]`."""
        tree = forest.tree[rows]
        return cls(
            row=rows,
            tree_id=forest.trees.tree_id[tree],
            node_id=forest.node_id[rows],
            problem=forest.texts(forest.trees.root[tree]),
            steps=forest.step_texts(rows),
        )


@dataclass(frozen=True, slots=True)
class Score:
    """Score every step of some chains of one job. Answer: `StepsScored` or `StepsLost`."""

    plan: JobPlan
    chains: Chains


@dataclass(frozen=True, slots=True)
class Check:
    """Have the job's checker judge the answers of some trees. Answer: `AnswersChecked`."""

    plan: JobPlan
    chains: Chains


@dataclass(frozen=True, slots=True)
class NodeRows:
    """R sampled steps to be written, parents before children."""

    tree_id: NDArray[np.uint64]
    node_id: NDArray[np.uint64]
    parent_id: NDArray[np.uint64]
    child_index: NDArray[np.int32]
    depth: NDArray[np.int16]
    tokens: NDArray[np.int32]
    token_count: NDArray[np.int32]
    text: NDArray[np.uint8]
    text_count: NDArray[np.int32]
    logprob: NDArray[np.float32]
    score: NDArray[np.float32]
    finish: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Scores of R nodes that an earlier commit wrote without them."""

    tree_id: NDArray[np.uint64]
    node_id: NDArray[np.uint64]
    score: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TreeResult:
    """The result of one problem."""

    tree_id: int
    problem: int
    outcome: int
    verdict: int
    steps: list[str]
    score: float  # NaN: none
    answer_node_id: int
    step_count: int
    tokens: int
    message: str


@dataclass(frozen=True, slots=True)
class JobDelta:
    """What a commit adds to a job."""

    job_id: str
    steps: int
    tokens: int
    results: list[TreeResult]


@dataclass(frozen=True, slots=True)
class Commit:
    """Write all of this in one transaction. Answer: `Committed`. There is never more than one open."""

    sequence: int
    nodes: NodeRows
    scores: ScoreRows
    jobs: list[JobDelta]


Command = Generate | Score | Check | Commit
