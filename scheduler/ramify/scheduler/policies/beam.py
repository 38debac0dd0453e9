"""Beam search over reasoning steps, guided by a process reward model.

Snell et al. 2024 (arXiv:2408.03314), section 5.2: sample `n` first steps; keep the best `keep` chains by their score; sample
`branch` continuations of each; repeat until they have ended. With a `threshold`, chains that are far behind the best are given up
even where places are free (relative threshold pruning, Freitag and Al-Onaizan 2017, arXiv:1702.01806, section 3).

A chain that was cut has ended like any other; only whether it may be the answer depends on `cut`.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import (
    Mask,
    Rows,
    count_before,
    first_of_group,
    minus,
    order_in_segment,
    segment_lengths,
    segment_starts,
    share_out,
    total_in_segment,
)
from ramify.scheduler.policies import beam_async
from ramify.scheduler.policies.base import Moves, Policy


@dataclass(frozen=True, slots=True)
class Beam(Policy):
    """See the module. Ties go to the lower node id."""

    n: int = 16  # children of the root; with `refill`, live chains on every level
    keep: int = 4  # survivors per level
    branch: int = 4  # children per survivor
    max_steps: int = 32
    # What an ended chain does to the beam. `compete`: it is carried along while it is among the best `keep`. `retire`: if it
    # is among them it is set aside and its place is gone. `refill`: it is set aside, its place is filled again, and the tree
    # ends when `n` are set aside.
    finished: Literal["compete", "retire", "refill"] = "compete"
    aggregate: Aggregate = "last"
    duplicates: Literal["drop", "keep"] = "drop"  # `drop`: of chains that say the same, only one may survive
    threshold: float = 0.0  # share of the level's best score below which a chain is given up
    barrier: Literal["level", "none"] = "level"  # `none`: see `beam_async`
    speculate: int = 0  # with `none`, chains per level that go on before they have earned it
    stop_score: float = 0.8  # with `none`, score of an ended chain from which the tree may end before all has landed
    whole: bool = field(default=False, init=False)  # without a barrier, for then a level's dead chains are counted

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", self.barrier == "none")

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next level of trees whose frontier is scored."""
        if self.barrier == "none":
            return beam_async.advance(self, forest, trees)
        rows = forest.frontier(trees)  # [F]
        score = forest.chain_scores(rows, self.aggregate)
        order = order_in_segment(forest.tree[rows], score, forest.node_id[rows])
        rows, score = rows[order], score[order]  # best first within each tree
        tree, ended = forest.tree[rows], forest.ended(rows, self.max_steps)
        eligible = first_of_group(tree, forest.text_hash[rows])
        eligible |= self.duplicates == "keep"
        best = np.repeat(score[segment_starts(tree)], segment_lengths(tree))
        eligible &= ~(score < np.float32(self.threshold) * best)
        survives, retires = self._places(forest, tree, eligible, ended)

        grows = survives & ~ended
        return Moves(
            expand=rows[grows],
            count=self._counts(forest, rows[grows]),
            prune=rows[~survives & ~retires],
            retire=rows[retires],
            finish=minus(trees, tree[grows]),
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
