"""The forest: every tree of a shard as rows of one table.

A node is a row, a parent is a row number, tokens and text lie in arenas. Row numbers are good until the next `compact`;
`(tree_id, node_id)` names a node for ever.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.ids import hash_ranges, mix64
from ramify.scheduler.forest.segments import Mask, Rows, position_in_segment
from ramify.scheduler.forest.table import Arena, Table

NO_ROW = -1

Aggregate = Literal["last", "min", "mean", "prod"]


class Status(IntEnum):
    """Where a node is. It goes SAMPLING, SCORING (unless its policy needs no score of it), OPEN and then one of the others."""

    SAMPLING = 0  # dispatched to an engine
    SCORING = 1  # dispatched to the verifier
    OPEN = 2  # in the frontier: the policy has yet to decide, or has decided to carry it along
    EXPANDED = 3  # has children
    PRUNED = 4  # given up
    RETIRED = 5  # has ended and is set aside as a candidate for the answer


class TreeStatus(IntEnum):
    """Where a tree is."""

    GROWING = 0
    CHECKING = 1  # has an answer, which is with the checker
    FINISHED = 2  # its result waits for its commit
    COMMITTING = 3  # its result is in the commit that is being written
    FREE = 4  # committed or cancelled; `compact` may drop it


class Dirty(IntEnum):
    """Bits of what a commit still has to write of a node."""

    NODE = 1  # the step itself
    SCORE = 2  # its score; the step is committed, or is written along with it
    COMMITTING = 4  # in the commit that is being written


class Trees(Table):
    """One row for each tree."""

    COLUMNS: ClassVar[Mapping[str, DTypeLike]] = {
        "tree_id": np.uint64,
        "problem": np.int64,
        "plan": np.int32,
        "root": np.int32,
        "outstanding": np.int32,
        "spent": np.int64,
        "steps": np.int64,
        "best": np.int32,
        "best_score": np.float32,
        "status": np.uint8,
        "outcome": np.uint8,
        "verdict": np.uint8,
    }
    tree_id: NDArray[np.uint64]
    problem: NDArray[np.int64]  # index in its job
    plan: NDArray[np.int32]  # index of its job's plan in the shard
    root: NDArray[np.int32]  # row of the root node
    outstanding: NDArray[np.int32]  # nodes SAMPLING or SCORING
    spent: NDArray[np.int64]  # tokens sampled: those of its steps, end marks apart (a fault may overwrite who had one)
    steps: NDArray[np.int64]  # nodes sampled
    best: NDArray[np.int32]  # row of the node that ends the answer; NO_ROW until there is one
    best_score: NDArray[np.float32]
    status: NDArray[np.uint8]  # a TreeStatus
    outcome: NDArray[np.uint8]  # an Outcome, once finished
    verdict: NDArray[np.uint8]  # a Verdict, once checked


class Forest(Table):
    """One row for each node; parents come before their children."""

    COLUMNS: ClassVar[Mapping[str, DTypeLike]] = {
        "node_id": np.uint64,
        "text_hash": np.uint64,
        "token_start": np.int64,
        "text_start": np.int64,
        "tree": np.int32,
        "parent": np.int32,
        "child_index": np.int32,
        "child_count": np.int32,
        "token_count": np.int32,
        "text_count": np.int32,
        "logprob": np.float32,
        "score": np.float32,
        "depth": np.int16,
        "status": np.uint8,
        "finish": np.uint8,
        "dirty": np.uint8,
        "tries": np.uint8,
    }
    node_id: NDArray[np.uint64]
    text_hash: NDArray[np.uint64]  # equal for chains of one tree that say the same
    token_start: NDArray[np.int64]
    text_start: NDArray[np.int64]
    tree: NDArray[np.int32]  # row in `trees`
    parent: NDArray[np.int32]  # NO_ROW for a root
    child_index: NDArray[np.int32]
    child_count: NDArray[np.int32]  # children dispatched so far
    token_count: NDArray[np.int32]
    text_count: NDArray[np.int32]
    logprob: NDArray[np.float32]
    score: NDArray[np.float32]  # NaN: not scored
    depth: NDArray[np.int16]  # 0 for a root
    status: NDArray[np.uint8]  # a Status
    finish: NDArray[np.uint8]  # a Finish; 0 for roots and what is not sampled yet
    dirty: NDArray[np.uint8]  # bits of Dirty
    tries: NDArray[np.uint8]  # times that the node was lost by an engine or a verifier

    def __init__(self) -> None:
        super().__init__()
        self.trees = Trees()
        self.tokens = Arena(np.int32)
        self.text = Arena(np.uint8)

    def admit(
        self,
        plan: int,
        tree_id: NDArray[np.uint64],
        problem: NDArray[np.int64],
        root_id: NDArray[np.uint64],
        tokens: NDArray[np.int32],
        token_count: NDArray[np.int32],
        text: NDArray[np.uint8],
        text_count: NDArray[np.int32],
    ) -> Rows:
        """Add T trees, each of them a root whose tokens are the prompt and whose text is the problem.

        Args:
            plan: index of the job's plan.
            tree_id: `[T]`.
            problem: `[T]` index in the job.
            root_id: `[T]`.
            tokens: the prompts, one after the other.
            token_count: `[T]` tokens of each prompt.
            text: the problems in UTF-8, one after the other.
            text_count: `[T]` bytes of each problem.

        Returns:
            `[T]` rows in `trees`.
        """
        trees = self.trees.append(len(tree_id))
        roots = self.append(len(tree_id))
        self.trees.tree_id[trees], self.trees.problem[trees], self.trees.plan[trees] = tree_id, problem, plan
        self.trees.root[trees], self.trees.best[trees], self.trees.best_score[trees] = roots, NO_ROW, np.nan
        self.tree[roots], self.parent[roots], self.node_id[roots] = trees, NO_ROW, root_id
        self.status[roots], self.score[roots] = Status.OPEN, np.nan
        self._write(roots, tokens, token_count, text, text_count)
        return trees

    def frontier(self, trees: Rows) -> Rows:
        """`[F]` OPEN nodes of `trees` `[T]` (sorted), grouped by tree, older nodes first."""
        wanted = np.zeros(self.trees.size, np.bool_)
        wanted[trees] = True
        rows = np.flatnonzero(self.status[: self.size] == Status.OPEN)
        rows = rows[wanted[self.tree[rows]]]
        return rows[np.argsort(self.tree[rows], kind="stable")].astype(np.int32)

    def candidates(self, trees: Rows) -> Rows:
        """`[C]` nodes that may end an answer: OPEN or RETIRED nodes of `trees` `[T]` (sorted), grouped by tree; no roots."""
        wanted = np.zeros(self.trees.size, np.bool_)
        wanted[trees] = True
        status = self.status[: self.size]
        rows = np.flatnonzero((status == Status.OPEN) | (status == Status.RETIRED))
        rows = rows[wanted[self.tree[rows]] & (self.depth[rows] > 0)]
        return rows[np.argsort(self.tree[rows], kind="stable")].astype(np.int32)

    def retired(self, trees: Rows) -> Rows:
        """`[F]` how many nodes of each of `trees` `[F]` (any order, repeats allowed) are RETIRED."""
        rows = np.flatnonzero(self.status[: self.size] == Status.RETIRED)
        return np.bincount(self.tree[rows], minlength=self.trees.size)[trees].astype(np.int32)

    def ended(self, rows: Rows, max_steps: int) -> Mask:
        """`[R]` whether the chain that ends in each node can't go on: by its own end mark, its context or its depth."""
        finish = self.finish[rows]
        return np.isin(finish, (Finish.END, Finish.CONTEXT)) | (self.depth[rows] >= max_steps)

    def expand(self, rows: Rows, counts: Rows) -> Rows:
        """Add `counts` `[E]` children to each of `rows` `[E]` (distinct), status SAMPLING.

        Returns:
            `[sum of counts]` the children, grouped by parent.
        """
        parent = np.repeat(rows, counts)
        children = self.append(len(parent))
        index = position_in_segment(np.repeat(np.arange(len(rows), dtype=np.int32), counts)) + self.child_count[parent]
        self.tree[children], self.parent[children], self.child_index[children] = self.tree[parent], parent, index
        self.node_id[children] = mix64(self.node_id[parent], index.astype(np.uint64))
        self.depth[children] = self.depth[parent] + 1
        self.status[children], self.score[children] = Status.SAMPLING, np.nan
        self.child_count[rows] += counts
        self.status[rows] = Status.EXPANDED
        np.add.at(self.trees.outstanding, self.tree[children], 1)
        return children

    def fill(
        self,
        rows: Rows,
        tokens: NDArray[np.int32],
        token_count: NDArray[np.int32],
        text: NDArray[np.uint8],
        text_count: NDArray[np.int32],
        logprob: NDArray[np.float32],
        finish: NDArray[np.uint8],
    ) -> None:
        """Write the sampled steps of `rows` `[R]`."""
        self._write(rows, tokens, token_count, text, text_count)
        self.logprob[rows], self.finish[rows] = logprob, finish
        self.text_hash[rows] = mix64(self.text_hash[self.parent[rows]], hash_ranges(text, text_count))
        np.add.at(self.trees.spent, self.tree[rows], token_count)
        np.add.at(self.trees.steps, self.tree[rows], 1)

    def paths(self, rows: Rows) -> tuple[Rows, Rows]:
        """The nodes of each chain, from its first step to its last; roots are left out.

        Args:
            rows: `[R]` last nodes.

        Returns:
            `[sum of lengths]` nodes, one chain after the other, and `[R]` the chains' lengths.
        """
        length = self.depth[rows].astype(np.int32)
        path = np.full((len(rows), int(length.max(initial=0))), NO_ROW, np.int32)
        at, chain = rows, np.arange(len(rows))
        while len(at):
            inner = self.depth[at] > 0
            at, chain = at[inner], chain[inner]
            path[chain, self.depth[at] - 1] = at
            at = self.parent[at]
        return path[path != NO_ROW], length

    def chain_scores(self, rows: Rows, aggregate: Aggregate) -> NDArray[np.float32]:
        """`[R]` score of the chain that ends in each node; NaN if one of the steps that count has none."""
        if aggregate == "last":
            return self.score[rows]
        path, length = self.paths(rows)
        scores = np.full(len(rows), np.nan, np.float32)
        some = length > 0
        if not some.any():
            return scores
        starts = (np.cumsum(length, dtype=np.int64) - length)[some]
        steps = self.score[path].astype(np.float64)
        if aggregate == "min":
            scores[some] = np.minimum.reduceat(steps, starts)
        elif aggregate == "prod":
            scores[some] = np.multiply.reduceat(steps, starts)
        else:
            scores[some] = np.add.reduceat(steps, starts) / length[some]
        return scores

    def chain_tokens(self, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Prompt and steps of the chains that end in `rows` `[R]`: tokens one after the other, and offsets `[R+1]`."""
        path, length = self.paths(rows)
        chain = np.repeat(np.arange(len(rows)), length)
        nodes = np.concatenate((self.trees.root[self.tree[rows]], path))
        owner = np.concatenate((np.arange(len(rows)), chain))
        order = np.argsort(owner, kind="stable")
        nodes, owner = nodes[order], owner[order]
        tokens = self.tokens.take(self.token_start[nodes], self.token_count[nodes])
        per_chain = np.zeros(len(rows), np.int64)
        np.add.at(per_chain, owner, self.token_count[nodes])
        return tokens, np.concatenate((np.zeros(1, np.int64), np.cumsum(per_chain)))

    def texts(self, rows: Rows) -> list[str]:
        """The text of each node's own step; of a root, the problem."""
        data = self.text.data
        start, count = self.text_start[rows].tolist(), self.text_count[rows].tolist()
        return [data[s : s + c].tobytes().decode("utf-8", "replace") for s, c in zip(start, count, strict=True)]

    def step_texts(self, rows: Rows) -> list[list[str]]:
        """The texts of each chain's steps, for the chains that end in `rows` `[R]`."""
        path, length = self.paths(rows)
        texts, ends = self.texts(path), np.cumsum(length).tolist()
        return [texts[end - count : end] for end, count in zip(ends, length.tolist(), strict=True)]

    def locate(self, hint: Rows, tree_id: NDArray[np.uint64], node_id: NDArray[np.uint64]) -> tuple[Rows, NDArray[np.int64]]:
        """Rows of the named nodes that are still here, and which of the names they answer.

        Args:
            hint: `[R]` where each was once; good until `compact` renumbers.
            tree_id: `[R]`.
            node_id: `[R]`; both together are the names.
        """
        at = np.where((hint >= 0) & (hint < self.size), hint, 0)
        if self.size == 0:
            return at[:0], np.empty(0, np.int64)
        right = (self.node_id[at] == node_id) & (self.trees.tree_id[self.tree[at]] == tree_id)
        if not right.all():  # rows were renumbered while the node was out
            names = mix64(self.trees.tree_id[self.tree[: self.size]], self.node_id[: self.size])
            order = np.argsort(names)
            place = np.searchsorted(names[order], mix64(tree_id, node_id))
            at = order[np.minimum(place, self.size - 1)]
            right = (self.node_id[at] == node_id) & (self.trees.tree_id[self.tree[at]] == tree_id)
        return at[right].astype(np.int32), np.flatnonzero(right)

    def compact(self) -> None:
        """Free the rows of dead branches and of trees that are done; what is live, uncommitted or above such a node stays."""
        status, rows = self.status[: self.size], np.arange(self.size, dtype=np.int32)
        grown = self.trees.status[self.tree[: self.size]] != TreeStatus.FREE
        live = (status != Status.PRUNED) & (status != Status.EXPANDED) | (self.parent[: self.size] == NO_ROW)
        keep = (live & grown) | (self.dirty[: self.size] != 0)
        best = self.trees.best[: self.trees.size]
        best = best[(best != NO_ROW) & (self.trees.status[: self.trees.size] != TreeStatus.FREE)]
        keep[best] = True
        order = np.argsort(self.depth[: self.size], kind="stable")[::-1]
        for level in np.split(order, np.flatnonzero(np.diff(self.depth[order])) + 1):
            parents = self.parent[level[keep[level]]]
            keep[parents[parents != NO_ROW]] = True
        trees_kept = np.zeros(self.trees.size, np.bool_)
        trees_kept[self.tree[rows[keep]]] = True
        new_row, new_tree = self.keep(keep), self.trees.keep(trees_kept)
        self.tree[: self.size] = new_tree[self.tree[: self.size]]
        parent = self.parent[: self.size]
        parent[parent != NO_ROW] = new_row[parent[parent != NO_ROW]]
        self.trees.root[: self.trees.size] = new_row[self.trees.root[: self.trees.size]]
        best = self.trees.best[: self.trees.size]
        best[best != NO_ROW] = new_row[best[best != NO_ROW]]
        size = self.size
        self.tokens, self.token_start[:size] = self.tokens.repack(self.token_start[:size], self.token_count[:size])
        self.text, self.text_start[:size] = self.text.repack(self.text_start[:size], self.text_count[:size])

    def _write(
        self,
        rows: Rows,
        tokens: NDArray[np.int32],
        token_count: NDArray[np.int32],
        text: NDArray[np.uint8],
        text_count: NDArray[np.int32],
    ) -> None:
        self.token_start[rows] = self.tokens.append(tokens) + np.cumsum(token_count, dtype=np.int64) - token_count
        self.text_start[rows] = self.text.append(text) + np.cumsum(text_count, dtype=np.int64) - text_count
        self.token_count[rows], self.text_count[rows] = token_count, text_count

    def validate(self) -> None:
        """Check every invariant; for tests and for debugging.

        Raises:
            AssertionError: names the invariant.
        """
        n, t = self.size, self.trees.size
        rows = np.arange(n)
        child = np.flatnonzero(self.parent[:n] != NO_ROW)
        parent = self.parent[child]
        assert (parent < child).all(), "a parent comes before its children"
        assert (self.tree[parent] == self.tree[child]).all(), "parent and child are of one tree"
        assert (self.depth[child] == self.depth[parent] + 1).all(), "depth counts steps"
        ids = mix64(self.node_id[parent], self.child_index[child].astype(np.uint64))
        assert (self.node_id[child] == ids).all(), "an id names the path"
        assert (self.child_index[child] < self.child_count[parent]).all(), "children are counted"
        names = np.stack((self.trees.tree_id[self.tree[:n]], self.node_id[:n]))
        assert np.unique(names, axis=1).shape[1] == n, "(tree_id, node_id) is unique"
        busy = (self.status[:n] == Status.SAMPLING) | (self.status[:n] == Status.SCORING)
        growing = self.trees.status[:t] == TreeStatus.GROWING
        counted = np.bincount(self.tree[rows[busy]], minlength=t)
        assert (counted[growing] == self.trees.outstanding[:t][growing]).all(), "outstanding counts what is in flight"
        assert (self.parent[self.trees.root[:t]] == NO_ROW).all(), "a root has no parent"
        assert (self.tree[self.trees.root[:t]] == np.arange(t)).all(), "a tree has its root"
        assert (self.token_start[:n] + self.token_count[:n] <= self.tokens.size).all(), "tokens lie in the arena"
        assert (self.text_start[:n] + self.text_count[:n] <= self.text.size).all(), "text lies in the arena"
