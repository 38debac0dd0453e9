"""Lookahead search for one tree and for a reader."""

import math

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.policies.lookahead import Lookahead
from tests.property.forests import Node, Tree
from tests.property.growth import Wanted, open_nodes, place_among_siblings
from tests.property.reference import chain_score, has_ended, words


def rollout(tree: Tree, tip: Node) -> list[Node]:
    """The candidate, and the probes below it down to `tip`."""
    found = [tip]
    while found[0].depth > 1 and place_among_siblings(tree, found[0]) == 0:
        assert found[0].parent
        found.insert(0, found[0].parent)
    return found


def plain_lookahead(tree: Tree, forest: Forest, policy: Lookahead) -> Wanted:
    wanted = Wanted()

    def place(nodes: list[Node]) -> tuple[bool, float, int]:
        score = float(np.float32(chain_score(nodes[-1], policy.aggregate)))
        return (math.isnan(score), 0.0 if math.isnan(score) else -score, nodes[0].node_id)

    rollouts = sorted((rollout(tree, tip) for tip in open_nodes(tree)), key=place)
    for candidate, *probes in rollouts:
        tip = [candidate, *probes][-1]
        if candidate.parent and not has_ended(tip, policy.max_steps) and len(probes) < policy.lookahead:
            wanted.expand.append((tip.row, 1))
            wanted.greedy.add(tip.row)
    if wanted.expand:
        return wanted

    said, places = set[tuple[str, ...]](), policy.keep
    for candidate, *probes in rollouts:
        copy = policy.duplicates == "drop" and words(candidate) in said
        said.add(words(candidate))
        if copy or places == 0:
            wanted.prune |= {node.row for node in (candidate, *probes)}
            continue
        places -= 1
        if not candidate.parent:
            wanted.expand.append((candidate.row, policy.n))
        elif probes or not has_ended(candidate, policy.max_steps):
            wanted.expand.append((candidate.row, policy.branch))
        if probes and probes[-1].finish == Finish.END:
            wanted.retire.add(probes[-1].row)
        else:
            wanted.prune |= {node.row for node in probes}
    wanted.finish = not wanted.expand
    return wanted
