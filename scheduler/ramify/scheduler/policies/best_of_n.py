"""Best-of-n: sample n chains independently, keep the best by its score.

Cobbe et al. 2021 (arXiv:2110.14168), section 4.2, with a process reward model in the verifier's place. The chains do not
wait for each other.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows, minus
from ramify.scheduler.policies.base import Moves, Policy


@dataclass(frozen=True, slots=True)
class BestOfN(Policy):
    """See the module. Every chain grows one step at a time until it ends; only then is it scored."""

    barrier: Literal["level", "none"] = field(default="none", init=False)
    scores: Literal["step", "end"] = field(default="end", init=False)

    n: int = 16  # chains per tree
    max_steps: int = 32

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Continue every open chain; a tree is finished when all of its chains have ended."""
        rows = forest.frontier(trees)
        grows = rows[~forest.ended(rows, self.max_steps)]
        tree, at_root = forest.tree[grows], forest.depth[grows] == 0
        outstanding = forest.trees.outstanding
        return Moves(
            expand=grows,
            count=np.where(at_root, self.n, 1).astype(np.int32),
            finish=minus(trees[outstanding[trees] == 0], tree[outstanding[tree] == 0]),
        )
