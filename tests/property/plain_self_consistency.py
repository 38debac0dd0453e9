"""Self-consistency for one tree, as a reader would write it."""

from collections import Counter
from fractions import Fraction
from math import comb

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status
from ramify.scheduler.policies.self_consistency import SelfConsistency
from tests.property.forests import Tree
from tests.property.reference import PlainMoves, has_ended, last_line


def chance_that_first_leads(first: int, second: int) -> Fraction:
    """P(p1 > p2), where p1 is distributed as Beta(first + 1, second + 1) and p2 is 1 - p1."""
    trials = first + second + 1
    return 1 - Fraction(sum(comb(trials, k) for k in range(second + 1)), 2**trials)


def is_clear(policy: SelfConsistency, votes: list[str], remain: int) -> bool:
    """Whether sampling stops; `votes` holds the answer of each chain that has ended by itself, empty for none."""
    if policy.stop == "never":
        return False
    counts = [count for _, count in Counter(vote for vote in votes if vote).most_common(2)]
    first, second = [*counts, 0, 0][:2]
    if first - second > remain:
        return True
    if policy.stop == "margin":
        return first > 1 and first - second >= policy.margin * len(votes)
    return chance_that_first_leads(first, second) >= Fraction(policy.confidence)


def plain_self_consistency(tree: Tree, policy: SelfConsistency) -> PlainMoves:
    moves = PlainMoves()
    in_flight = sum(node.status in (Status.SAMPLING, Status.SCORING) for node in tree.nodes)
    chains = [node for node in tree.nodes if node.parent and node.status == Status.OPEN]
    growing = [node for node in chains if not has_ended(node, policy.max_steps)]
    live, unborn = len(growing) + in_flight, policy.n - tree.root.children
    votes = [last_line(node) for node in chains if node.finish == Finish.END]
    if policy.barrier == "none" or live == 0:
        if is_clear(policy, votes, live + unborn):
            return PlainMoves(finish=True)
        begins = min(policy.parallel - live, unborn)
    else:
        begins = 0
    moves.expand = [(node.row, 1) for node in growing]
    if begins > 0:
        moves.expand.append((tree.root.row, begins))
    moves.finish = not moves.expand and not in_flight
    return moves
