"""Adaptive branching: at every node from the root on, chance decides between a new child (wider) and an old one (deeper).

AB-MCTS-A, the variant with node aggregation, of Inoue et al. 2025 (arXiv:2503.04412), in the form that the authors' TreeQuest
gives it. A node holds beliefs about the score that each of its ways leads to, and goes the one whose belief gives the highest
sample (Thompson sampling):

* GEN, a new child, is judged by the scores of the node's children;
* CONT, any old one, by the scores of all that is further below;
* and where CONT wins, each child is judged by its own score and all those below it; then that child chooses in the same way.

A sample is one of the posterior of the mean score. With `belief=gaussian` the prior is normal-inverse-chi-squared with mean 0,
kappa 1, nu 1 and tau^2 0.1, so that the mean's posterior is Student's t. With `beta` it is Jeffreys' Beta(1/2, 1/2), to which a
score s adds (s, 1 - s). The walks of one decision see the same beliefs and are independent of each other.

A node is a step here, not a whole answer as in the paper. A step that could not be sampled or scored tells nothing. A chain that
has ended competes: its score counts and it stays a candidate, but nothing can go deeper there. One that was cut is no different.
A tree ends when `iterations` steps were sampled; before that there is always something to do.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.ids import U64, mix64
from ramify.scheduler.forest.segments import Rows, minus, order_in_segment, position_in_segment, segment_starts
from ramify.scheduler.policies.base import Moves, Policy
from ramify.scheduler.policies.draws import beta, branch_key, student_t
from ramify.scheduler.policies.iterations import free_places

KAPPA, NU, TAU2 = 1.0, 1.0, 0.1  # the gaussian prior, of mean 0
JEFFREYS = 0.5  # both parameters of the beta prior
GEN, CONT, CHILD = 0, 1, 2  # what a sample is for

Evidence = NDArray[np.float64]
"""`[3, R]` of some scores: how many they are, their sum and the sum of their squares."""


@dataclass(frozen=True, slots=True)
class AbMcts(Policy):
    """See the module."""

    whole: bool = field(default=True, init=False)

    iterations: int = 32  # steps that are sampled in one tree
    parallel: int = 4  # how many of them at a time
    belief: Literal["gaussian", "beta"] = "gaussian"  # what scores are thought to be; `beta` takes them for shares of success
    max_steps: int = 32
    aggregate: Aggregate = "last"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Let every free place of a tree walk from its root to the node that gets a child."""
        places = free_places(forest, trees, self.iterations, self.parallel, branch=1)
        tree = np.repeat(trees, places)
        root = forest.trees.root[tree]
        key = mix64(forest.node_id[root], forest.trees.turn[tree].astype(np.uint64))
        rows = self._walk(forest, root, mix64(key, position_in_segment(tree).astype(np.uint64)), self._evidence(forest, trees))
        expand, first, count = np.unique(rows, return_index=True, return_counts=True)
        order = np.argsort(first)  # walks are grouped by tree
        idle = minus(trees, tree)
        return Moves(
            expand=expand[order],
            count=count[order].astype(np.int32),
            finish=idle[forest.trees.outstanding[idle] == 0],
        )

    def _evidence(self, forest: Forest, trees: Rows) -> tuple[Evidence, Evidence, Evidence]:
        """`[3, N]` each, by row: the scores of a node's children, those of all below them, and those of its whole subtree."""
        rows = forest.landed(trees)
        score = forest.chain_scores(rows, self.aggregate).astype(np.float64)
        known = ~np.isnan(score) & (forest.finish[rows] != Finish.ERROR)
        score = np.where(known, np.clip(score, 0, 1) if self.belief == "beta" else score, 0)
        own, children, below, subtree = (np.zeros((3, forest.size)) for _ in range(4))
        own[:, rows] = subtree[:, rows] = known, score, score**2
        depth = forest.depth[rows]
        for level in range(int(depth.max(initial=0)), 0, -1):
            at, above = rows[depth == level], forest.parent[rows[depth == level]]
            for each in range(3):
                np.add.at(children[each], above, own[each, at])
                np.add.at(below[each], above, subtree[each, at] - own[each, at])
                np.add.at(subtree[each], above, subtree[each, at])
        return children, below, subtree

    def _walk(self, forest: Forest, at: Rows, key: U64, evidence: tuple[Evidence, Evidence, Evidence]) -> Rows:
        """`[W]` the node that gets a child, for each of the walks `[W]` that begin at `at` and draw by `key`."""
        children, below, subtree = evidence
        at, walks = at.copy(), np.arange(len(at))
        while len(walks):
            here = at[walks]
            child, walk = forest.children(here)
            can = (forest.status[child] == Status.OPEN) | (forest.status[child] == Status.EXPANDED)
            can &= ~forest.ended(child, self.max_steps)
            node_key = mix64(key[walks], forest.node_id[here])
            wider = self._sample(branch_key(node_key, GEN), children[:, here])
            deeper = self._sample(branch_key(node_key, CONT), below[:, here]) > wider
            can &= deeper[walk]
            child, walk = child[can], walk[can]
            sample = self._sample(branch_key(mix64(key[walks[walk]], forest.node_id[child]), CHILD), subtree[:, child])
            order = order_in_segment(walk.astype(np.int32), sample.astype(np.float32), forest.node_id[child])
            best = order[segment_starts(walk.astype(np.int32))]
            walks = walks[walk[best]]
            at[walks] = child[best]
        return at

    def _sample(self, key: U64, evidence: Evidence) -> NDArray[np.float64]:
        """`[R]` samples of the posterior of a mean, given the evidence `[3, R]`."""
        count, total, squares = evidence
        if self.belief == "beta":
            return beta(key, JEFFREYS + total, JEFFREYS + count - total)
        kappa, nu = KAPPA + count, NU + count
        tau2 = (NU * TAU2 + squares - total**2 / kappa) / nu  # total**2 / kappa**2 is the mean's square
        sample: NDArray[np.float64] = total / kappa + np.sqrt(tau2 / kappa) * student_t(key, nu)
        return sample
