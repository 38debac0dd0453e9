"""Self-consistency: sample chains independently, and let their answers vote; stop when the vote is clear.

Wang et al. 2022 (arXiv:2203.11171), section 2, is `stop=never`. With `stop=beta` it is Adaptive-Consistency (Aggarwal et al.
2023, arXiv:2305.11860, section 3) with the stopping rule that its authors recommend: of the answers only the two with most votes
are looked at. A chain has one vote here, whatever its score: a weighted vote chooses the answer, but doesn't decide when to stop.

Who votes: chains that their generator has ended. One that was cut, by depth or context, has no vote and is no chain of the
`margin`, even where the general knob `cut` makes it an answer in the end; a chain that ends without an answer is one of the
`margin`'s chains, but votes for nothing. A chain that is cut, or lost by a fault, is not sampled again.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_GROUP
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Mask, Rows, position_in_segment
from ramify.scheduler.policies.base import Moves, Policy


@dataclass(frozen=True, slots=True)
class SelfConsistency(Policy):
    """See the module. Every chain grows one step at a time until it ends; only then is it scored."""

    scores: Literal["step", "end"] = field(default="end", init=False)
    votes: bool = field(default=True, init=False)

    n: int = 16  # chains per tree, at most
    parallel: int = 4  # chains that are grown at a time
    # When sampling stops before `n`. `beta`: when it is likely that more of the generator's chains give the leading answer than
    # give the next. `margin`: when the leading answer leads the next by a share of the chains so far, and more than one chain
    # gives it. Both: also when the chains that are still to end can't let another answer catch up.
    stop: Literal["never", "beta", "margin"] = "beta"
    confidence: float = 0.95  # of `beta`: that likely
    margin: float = 0.5  # of `margin`: this share
    max_steps: int = 32
    # `level`: `parallel` chains are a round; all must have ended before the rule is asked and the next round begins. `none`: the
    # rule is asked whenever a step lands, and a chain that has ended makes room for the next.
    barrier: Literal["level", "none"] = "level"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Continue live chains, or stop, or begin new ones."""
        rows = forest.frontier(trees)
        rows = rows[forest.depth[rows] > 0]
        grows = rows[~forest.ended(rows, self.max_steps)]
        live = np.bincount(np.searchsorted(trees, forest.tree[grows]), minlength=len(trees)) + forest.trees.outstanding[trees]
        roots = forest.trees.root[trees]
        unborn = self.n - forest.child_count[roots]

        asked = live == 0 if self.barrier == "level" else np.ones(len(trees), np.bool_)
        stops = asked & self._clear(forest, trees, rows[forest.finish[rows] == Finish.END], live + unborn)
        begins = np.where(asked & ~stops, np.minimum(self.parallel - live, unborn), 0)
        grows = grows[~stops[np.searchsorted(trees, forest.tree[grows])]]
        expand = np.concatenate((grows, roots[begins > 0]))
        count = np.concatenate((np.ones(len(grows), np.int64), begins[begins > 0]))
        order = np.lexsort((forest.depth[expand] == 0, forest.tree[expand]))  # what is begun comes first
        return Moves(
            expand=expand[order].astype(np.int32),
            count=count[order].astype(np.int32),
            finish=trees[stops | ((live == 0) & (begins <= 0))],
        )

    def _clear(self, forest: Forest, trees: Rows, ended: Rows, remain: NDArray[np.int64]) -> Mask:
        """`[T]` whether the vote is clear.

        Args:
            forest: read only.
            trees: `[T]`, sorted.
            ended: `[E]` chains that have ended, grouped by tree.
            remain: `[T]` chains that may still vote.
        """
        if self.stop == "never":
            return np.zeros(len(trees), np.bool_)
        place = np.searchsorted(trees, forest.tree[ended])
        chains = np.bincount(place, minlength=len(trees))
        first, second = leaders(len(trees), place, forest.group[ended])
        settled = first - second > remain
        if self.stop == "margin":
            return settled | ((first > 1) & (first - second >= np.float64(self.margin) * chains))
        return settled | (first >= votes_needed(self.n, self.confidence)[second])


def leaders(trees: int, place: NDArray[np.int64], group: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`[T]` votes for the leading answer of each of `trees` T trees, and `[T]` for the next; 0 where there is none.

    Args:
        trees: T.
        place: `[E]` which of the trees each chain belongs to.
        group: `[E]` its answer.
    """
    name = (place[group != NO_GROUP] << 32) | group[group != NO_GROUP]
    name, votes = np.unique(name, return_counts=True)
    order = np.lexsort((-votes, name >> 32))
    tree, votes = (name >> 32)[order], votes[order]
    rank = position_in_segment(tree.astype(np.int32))
    first, second = np.zeros(trees, np.int64), np.zeros(trees, np.int64)
    first[tree[rank == 0]], second[tree[rank == 1]] = votes[rank == 0], votes[rank == 1]
    return first, second


@lru_cache(maxsize=64)
def votes_needed(n: int, confidence: float) -> NDArray[np.int64]:
    """`[n + 1]` the fewest votes that make an answer lead an answer of 0, 1, ... n votes with `confidence`; above n: none does.

    With v1 and v2 votes and a uniform prior, P(p1 > p2) = 1 - I_1/2(v1 + 1, v2 + 1), and the incomplete beta function of whole
    numbers is a tail of the binomial distribution: the sum of C(N, k) / 2**N over k <= v2, where N = v1 + v2 + 1. It is summed in
    whole numbers, for a float's last bit would decide where P is exactly `confidence`, and it isn't the same on every machine.
    """
    doubt, needed = 1 - Fraction(confidence), np.full(n + 1, n + 1, np.int64)
    v1 = v2 = 0
    trials, last, tail = 1, 1, 1  # N, C(N, v2), and the sum of C(N, k) over k <= v2
    while v1 + v2 <= n:
        if tail * doubt.denominator <= doubt.numerator << trials:
            needed[v2] = v1
            # One more vote for the second: its term joins the sum, and then, by Pascal's rule, a sum of row N becomes one of row
            # N + 1 when it is doubled and its last term is taken off.
            v2 += 1
            last = last * (trials - v2 + 1) // v2
            tail += last
        else:
            v1 += 1
        tail = 2 * tail - last
        trials += 1
        last = last * trials // (trials - v2)
    return needed
