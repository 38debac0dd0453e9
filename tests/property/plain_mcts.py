"""Monte Carlo tree search once more, for one tree and for a reader: nothing is kept, all is counted anew for every question."""

import math

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.policies.mcts import Mcts
from tests.property.forests import Tree
from tests.property.reference import PlainMoves, chain_score, has_ended
from tests.property.searched import Step, free_places, is_busy, kids


class PlainMcts:
    """One tree at one moment."""

    def __init__(self, tree: Tree, mcts: Mcts) -> None:
        self.tree, self.mcts = tree, mcts
        self.chosen: list[Step] = []

    def decide(self) -> PlainMoves:
        mcts, root = self.mcts, self.tree.root
        assert isinstance(root, Step)
        for _ in range(free_places(self.tree, mcts.iterations, mcts.parallel, mcts.branch)):
            if self.leads_on(root):
                self.chosen.append(self.select(root))
        finish = not self.chosen and not is_busy(self.tree)
        return PlainMoves(expand=[(node.row, mcts.branch) for node in self.chosen], finish=finish)

    def leads_on(self, node: Step) -> bool:
        """Whether something can be expanded at the node or below it, now."""
        if node.status == Status.OPEN:
            return not has_ended(node, self.mcts.max_steps) and node not in self.chosen
        return node.status == Status.EXPANDED and any(self.leads_on(kid) for kid in kids(self.tree, node))

    def select(self, node: Step) -> Step:
        while node.status != Status.OPEN:
            ways = [kid for kid in kids(self.tree, node) if self.leads_on(kid)]
            node = max(ways, key=lambda kid: (self.priority(kid), -kid.node_id))
        return node

    def priority(self, node: Step) -> float:
        parent = node.parent
        assert isinstance(parent, Step)
        siblings = [kid for kid in kids(self.tree, parent) if kid.status in (Status.OPEN, Status.EXPANDED)]
        # Summed as the policy sums, newest first, so that what ties there ties here.
        prior = likelihood(node) / sum(likelihood(sibling) for sibling in reversed(siblings))
        visits = self.visits(node)
        explored = self.mcts.exploration * prior * math.sqrt(self.visits(parent)) / (1 + visits)
        return self.value(node) / visits + explored

    def visits(self, node: Step) -> int:
        """Steps of the subtree: those that have landed are known one by one, others are as many as were asked for."""
        asked = node.asked + (node in self.chosen)
        own = 1 if node.parent and node.status != Status.SAMPLING else 0
        below = [self.visits(kid) for kid in kids(self.tree, node) if kid.status != Status.SAMPLING]
        return own + self.mcts.branch * asked + sum(visits - 1 for visits in below)

    def value(self, node: Step) -> float:
        score = float(np.float32(chain_score(node, self.mcts.aggregate)))
        own = 0.0 if math.isnan(score) or node.finish == Finish.ERROR or node.status == Status.SAMPLING else score
        return own + sum(self.value(kid) for kid in kids(self.tree, node))


def likelihood(node: Step) -> float:
    return float(np.exp(node.logprob / max(len(node.tokens), 1)))


def plain_mcts(tree: Tree, mcts: Mcts) -> PlainMoves:
    return PlainMcts(tree, mcts).decide()
