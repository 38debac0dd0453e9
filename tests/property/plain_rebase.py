"""REBASE for one tree and for a reader."""

import math

import numpy as np

from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.policies.rebase import Rebase
from tests.property.forests import Node, Tree
from tests.property.growth import Wanted, open_nodes
from tests.property.reference import best_first, chain_score, has_ended


def weights(scores: list[float], balance: float) -> list[float]:
    """Of the softmax; a chain without a score counts only where no chain has one."""
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        return [1.0] * len(scores)
    return [0.0 if math.isnan(score) else math.exp((score - max(known)) / balance) for score in scores]


def plain_shares(width: int, weights: list[float]) -> list[int]:
    """Each in turn gets its part of what is left, rounded up; the weights fall."""
    counts = list[int]()
    for at, weight in enumerate(weights):
        rest = math.fsum(weights[at:])
        # Three of nine are three, not four, however the machine rounds a third.
        count = math.ceil((width - sum(counts)) * weight / rest - 1e-9) if weight else 0
        counts.append(count)
    return counts


def plain_rebase(tree: Tree, forest: Forest, rebase: Rebase) -> Wanted:
    wanted = Wanted()
    live: list[Node] = []
    for node in best_first(open_nodes(tree), rebase.aggregate):
        if has_ended(node, rebase.max_steps):
            wanted.retire.add(node.row)
        else:
            live.append(node)
    before = sum(node.status == Status.RETIRED for node in tree.nodes)
    width = max(0, rebase.n - before - len(wanted.retire))
    scores = [float(np.float32(chain_score(node, rebase.aggregate))) for node in live]
    for node, count in zip(live, plain_shares(width, weights(scores, rebase.balance)), strict=True):
        if count:
            wanted.expand.append((node.row, count))
        else:
            wanted.prune.add(node.row)
    wanted.finish = not wanted.expand
    return wanted
