"""Best-first tree search with backtracking: what looks best is expanded, wherever in the tree it is.

Koh et al. 2024 (arXiv:2407.01476), "Search Algorithm": all nodes that are not expanded yet stand in one queue, by the score of
the chain that they end; the best one is taken out and expanded with `branch` children, which join the queue. So the search goes
back by itself where an elder, or a sibling of an elder, looks better (MindStar, arXiv:2405.16265, does so over steps of an LLM
with a process reward model). It stops after `iterations` expansions, or when the best of all is a chain that its generator has
ended, as A* does when a goal comes to the head of its queue; Koh et al. stop at a fixed score instead. A `parallel` above 1 takes
the best few at once (k-best-first search, Felner et al. 2003).

A chain that has ended competes: it stays in the queue, and what stands behind it waits, for the search stops before its turn
unless something better comes in between. A chain that was cut, by depth or context, stays a candidate but nobody waits for it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import (
    Rows,
    count_before,
    first_of_group,
    minus,
    order_in_segment,
    segment_lengths,
    segment_starts,
)
from ramify.scheduler.policies.base import Moves, Policy
from ramify.scheduler.policies.iterations import free_places


@dataclass(frozen=True, slots=True)
class BestFirst(Policy):
    """See the module. A chain without a score stands last; ties go to the lower node id."""

    iterations: int = 16  # most nodes that are expanded in one tree
    parallel: int = 1  # expansions in flight at a time: never more than `parallel * branch` steps
    branch: int = 4  # children of a node that is expanded
    threshold: float = 0.0  # share of the best score in the queue below which a chain is given up
    max_steps: int = 32
    aggregate: Aggregate = "last"
    duplicates: Literal["drop", "keep"] = "drop"  # `drop`: of chains in the queue that say the same, only one stays
    barrier: Literal["level", "none"] = "level"  # `none`: an expansion may start as soon as `branch` steps have landed

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Take the best chains out of each tree's queue."""
        rows = forest.frontier(trees)  # [F]
        score = forest.chain_scores(rows, self.aggregate)
        order = order_in_segment(forest.tree[rows], score, forest.node_id[rows])
        rows, score = rows[order], score[order]  # best first within each tree
        tree = forest.tree[rows]
        stays = first_of_group(tree, forest.text_hash[rows]) | (self.duplicates == "keep")
        best = np.repeat(score[segment_starts(tree)], segment_lengths(tree))
        stays &= ~(score < np.float32(self.threshold) * best)

        done = stays & (forest.finish[rows] == Finish.END)
        open_ = stays & ~forest.ended(rows, self.max_steps) & (count_before(done, tree) == 0)
        places = free_places(forest, tree, self.iterations, self.parallel, self.branch)
        grows = rows[open_ & (count_before(open_, tree) < places)]
        idle = minus(trees, forest.tree[grows])
        return Moves(
            expand=grows,
            count=np.full(len(grows), self.branch, np.int32),
            prune=rows[~stays],
            finish=idle[forest.trees.outstanding[idle] == 0],
        )
