"""Beam search over reasoning steps, guided by a process reward model.

Snell et al. 2024 (arXiv:2408.03314), section 5.2: sample `n` first steps; keep the best `keep` chains by their score; sample
`branch` continuations of each; repeat until they have ended. With a `threshold`, chains that are far behind the best are given up
even where places are free (relative threshold pruning, Freitag and Al-Onaizan 2017, arXiv:1702.01806, section 3).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import (
    Mask,
    Rows,
    first_of_group,
    order_in_segment,
    segment_lengths,
    segment_starts,
    share_out,
)
from ramify.scheduler.policies.base import Moves


@dataclass(frozen=True, slots=True)
class Beam:
    """See the module. Ties go to the lower node id."""

    n: int  # children of the root; with `refill`, live chains on every level
    keep: int  # survivors per level
    branch: int  # children per survivor
    max_steps: int
    # What an ended chain does to the beam. `compete`: it is carried along while it is among the best `keep`. `retire`: if it
    # is among them it is set aside and its place is gone. `refill`: it is set aside, its place is filled again, and the tree
    # ends when `n` are set aside.
    finished: Literal["compete", "retire", "refill"] = "compete"
    aggregate: Aggregate = "last"
    drop_duplicates: bool = True  # of chains that say the same, only one may survive
    threshold: float = 0.0  # share of the tree's best score below which a chain is given up
    barrier: Literal["level", "none"] = "level"
    scores: Literal["step", "end"] = "step"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next level of trees whose frontier is scored."""
        rows = forest.frontier(trees)  # [F]
        score = forest.chain_scores(rows, self.aggregate)
        order = order_in_segment(forest.tree[rows], score, forest.node_id[rows])
        rows, score = rows[order], score[order]  # best first within each tree
        tree, ended = forest.tree[rows], forest.ended(rows, self.max_steps)
        eligible = first_of_group(tree, forest.text_hash[rows], np.arange(len(rows), dtype=np.uint64))
        eligible |= not self.drop_duplicates
        best = np.repeat(score[segment_starts(tree)], segment_lengths(tree))
        eligible &= ~(score < np.float32(self.threshold) * best)
        survives, retires = self._places(forest, tree, eligible, ended)

        grows = survives & ~ended
        return Moves(
            expand=rows[grows],
            count=self._counts(forest, rows[grows]),
            prune=rows[~survives & ~retires],
            retire=rows[retires],
            finish=np.setdiff1d(trees, tree[grows]),
        )

    def _places(self, forest: Forest, tree: Rows, eligible: Mask, ended: Mask) -> tuple[Mask, Mask]:
        """`[F]` which chains hold a place on the next level, and which are set aside; all `[F]`, best first in each tree."""
        if self.finished == "compete":
            return eligible & (count_before(eligible, tree) < self.keep), np.zeros(len(tree), np.bool_)
        retired = forest.retired(tree)
        if self.finished == "retire":
            chosen = eligible & (count_before(eligible, tree) < self.keep - retired)
            return chosen & ~ended, chosen & ended
        sets_aside, live = eligible & ended, eligible & ~ended
        enough = retired + total_in_segment(sets_aside, tree) >= self.n
        return live & (count_before(live, tree) < self.keep) & ~enough, sets_aside

    def _counts(self, forest: Forest, rows: Rows) -> Rows:
        """`[E]` children of each growing chain."""
        root = forest.depth[rows] == 0
        if self.finished == "refill":
            return share_out(self.n, forest.tree[rows])
        return np.where(root, self.n, self.branch).astype(np.int32)


def count_before(mask: Mask, segment: Rows) -> Rows:
    """`[F]` how many entries of the same segment are marked before each entry."""
    running = np.cumsum(mask, dtype=np.int32) - mask.astype(np.int32)
    return (running - np.repeat(running[segment_starts(segment)], segment_lengths(segment))).astype(np.int32)


def total_in_segment(mask: Mask, segment: Rows) -> Rows:
    """`[F]` how many entries of each entry's segment are marked."""
    lengths = segment_lengths(segment)
    totals = np.add.reduceat(mask, segment_starts(segment), dtype=np.int32) if len(mask) else np.empty(0, np.int32)
    return np.repeat(totals, lengths)
