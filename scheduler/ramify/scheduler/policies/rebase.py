"""REBASE, reward-balanced search: the better a chain's score, the more children it gets.

Wu et al. 2024 (arXiv:2408.00724), section 3.1.2: sample `n` first steps; on every level share the width that is left among the
chains in proportion to the softmax of their scores, eq. (1); each chain that has ended takes one from the width. The equation
rounds each share by itself, so that the shares need not add up. This is the rule of the authors' code (`select_softmax` in
thu-wyz/inference_scaling), where they do: from the best chain to the worst, each gets its share of what is left, rounded up.
Chains that get nothing are given up.

An ended chain is set aside as an answer, and so is one that was cut. The place of a step that failed is shared out again on the
next level.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import (
    Rows,
    minus,
    order_in_segment,
    segment_lengths,
    segment_starts,
    softmax_in_segment,
    sums_in_segment,
    total_in_segment,
)
from ramify.scheduler.policies.base import Moves, Policy

_ROUNDING = 1e-9  # by how much a share may be above a whole number and count as that number


@dataclass(frozen=True, slots=True)
class Rebase(Policy):
    """See the module. Ties go to the lower node id."""

    n: int = 16  # width: children of the root, and chains that the tree ends with
    balance: float = 0.2  # temperature of the softmax; the lower, the more of the width goes to the best
    max_steps: int = 32
    aggregate: Aggregate = "last"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next level of trees whose frontier is scored."""
        rows = forest.frontier(trees)  # [F]
        score = forest.chain_scores(rows, self.aggregate)
        order = order_in_segment(forest.tree[rows], score, forest.node_id[rows])
        rows, score = rows[order], score[order]  # best first within each tree
        tree, ended = forest.tree[rows], forest.ended(rows, self.max_steps)
        left = np.maximum(self.n - forest.retired(tree) - total_in_segment(ended, tree), 0)
        live, tree, left = rows[~ended], tree[~ended], left[~ended]
        weight = softmax_in_segment(score[~ended].astype(np.float64), self.balance, tree)
        count = apportion(left[segment_starts(tree)], weight, tree)
        grows = count > 0
        return Moves(
            expand=live[grows],
            count=count[grows],
            prune=live[~grows],
            retire=rows[ended],
            finish=minus(trees, tree[grows]),
        )


def apportion(total: Rows, weight: NDArray[np.float64], segment: Rows) -> Rows:
    """Divide a total in proportion to weights: one entry after the other gets its share of what is left, rounded up.

    Args:
        total: `[S]` what to divide in each segment.
        weight: `[F]` falling within a segment, the first one above 0.
        segment: `[F]` sorted.

    Returns:
        `[F]` counts; those of one segment add up to its total.
    """
    rest = sums_in_segment(weight[::-1], segment[::-1])[::-1]  # of the entry and those after it
    share = np.divide(weight, rest, out=np.zeros(len(weight)), where=weight > 0)
    starts, lengths = segment_starts(segment), segment_lengths(segment)
    count = np.zeros(len(segment), np.int32)
    left = total.copy()
    for place in range(int(lengths.max(initial=0))):
        here = (lengths > place) & (left > 0)
        if not here.any():
            break
        at = starts[here] + place
        count[at] = np.ceil(left[here] * share[at] - _ROUNDING)
        left[here] -= count[at]
    return count
