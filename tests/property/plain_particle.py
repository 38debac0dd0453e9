"""Particle filtering for one tree and for a reader: every particle is written down, as often as it is there."""

import math

import numpy as np

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.ids import mix64_int, uniforms
from ramify.scheduler.policies.particle import SALT, Particle
from tests.property.forests import Node, Tree
from tests.property.growth import Wanted, open_nodes
from tests.property.reference import best_first, chain_score, has_ended


def plain_particle(tree: Tree, forest: Forest, policy: Particle) -> Wanted:
    wanted = Wanted()
    chains = best_first(open_nodes(tree), policy.aggregate)
    particles = [node for node in chains for _ in range(max(1, int(forest.visits[node.row])))]
    weights = particle_weights(particles, policy)
    if particles:
        size = sum(weights) ** 2 / sum(weight * weight for weight in weights)
        first = particles[0].parent is None
        if first or policy.ess == 1 or size < policy.ess * policy.n - 1e-9:
            turn = int(forest.trees.turn[forest.tree[particles[0].row]])
            points = plain_points(mix64_int(tree.root.node_id, turn), policy)
            particles = [particles[under(point, weights)] for point in points]
    for node in chains:
        places = sum(particle is node for particle in particles)
        if not places:
            wanted.prune.add(node.row)
        elif has_ended(node, policy.max_steps):
            wanted.visits[node.row] = places
        else:
            wanted.expand.append((node.row, places))
    wanted.finish = not wanted.expand
    return wanted


def particle_weights(particles: list[Node], policy: Particle) -> list[float]:
    """`odds ** (1 / balance)`, the highest being 1; a chain without a score has 0, unless none has one."""
    logits = []
    for node in particles:
        score = min(max(float(np.float32(chain_score(node, policy.aggregate))), 1e-7), 1 - 1e-7)
        logits.append(math.nan if math.isnan(chain_score(node, policy.aggregate)) else math.log(score / (1 - score)))
    known = [logit for logit in logits if not math.isnan(logit)]
    if not known:
        return [1.0] * len(logits)
    return [0.0 if math.isnan(logit) else math.exp((logit - max(known)) / policy.balance) for logit in logits]


def plain_points(key: int, policy: Particle) -> list[float]:
    """Where on [0, 1) the draws are."""
    if policy.resample == "multinomial":
        return [chance(mix64_int(key, index)) for index in range(policy.n)]
    return [(index + chance(key)) / policy.n for index in range(policy.n)]


def chance(key: int) -> float:
    return float(uniforms(np.array([key], np.uint64), SALT)[0])


def under(point: float, weights: list[float]) -> int:
    """The particle whose part of the line from 0 to 1 the point lies in."""
    end = 0.0
    for index, weight in enumerate(weights):
        end += weight
        if point * sum(weights) < end:
            return index
    return max(index for index, weight in enumerate(weights) if weight)
