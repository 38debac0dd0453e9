"""Adaptive branching once more, for one tree and for a reader: beliefs are made anew from lists of scores."""

import math

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.ids import mix64_int
from ramify.scheduler.policies.ab_mcts import CHILD, CONT, GEN, AbMcts
from ramify.scheduler.policies.draws import beta, student_t
from tests.property.forests import Tree
from tests.property.reference import PlainMoves, chain_score, has_ended
from tests.property.searched import Step, free_places, is_busy, kids


def plain_ab_mcts(tree: Tree, policy: AbMcts, turn: int) -> PlainMoves:
    """`turn`: decisions that were taken about the tree before this one."""
    root = tree.root
    assert isinstance(root, Step)
    counts: dict[int, int] = {}
    for place in range(free_places(tree, policy.iterations, policy.parallel, 1)):
        row = walk(tree, policy, root, mix64_int(mix64_int(root.node_id, turn), place)).row
        counts[row] = counts.get(row, 0) + 1
    return PlainMoves(expand=list(counts.items()), finish=not counts and not is_busy(tree))


def walk(tree: Tree, policy: AbMcts, node: Step, key: int) -> Step:
    """The node that gets a child."""
    while True:
        ways = [kid for kid in kids(tree, node) if leads_on(kid, policy)]
        own_key = mix64_int(key, node.node_id)
        wider = sample(policy, mix64_int(own_key, GEN), children_scores(tree, policy, node))
        deeper = sample(policy, mix64_int(own_key, CONT), lower_scores(tree, policy, node))
        if not ways or wider >= deeper:
            return node
        draws = {
            way: sample(policy, mix64_int(mix64_int(key, way.node_id), CHILD), subtree_scores(tree, policy, way)) for way in ways
        }
        node = max(ways, key=lambda way: draws[way])


def leads_on(node: Step, policy: AbMcts) -> bool:
    return node.status in (Status.OPEN, Status.EXPANDED) and not has_ended(node, policy.max_steps)


def own_scores(node: Step, policy: AbMcts) -> list[float]:
    """Its score, if it has one."""
    score = float(np.float32(chain_score(node, policy.aggregate)))
    return [] if math.isnan(score) or node.finish == Finish.ERROR else [score]


def subtree_scores(tree: Tree, policy: AbMcts, node: Step) -> list[float]:
    return own_scores(node, policy) + [each for kid in kids(tree, node) for each in subtree_scores(tree, policy, kid)]


def children_scores(tree: Tree, policy: AbMcts, node: Step) -> list[float]:
    return [each for kid in kids(tree, node) for each in own_scores(kid, policy)]


def lower_scores(tree: Tree, policy: AbMcts, node: Step) -> list[float]:
    below = [grandkid for kid in kids(tree, node) for grandkid in kids(tree, kid)]
    return [each for grandkid in below for each in subtree_scores(tree, policy, grandkid)]


def sample(policy: AbMcts, key: int, scores: list[float]) -> float:
    """One of the posterior of the mean of what the scores come from."""
    keys, n = np.array([key], np.uint64), len(scores)
    if policy.belief == "beta":
        return float(beta(keys, real(0.5 + sum(scores)), real(0.5 + sum(1 - score for score in scores)))[0])
    # Murphy, "Probabilistic Machine Learning: Advanced Topics", section 3.4.3.3, with the prior's mean 0, kappa 1, nu 1.
    mean = sum(scores) / n if n else 0.0
    spread = sum((score - mean) ** 2 for score in scores)
    tau2 = (0.1 + spread + n * mean**2 / (1 + n)) / (1 + n)
    return float(n * mean / (1 + n) + math.sqrt(tau2 / (1 + n)) * student_t(keys, real(1 + n))[0])


def real(value: float) -> NDArray[np.float64]:
    return np.array([value], np.float64)
