"""Diverse verifier tree search: independent beams of one chain each.

Beeching, Tunstall and Rush 2024 (Hugging Face, "Scaling test-time compute with open models", section "DVTS: boosting performance
with diversity"): the `n` first steps are split into `keep` subtrees of `branch` steps. Each subtree goes on with its best chain
alone, of which it samples `branch` continuations, whatever the others do: so no subtree can crowd out another.

A subtree whose best chain has ended, or was cut, is done: that chain is set aside as its answer, and its siblings are given up.
(The authors' code returns the siblings too, finished or not.) The place of a subtree that is done, or that failed as a whole, is
not filled again.
"""

from dataclasses import dataclass

import numpy as np

from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import Rows, first_of_group, minus, order_in_segment
from ramify.scheduler.policies.base import Moves, Policy


@dataclass(frozen=True, slots=True)
class Dvts(Policy):
    """See the module. Ties go to the lower node id."""

    n: int = 16  # children of the root
    keep: int = 4  # subtrees
    branch: int = 4  # children of each subtree's best chain
    max_steps: int = 32
    aggregate: Aggregate = "last"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next level of trees whose frontier is scored."""
        rows = forest.frontier(trees)  # [F]
        rows = rows[order_in_segment(forest.tree[rows], forest.chain_scores(rows, self.aggregate), forest.node_id[rows])]
        best = first_of_group(forest.tree[rows], self._subtrees(forest, rows).astype(np.uint64))
        ended = forest.ended(rows, self.max_steps)
        grows = rows[best & ~ended]
        return Moves(
            expand=grows,
            count=np.where(forest.depth[grows] == 0, self.n, self.branch).astype(np.int32),
            prune=rows[~best],
            retire=rows[best & ended],
            finish=minus(trees, forest.tree[grows]),
        )

    def _subtrees(self, forest: Forest, rows: Rows) -> Rows:
        """`[F]` number of the subtree that each chain belongs to: that of its first step among its siblings."""
        path, length = forest.paths(rows, roots=True)
        first = np.cumsum(length) - length + (length > 1)  # a root is its own first step, and alone
        subtree: Rows = forest.child_index[path[first]] // self.branch
        return subtree
