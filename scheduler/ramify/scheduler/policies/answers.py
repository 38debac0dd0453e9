"""Collapse: how a tree's ended chains become one answer.

Only a chain that its generator has ended is an answer; one that was cut (depth, context) is none. Ties go to the chain with the
higher score, then to the lower node id.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.ids import hash_ranges
from ramify.scheduler.forest.segments import Rows, order_in_segment, rank_in_segment, segment_starts

AnswerRule = Literal["best", "vote", "weighted_vote"]


def choose(forest: Forest, trees: Rows, rule: AnswerRule, aggregate: Aggregate) -> tuple[Rows, NDArray[np.float32]]:
    """Choose the chain that answers, for each tree that has one.

    Args:
        forest: read only.
        trees: `[T]` sorted.
        rule: `best`: the highest score. `vote` (Wang et al. 2022, arXiv:2203.11171): the final step that most chains share,
            and the highest score among them. `weighted_vote` (Li et al. 2022, arXiv:2206.02336): by the sum of the scores.
        aggregate: step scores to chain score.

    Returns:
        `[A]` nodes that end the answers, one for each tree that has one, trees ascending, and their scores.
    """
    rows = forest.candidates(trees)
    rows = rows[forest.finish[rows] == Finish.END]
    score = forest.chain_scores(rows, aggregate)
    order = order_in_segment(forest.tree[rows], score, forest.node_id[rows])
    rows, score = rows[order], score[order]
    if rule != "best":
        votes = _votes(forest, rows, score if rule == "weighted_vote" else np.ones(len(rows), np.float32))
        # Rows are best first, so the place in that order is the tie-break of equal votes.
        rank = rank_in_segment(forest.tree[rows], votes, np.arange(len(rows), dtype=np.uint64))
        order = np.lexsort((rank, forest.tree[rows]))
        rows, score = rows[order], score[order]
    first = segment_starts(forest.tree[rows])
    return rows[first], score[first]


def _votes(forest: Forest, rows: Rows, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[C]` sum of the weights `[C]` of all of a tree's chains with the same final step; a chain without a score weighs 0."""
    text = forest.text.take(forest.text_start[rows], forest.text_count[rows])
    said = hash_ranges(text, forest.text_count[rows])
    names = np.stack((forest.tree[rows].astype(np.uint64), said))
    _, group = np.unique(names, axis=1, return_inverse=True)
    return np.bincount(group, weights=np.nan_to_num(weight))[group].astype(np.float32)
