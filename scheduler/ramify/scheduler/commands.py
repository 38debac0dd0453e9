"""What a shard wants done. The shell carries it out and feeds the outcome back as events."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.forest.columns import NO_ROW, Flag
from ramify.scheduler.forest.forest import Forest, Hints
from ramify.scheduler.forest.ids import node_codes, sibling_codes
from ramify.scheduler.forest.parts import Part
from ramify.scheduler.forest.segments import Mask, Rows
from ramify.scheduler.forest.table import select
from ramify.scheduler.plan import JobPlan


@dataclass(frozen=True, slots=True)
class Generate:
    """Sample R steps of one job: G chains, each continued one or more times. Answer: `StepsSampled` or `StepsLost`."""

    plan: JobPlan
    generator: str  # the engine model that is to sample
    params: StepParams
    speculative: bool  # to be sampled only where nothing else waits
    tokens: NDArray[np.int32]  # the chains' tokens, prompt first, one chain after the other
    offsets: NDArray[np.int64]  # [G+1]
    parent_id: NDArray[np.uint64]  # [G] the last node of each chain
    group: NDArray[np.int32]  # [R] which chain each step continues, ascending
    hint: Hints  # [R]
    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R] also the seeds
    code: NDArray[np.float64]  # [R] see `ids.sibling_codes` and `ids.node_codes`
    attempt: NDArray[np.uint8]  # [R] how often the node was lost before
    depth: NDArray[np.int16]  # [R] which of its chain's steps each is, from 1

    @property
    def numbers(self) -> NDArray[np.int16]:
        """`[G]` which step of its chain is to be sampled, from 1."""
        return np.asarray(self.depth[np.unique(self.group, return_index=True)[1]])

    @classmethod
    def of(cls, forest: Forest, plan: JobPlan, rows: Rows) -> list[Self]:
        """The commands to sample `rows` `[R]`, all of one job: one for each model and way of sampling among them."""
        models = [each.model for each in plan.generators]
        kinds = forest.flags[rows].astype(np.int64) * len(models) + plan.writers(forest.node_id[rows])
        return [
            cls._alike(forest, plan, rows[kinds == kind], kind // len(models), models[kind % len(models)])
            for kind in np.flatnonzero(np.bincount(kinds)).tolist()
        ]

    @classmethod
    def _alike(cls, forest: Forest, plan: JobPlan, rows: Rows, flags: int, generator: str) -> Self:
        rows = rows[np.argsort(forest.parent[rows], kind="stable")]
        parent, node_id, index = forest.parent[rows], forest.node_id[rows], forest.child_index[rows]
        first = np.diff(parent, prepend=NO_ROW) != 0
        tokens, offsets = forest.chain_tokens(parent[first])
        return cls(
            plan=plan,
            generator=generator,
            params=replace(plan.params, temperature=0.0) if flags & Flag.GREEDY else plan.params,
            speculative=bool(flags & Flag.SPECULATIVE),
            tokens=tokens,
            offsets=offsets,
            parent_id=forest.node_id[parent[first]],
            group=(np.cumsum(first, dtype=np.int32) - 1).astype(np.int32),
            hint=forest.hints(rows),
            tree_id=forest.trees.tree_id[forest.tree[rows]],
            node_id=node_id,
            code=sibling_codes(forest.node_id[parent], index) if plan.spread_siblings else node_codes(node_id),
            attempt=forest.tries[rows],
            depth=forest.depth[rows],
        )


@dataclass(frozen=True, slots=True)
class Withdraw:
    """R nodes whose samples are wanted no more: what has not begun need not begin. No answer."""

    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R]


@dataclass(frozen=True, slots=True)
class Chains:
    """R chains as text, each of them a problem and one or more steps."""

    hint: Hints  # [R] last node of each chain
    tree_id: NDArray[np.uint64]  # [R]
    node_id: NDArray[np.uint64]  # [R]
    attempt: NDArray[np.uint8]  # [R] how often the node was lost before
    text: NDArray[np.uint8]  # UTF-8: problem and steps of the first chain, then those of the next
    text_count: NDArray[np.int32]  # [R + sum of lengths] bytes of each of them
    length: NDArray[np.int32]  # [R] steps of each chain
    ended: Mask  # [R] whether it can't go on

    @classmethod
    def of(cls, forest: Forest, plan: JobPlan, rows: Rows) -> Self:
        """The chains that end in `rows` `[R]`, all of one job."""
        nodes, length = forest.paths(rows, roots=True)
        count = forest.text_count[nodes]
        return cls(
            hint=forest.hints(rows),
            tree_id=forest.trees.tree_id[forest.tree[rows]],
            node_id=forest.node_id[rows],
            attempt=forest.tries[rows],
            text=forest.text.take(forest.text_start[nodes], count),
            text_count=count,
            length=length - 1,
            ended=forest.ended(rows, plan.policy.max_steps),
        )

    def select(self, which: Mask) -> Self:
        """The chains that `which` `[R]` marks."""
        if which.all():
            return self
        texts = np.repeat(which, self.length + 1)
        return type(self)(
            self.hint[which],
            self.tree_id[which],
            self.node_id[which],
            self.attempt[which],
            select(self.text, self.text_count, texts),
            self.text_count[texts],
            self.length[which],
            self.ended[which],
        )

    def texts(self) -> list[tuple[str, list[str]]]:
        """Problem and steps of each chain."""
        text, ends = self.text.tobytes(), np.cumsum(self.text_count, dtype=np.int64).tolist()
        parts = [text[start:end].decode("utf-8", "replace") for start, end in zip([0, *ends], ends, strict=False)]
        last = np.cumsum(self.length + 1).tolist()
        return [(parts[end - size - 1], parts[end - size : end]) for end, size in zip(last, self.length.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Score:
    """Score every step of some chains of one job. Answer: `StepsScored` or `StepsLost`."""

    plan: JobPlan
    chains: Chains


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare the answers of R chains, each with the others of its tree. Answer: `AnswersGrouped`."""

    plan: JobPlan
    tree_id: NDArray[np.uint64]  # [R] a tree's chains follow each other, in the order in which they are to be grouped
    node_id: NDArray[np.uint64]  # [R] last node of each chain
    answers: list[str]  # R; empty: none was found


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
    turn: NDArray[np.int32]  # the decision that was the first to know it; 0: none knows it yet


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Scores of R nodes that an earlier commit wrote without them."""

    tree_id: NDArray[np.uint64]
    node_id: NDArray[np.uint64]
    score: NDArray[np.float32]
    turn: NDArray[np.int32]


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
    wasted_tokens: int  # of `tokens`, those of speculative steps that came to nothing
    message: str  # why there is no answer
    note: str = ""  # what is odd about the answer
    generators: list[str] = field(default_factory=list)  # that wrote the steps, where the job has several


@dataclass(frozen=True, slots=True)
class JobDelta:
    """What a commit adds to a job."""

    job_id: str
    steps: int
    tokens: int
    results: list[TreeResult]
    retries: int = 0  # steps that were lost and are sampled or scored again
    tenant: str = ""  # who pays


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The open trees of a slot as they are once the commit that carries them is durable.

    To go on from here, nothing that was committed before has to be read. It is never the only copy of anything.
    """

    slot: int
    parts: Mapping[str, Part]  # by job id
    steps: NodeRows  # committed steps that no decision knows yet; the parts hold them as still to be sampled


@dataclass(frozen=True, slots=True)
class Commit:
    """Write all of this in one transaction. Answer: `Committed`. There is never more than one open."""

    sequence: int
    nodes: NodeRows
    scores: ScoreRows
    jobs: list[JobDelta]
    snapshots: list[Snapshot] = field(default_factory=list)
    released: tuple[int, ...] = ()  # slots whose trees are no more here: once this is durable, others may have them


Command = Generate | Withdraw | Score | Compare | Check | Commit
