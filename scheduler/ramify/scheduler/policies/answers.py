"""Collapse: how a tree's ended chains become one answer.

Ties go to the chain with the higher score, then to the lower node id.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import NO_GROUP
from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import Rows, order_in_segment, rank_in_segment, segment_starts
from ramify.scheduler.policies.compare import CompareRule, groups, same_by
from ramify.scheduler.policies.extract import Extract

AnswerRule = Literal["best", "vote", "weighted_vote"]
CutRule = Literal["discard", "answer"]

IN_CORE: dict[str, CompareRule] = {rule: rule for rule in get_args(CompareRule)}
"""Ways to compare answers that need nothing but the texts; others are the shell's."""


def answering(forest: Forest, trees: Rows, cut: CutRule, max_steps: int) -> Rows:
    """`[C]` nodes that end an answer of `trees` `[T]` (sorted), grouped by tree.

    A chain that its generator has ended is an answer. One that was cut, by its depth or the model's context, is one only where
    `cut` says `answer`.
    """
    rows = forest.candidates(trees)
    ended = forest.finish[rows] == Finish.END if cut == "discard" else forest.ended(rows, max_steps)
    return rows[ended]


def answer_texts(forest: Forest, rows: Rows, extract: Extract) -> list[str]:
    """What each of the chains that end in `rows` `[C]` answers; empty: no answer is found in it."""
    return [extract("".join(steps)) for steps in forest.step_texts(rows)]


def group_answers(answers: list[str], rule: CompareRule, tolerance: float) -> list[int]:
    """One tree's answers as numbers of groups, see `compare.groups`."""
    return groups(answers, same_by(rule, tolerance))


def choose(forest: Forest, rows: Rows, rule: AnswerRule, aggregate: Aggregate) -> tuple[Rows, NDArray[np.float32]]:
    """Choose the chain that answers, for each tree that has one.

    Args:
        forest: read only.
        rows: `[C]` of `answering`.
        rule: `best`: the highest score. `vote` (Wang et al. 2022, arXiv:2203.11171): the answer that most chains share, and the
            highest score among them. `weighted_vote` (Li et al. 2022, arXiv:2206.02336): by the sum of the scores, of which one
            that is missing counts as 0. A chain without an answer has no vote, and wins only where there is no other.
        aggregate: step scores to chain score.

    Returns:
        `[A]` nodes that end the answers, one for each tree that has one, trees ascending, and their scores.
    """
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
    """`[C]` sum of the weights `[C]` of all of a tree's chains with the same answer; -1 for a chain without one."""
    names = (forest.tree[rows].astype(np.int64) << 32) | (forest.group[rows].astype(np.int64) & 0xFFFFFFFF)
    _, group = np.unique(names, return_inverse=True)
    votes = np.bincount(group, weights=np.nan_to_num(weight))[group].astype(np.float32)
    return np.where(forest.group[rows] == NO_GROUP, np.float32(-1), votes)
