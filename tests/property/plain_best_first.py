"""Best-first search once more, for one tree and for a reader."""

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.policies.best_first import BestFirst
from tests.property.forests import Tree
from tests.property.reference import PlainMoves, best_first, chain_score, has_ended, words
from tests.property.searched import free_places, is_busy


def plain_best_first(tree: Tree, policy: BestFirst) -> PlainMoves:
    moves, said = PlainMoves(), set[tuple[str, ...]]()
    queue = best_first([node for node in tree.nodes if node.status == Status.OPEN], policy.aggregate)
    places = free_places(tree, policy.iterations, policy.parallel, policy.branch)
    goal_seen = False
    for node in queue:
        head, score = (np.float32(chain_score(one, policy.aggregate)) for one in (queue[0], node))
        copy = policy.duplicates == "drop" and words(node) in said
        said.add(words(node))
        if copy or score < np.float32(policy.threshold) * head:
            moves.prune.add(node.row)
        elif node.finish == Finish.END:
            goal_seen = True
        elif not has_ended(node, policy.max_steps) and not goal_seen and len(moves.expand) < places:
            moves.expand.append((node.row, policy.branch))
    moves.finish = not moves.expand and not is_busy(tree)
    return moves
