"""Revision for one tree, as a reader would write it."""

import math
from collections import Counter

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.policies.revise import Revise
from tests.property.forests import Node, Tree
from tests.property.reference import PlainMoves, has_ended


def drafts_begun(tree: Tree) -> int:
    """Every draft ends in a leaf of its own, whatever became of it."""
    return sum(node.children == 0 for node in tree.nodes if node.parent)


def is_wrong(step: Node, policy: Revise) -> bool:
    return math.isnan(step.score) or step.score < policy.threshold


def plain_revise(tree: Tree, policy: Revise) -> PlainMoves:
    drafts = [node for node in tree.nodes if node.parent and node.status == Status.OPEN]
    set_aside = [node for node in tree.nodes if node.status == Status.RETIRED]
    accepted = [
        draft for draft in drafts if draft.finish == Finish.END and not any(is_wrong(step, policy) for step in draft.chain())
    ]
    if accepted:
        return PlainMoves(prune={node.row for node in (*drafts, *set_aside) if node not in accepted}, finish=True)

    moves, expand = PlainMoves(), Counter[Node]()
    left = policy.iterations - drafts_begun(tree)
    worst_first = sorted(drafts, key=lambda draft: (not math.isnan(draft.score), draft.score, draft.node_id))
    live = 0
    for draft in worst_first:
        ended = has_ended(draft, policy.max_steps)
        if ended:
            moves.retire.add(draft.row)
        if is_wrong(draft, policy) and left > 0:
            assert draft.parent is not None
            expand[draft.parent] += 1
            left -= 1
            live += 1
            if not ended:
                moves.prune.add(draft.row)
        elif not ended:
            expand[draft] += 1
            live += 1
    while live < policy.parallel and left > 0:
        expand[tree.root] += 1
        left -= 1
        live += 1
    longest_first = sorted(expand, key=lambda node: (-node.depth, node.node_id))
    moves.expand = [(node.row, expand[node]) for node in longest_first]
    moves.finish = not expand
    return moves
