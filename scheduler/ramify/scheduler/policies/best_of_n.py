"""Best-of-n: sample n chains independently, keep the best by its score.

Cobbe et al. 2021 (arXiv:2110.14168), section 4.2, with a process reward model in the verifier's place. The chains do not
wait for each other.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.policies.base import Moves


@dataclass(frozen=True, slots=True)
class BestOfN:
    """See the module. Every chain grows one step at a time until it ends; only then is it scored."""

    n: int  # chains per tree
    max_steps: int
    barrier: Literal["level", "none"] = "none"
    scores: Literal["step", "end"] = "end"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Continue every open chain; a tree is finished when all of its chains have ended."""
        rows = forest.frontier(trees)
        grows = rows[~forest.ended(rows, self.max_steps)]
        at_root = forest.depth[grows] == 0
        waiting = forest.trees.outstanding[trees] > 0
        return Moves(
            expand=grows,
            count=np.where(at_root, self.n, 1).astype(np.int32),
            finish=np.setdiff1d(trees[~waiting], forest.tree[grows]),
        )
