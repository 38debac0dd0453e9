"""Particle filtering: chains are drawn anew in proportion to their scores, by chance and not by rank.

Puri et al. 2025 (arXiv:2502.01618), Algorithm 1: `n` particles take one step each; then `n` are drawn from them with replacement,
each with a chance in proportion to its weight; repeat until all have ended.

A particle's weight is, as in the authors' code, `odds**(1 / balance)`, where the odds `score / (1 - score)` are those of its
chain as it stands (section 4.2). Algorithm 1 draws after every step: `ess` of 1. Below that, particles are drawn only when few of
them carry the weight: when the effective sample size `(sum w)**2 / sum w**2` (Kong et al. 1994) is below `ess * n`. Else each
takes one step, by which its weight changes by the ratio of the odds. A draw does not divide by the weights that it has drawn by:
the next one is again by the full odds, as in Algorithm 1, whatever `ess` is.

A particle that has ended, or was cut, takes no step more, but stays: it is weighed and drawn like the others, and holds as many
places as it was drawn for (`visits`). The tree ends when ended particles hold all places. A particle whose step failed is missing
until the next draw, which is of `n` again. A particle that was not drawn is given up, even if it had ended.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.ids import mix64, uniforms
from ramify.scheduler.forest.segments import (
    Mask,
    Rows,
    minus,
    order_in_segment,
    points_in_segment,
    segment_lengths,
    segment_starts,
    softmax_in_segment,
    sums_in_segment,
)
from ramify.scheduler.policies.base import Moves, Policy

SALT = 0xD4A3  # tells draws from all else that is hashed from ids
SURE = 1e-7  # scores nearer to 0 or 1 than this count as this near
_ROUNDING = 1e-9  # an effective sample size this little below the bound is not below it


@dataclass(frozen=True, slots=True)
class Particle(Policy):
    """See the module."""

    n: int = 16  # particles
    # How many times a particle is drawn. `systematic` (Kitagawa 1996): `n` times its share of the weights, up or down to a whole
    # number. `multinomial`: each of the `n` draws is independent, as in Algorithm 1; more is left to chance.
    resample: Literal["systematic", "multinomial"] = "systematic"
    ess: float = 0.5  # share of `n` below which the effective sample size calls for a draw; 1: always, 0: never
    balance: float = 1.0  # temperature of the softmax; the lower, the more goes to the best
    max_steps: int = 32
    aggregate: Aggregate = "last"

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next level of trees whose frontier is scored."""
        rows = forest.frontier(trees)  # [F]
        score = forest.chain_scores(rows, self.aggregate)
        order = order_in_segment(forest.tree[rows], score, forest.node_id[rows])
        rows, score = rows[order], score[order]  # best first within each tree
        tree, ended = forest.tree[rows], forest.ended(rows, self.max_steps)
        held = np.maximum(forest.visits[rows], 1)  # only what has ended can hold more than one place
        weight = softmax_in_segment(logit(score), self.balance, tree)
        anew = self._anew(forest, rows, weight, held)
        places = held.copy()
        places[anew] = self._draw(forest, tree[anew], (held * weight)[anew])
        grows, stays = (places > 0) & ~ended, (places > 0) & ended
        return Moves(
            expand=rows[grows],
            count=places[grows],
            prune=rows[places == 0],
            mark=rows[stays],
            visits=places[stays],
            value=np.zeros(int(stays.sum())),
            finish=minus(trees, tree[grows]),
        )

    def _anew(self, forest: Forest, rows: Rows, weight: NDArray[np.float64], held: Rows) -> Mask:
        """`[F]` whether the tree's particles are drawn anew."""
        tree = forest.tree[rows]
        lengths = segment_lengths(tree)
        last = np.cumsum(lengths) - 1
        total, squares = sums_in_segment(held * weight, tree)[last], sums_in_segment(held * weight**2, tree)[last]
        anew = (total**2 / squares < self.ess * self.n - _ROUNDING) | (self.ess == 1) | (forest.depth[rows[last]] == 0)
        return np.repeat(anew, lengths)

    def _draw(self, forest: Forest, tree: Rows, weight: NDArray[np.float64]) -> Rows:
        """`[F]` how many of the `n` draws of each tree fall on each entry, in proportion to the weights `[F]`."""
        trees, upper = tree[segment_starts(tree)], sums_in_segment(weight, tree)
        total = upper[np.cumsum(segment_lengths(tree)) - 1, None]
        key = mix64(forest.node_id[forest.trees.root[trees]], forest.trees.turn[trees].astype(np.uint64))[:, None]
        index = np.arange(self.n, dtype=np.uint64)[None, :]
        if self.resample == "multinomial":
            points = uniforms(mix64(key, index).ravel(), SALT).reshape(-1, self.n)
        else:
            points = (index + uniforms(key.ravel(), SALT)[:, None]) / self.n
        # A point just below 1 must not be rounded up to the end of the last interval.
        return points_in_segment(np.minimum(points * total, np.nextafter(total, 0.0)), upper, tree)


def logit(score: NDArray[np.float32]) -> NDArray[np.float64]:
    """`[F]` log odds of the scores `[F]`, which are taken as probabilities; NaN stays NaN."""
    chance = np.clip(score.astype(np.float64), SURE, 1 - SURE)
    return np.log(chance / (1 - chance))
