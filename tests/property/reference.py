"""Every algorithm once more, for one tree and for a reader: lists and dicts, written from the docstrings."""

import math
from dataclasses import dataclass, field

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.policies.beam import Beam
from tests.property.forests import Grown, Node, Tree


@dataclass
class PlainMoves:
    """What a policy wants done with one tree."""

    expand: list[tuple[int, int]] = field(default_factory=list)  # row, children; best first
    prune: set[int] = field(default_factory=set)
    retire: set[int] = field(default_factory=set)
    finish: bool = False


def chain_score(node: Node, aggregate: str) -> float:
    """Score of the chain that ends in `node`; a root's chain has none."""
    steps = [step.score for step in node.chain()]
    if not steps:
        return math.nan
    if aggregate == "last":
        return steps[-1]
    if any(math.isnan(score) for score in steps):
        return math.nan
    return {"min": min(steps), "mean": sum(steps) / len(steps), "prod": math.prod(steps)}[aggregate]


def best_first(nodes: list[Node], aggregate: str) -> list[Node]:
    """By falling score, then by rising id; chains without a score come last."""

    def place(node: Node) -> tuple[bool, float, int]:
        score = float(np.float32(chain_score(node, aggregate)))
        return (True, 0.0, node.node_id) if math.isnan(score) else (False, -score, node.node_id)

    return sorted(nodes, key=place)


def has_ended(node: Node, max_steps: int) -> bool:
    return node.finish in (Finish.END, Finish.CONTEXT) or node.depth >= max_steps


def words(node: Node) -> tuple[str, ...]:
    return tuple(step.text for step in node.chain())


def shares(total: int, places: int) -> list[int]:
    """`total` dealt out one by one, the first place first."""
    found = [0] * places
    for turn in range(total):
        found[turn % places] += 1
    return found


def plain_best_of_n(tree: Tree, n: int, max_steps: int) -> PlainMoves:
    moves = PlainMoves()
    for node in tree.nodes:
        if node.status == Status.OPEN and not has_ended(node, max_steps):
            moves.expand.append((node.row, 1 if node.parent else n))
    in_flight = any(node.status in (Status.SAMPLING, Status.SCORING) for node in tree.nodes)
    moves.finish = not moves.expand and not in_flight
    return moves


def plain_beam(tree: Tree, beam: Beam) -> PlainMoves:
    moves, growing, said = PlainMoves(), list[Node](), set[tuple[str, ...]]()
    retired = sum(node.status == Status.RETIRED for node in tree.nodes)
    contenders: list[Node] = []
    ranked = best_first([node for node in tree.nodes if node.status == Status.OPEN], beam.aggregate)
    for node in ranked:
        best, score = (np.float32(chain_score(one, beam.aggregate)) for one in (ranked[0], node))
        far_behind = bool(score < np.float32(beam.threshold) * best)
        if far_behind or (beam.duplicates == "drop" and words(node) in said):
            moves.prune.add(node.row)
        else:
            contenders.append(node)
        said.add(words(node))

    if beam.finished == "refill":
        ended = [node for node in contenders if has_ended(node, beam.max_steps)]
        live = [node for node in contenders if node not in ended]
        moves.retire |= {node.row for node in ended}
        growing = live[: beam.keep] if retired + len(ended) < beam.n else []
        moves.prune |= {node.row for node in live if node not in growing}
    else:
        places = beam.keep if beam.finished == "compete" else max(0, beam.keep - retired)
        for node in contenders[:places]:
            if not has_ended(node, beam.max_steps):
                growing.append(node)
            elif beam.finished == "retire":
                moves.retire.add(node.row)
        moves.prune |= {node.row for node in contenders[places:]}

    if beam.finished == "refill":
        counts = shares(beam.n, len(growing)) if growing else []
    else:
        counts = [beam.branch if node.parent else beam.n for node in growing]
    moves.expand = [(node.row, count) for node, count in zip(growing, counts, strict=True)]
    moves.finish = not growing
    return moves


def last_line(node: Node) -> str:
    lines = [line.strip() for line in "".join(words(node)).split("\n") if line.strip()]
    return lines[-1] if lines else ""


def plain_choose(tree: Tree, rule: str, aggregate: str, cut: str, max_steps: int) -> Node | None:
    """The node that ends the tree's answer."""
    ended = [node for node in tree.nodes if node.parent and node.status in (Status.OPEN, Status.RETIRED)]
    whole = [node for node in ended if node.finish == Finish.END or (cut == "answer" and has_ended(node, max_steps))]
    ranked = best_first(whole, aggregate)
    if rule == "best" or not ranked:
        return ranked[0] if ranked else None
    votes: dict[str, float] = {}
    for node in ranked:
        score = chain_score(node, aggregate)
        weight = 1.0 if rule == "vote" else 0.0 if math.isnan(score) else float(np.float32(score))
        votes[last_line(node)] = votes.get(last_line(node), 0.0) + weight
    votes[""] = -1.0  # who says nothing has no vote
    most = max(np.float32(votes[last_line(node)]) for node in ranked)
    return next(node for node in ranked if np.float32(votes[last_line(node)]) == most)


def plain_kept(grown: Grown) -> list[Node]:
    """The nodes that `compact` must keep, by row."""
    kept: set[int] = set()
    every = [(tree, node) for tree in grown.trees for node in tree.nodes]
    for tree, node in every:
        open_tree = tree.status != TreeStatus.FREE
        live = node.parent is None or node.status not in (Status.PRUNED, Status.EXPANDED)
        if (open_tree and (live or node is tree.best)) or node.dirty:
            kept |= {tree.root.row, *(step.row for step in node.chain())}
    return sorted((node for _, node in every if node.row in kept), key=lambda node: node.row)
