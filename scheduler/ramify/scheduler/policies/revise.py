"""Sequential revision, guided by step scores: write a draft, keep it up to its first wrong step, and write on from there.

StepCo (Wu et al. 2024, arXiv:2410.12934): verify the steps of a draft, keep those before the first one whose score
is below a threshold, have the rest written anew, and repeat until no step is wrong or the drafts are used up. Two things differ.
StepCo verifies a draft when it is complete; here a step is verified as it lands and a wrong one ends its draft at once: what
would have followed it is thrown away in either case. And StepCo's revision is prompted to correct; here it is sampled from the
kept prefix alone, as every chain of this system is.

Snell et al. 2024 (arXiv:2408.03314), section 6, revise too, but with a model that was finetuned to read its earlier answers and
to write a better one from the start. No verifier points at a step there; theirs chooses among the answers in the end. Such a
model is a generator whose steps are whole answers; it needs no policy of its own.

What becomes of drafts. One that has ended without a wrong step is accepted and ends the tree; it, with others that are accepted
at the same time, is what the answer is chosen from. A draft with a wrong step is given up, unless it has ended: then it is set
aside as a candidate, in case that none is accepted. The last drafts that are permitted are never given up, so that there are
candidates: nothing could take their place. One that is cut, by depth or context, is set aside like one that has ended, is never
accepted, and its place is filled by a draft from the start; so is the place of one that a fault has ended.
"""

from dataclasses import dataclass

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows, rank_in_segment
from ramify.scheduler.policies.base import Moves, Policy


@dataclass(frozen=True, slots=True)
class Revise(Policy):
    """See the module. The `visits` of a root count the drafts that its tree has begun."""

    iterations: int = 8  # drafts that are begun in one tree, at most, revisions among them
    parallel: int = 1  # drafts that are written at a time
    threshold: float = 0.5  # score below which a step is wrong; one without a score is
    max_steps: int = 32

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Accept, set aside, go on with or revise the drafts of trees whose newest steps are scored."""
        rows = forest.frontier(trees)
        rows = rows[forest.depth[rows] > 0]
        accepted = (forest.finish[rows] == Finish.END) & (forest.chain_scores(rows, "min") >= np.float32(self.threshold))
        done = np.unique(forest.tree[rows[accepted]])
        losers = np.setdiff1d(forest.candidates(done), rows[accepted])
        rows = rows[~np.isin(forest.tree[rows], done)]
        place, going_on = np.searchsorted(trees, forest.tree[rows]), ~np.isin(trees, done)

        # The worst steps are revised first, where not all of them can be.
        roots = forest.trees.root[trees]
        left = np.where(going_on, np.maximum(self.iterations - forest.visits[roots], 0), 0)
        wrong = ~(forest.score[rows] >= np.float32(self.threshold))
        badness = np.where(np.isnan(forest.score[rows]), np.inf, -forest.score[rows])
        badness[~wrong] = np.nan
        revised = wrong & (rank_in_segment(forest.tree[rows], badness, forest.node_id[rows]) < left[place])
        ended = forest.ended(rows, self.max_steps)
        grows = ~ended & ~revised

        begun = np.bincount(place[revised], minlength=len(trees))
        live = np.bincount(place[grows], minlength=len(trees)) + begun
        fresh = np.clip(self.parallel - live, 0, left - begun)
        # Two drafts may be revised from one prefix, and the prefix may be the root, where drafts begin. Longer drafts come first.
        every = np.concatenate((rows[grows], forest.parent[rows[revised]], np.repeat(roots, fresh)))
        expand, count = np.unique(every, return_counts=True)
        order = np.lexsort((forest.node_id[expand], -forest.depth[expand], forest.tree[expand]))
        marked = begun + fresh > 0
        return Moves(
            expand=expand[order],
            count=count[order].astype(np.int32),
            prune=np.concatenate((losers, rows[revised & ~ended])),
            retire=rows[ended],
            mark=roots[marked],
            visits=(forest.visits[roots] + begun + fresh)[marked].astype(np.int32),
            value=forest.value[roots[marked]],
            finish=np.setdiff1d(trees, forest.tree[expand]),
        )
