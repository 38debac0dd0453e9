"""Beam search without a barrier, as a reader would write it for one tree."""

import math
from dataclasses import dataclass, field

import numpy as np

from ramify.scheduler.forest.columns import Status
from ramify.scheduler.policies.beam import Beam
from tests.property.forests import Node, Tree
from tests.property.reference import best_first, chain_score, has_ended, words


@dataclass
class PlainRace:
    """What happens to one tree."""

    expand: list[tuple[int, int, bool]] = field(default_factory=list)  # row, children, whether it is a speculation
    confirm: set[int] = field(default_factory=set)
    prune: set[int] = field(default_factory=set)
    retire: set[int] = field(default_factory=set)
    finish: bool = False


class PlainBeamAsync:
    """One tree and the moves in it."""

    def __init__(self, tree: Tree, beam: Beam, speculative: set[int], guesses: set[int], sent: dict[int, int]) -> None:
        """Look at a tree.

        Args:
            tree: with all of its landed nodes.
            beam: the knobs.
            speculative: rows of the nodes that were sampled as a speculation,
            guesses: and of their parents.
            sent: how many children were dispatched from each row.
        """
        self.tree, self.beam, self.guesses, self.sent = tree, beam, guesses, sent
        counting = [node for node in tree.nodes if node.row not in speculative]
        self.deepest = max(node.depth for node in counting)
        ranked = best_first(counting, beam.aggregate)
        self.levels = [[node for node in ranked if node.depth == depth] for depth in range(self.deepest + 2)]
        self.retired = [node for node in counting if node.status == Status.RETIRED]
        self.ranks: dict[int, int] = {}  # by row, of those that may go on
        for level in self.levels:
            for node in level:
                if self.may_go_on(node, level):
                    self.ranks[node.row] = sum(other.row in self.ranks for other in level)

    def speculated(self, node: Node) -> bool:
        return node.row in self.guesses and node.status == Status.EXPANDED

    def went_on(self, node: Node) -> bool:
        return node.status == Status.RETIRED or (node.status == Status.EXPANDED and not self.speculated(node))

    def waits(self, node: Node) -> bool:
        return node.status == Status.OPEN or self.speculated(node)

    def ended(self, node: Node) -> bool:
        return has_ended(node, self.beam.max_steps)

    def may_go_on(self, node: Node, level: list[Node]) -> bool:
        alike = [other for other in level if words(other) == words(node)]
        first = next((other for other in alike if self.went_on(other)), alike[0])
        if self.beam.duplicates == "drop" and node is not first:
            return False
        best, score = (np.float32(chain_score(one, self.beam.aggregate)) for one in (level[0], node))
        if score < np.float32(self.beam.threshold) * best and not self.went_on(node):
            return False
        return not (node.status == Status.PRUNED and math.isnan(score))

    def places(self, depth: int) -> int:
        return max(0, self.beam.keep - sum(node.depth < depth for node in self.retired))

    def landed(self, depth: int) -> bool:
        """Whether all that was sent to a level, and to those above it, has landed."""
        if depth == 0:
            return True
        grew = [node for node in self.levels[depth - 1] if self.went_on(node) and node.status == Status.EXPANDED]
        return self.landed(depth - 1) and sum(self.sent[node.row] for node in grew) == len(self.levels[depth])

    def earns(self, node: Node, closed: bool) -> bool:
        if not node.parent:
            return True
        places = self.places(node.depth)
        share = places if closed else min(places, len(self.levels[node.depth]) * self.beam.keep // self.beam.n)
        return node.row in self.ranks and self.ranks[node.row] < share

    def highest(self) -> int:
        """The highest level at which something goes on now: more will land below it."""
        for depth, level in enumerate(self.levels):
            for node in level:
                if self.waits(node) and not self.ended(node) and self.earns(node, self.landed(depth)):
                    return depth
        return self.deepest + 2

    def moves(self) -> PlainRace:
        race, highest = PlainRace(), self.highest()
        earned, early = list[Node](), list[Node]()
        for depth, level in enumerate(self.levels):
            closed = self.landed(depth) and depth <= highest
            for node in level:
                if self.waits(node):
                    self.decide(node, closed, race, earned)
            if not closed:
                early += self.guess(level, depth)
        set_aside = [*self.retired, *(node for level in self.levels for node in level if node.row in race.retire)]
        good = [
            node for node in set_aside if np.float32(chain_score(node, self.beam.aggregate)) >= np.float32(self.beam.stop_score)
        ]
        race.finish = len(set_aside) >= self.beam.keep and bool(good)
        race.finish |= highest == self.deepest + 2 and self.landed(self.deepest + 1)
        if race.finish:
            race.confirm = set()
            return race
        for nodes, guess in ((earned, False), (early, True)):
            nodes.sort(key=lambda node: (-node.depth, self.ranks[node.row]))
            race.expand += [(node.row, self.beam.branch if node.parent else self.beam.n, guess) for node in nodes]
        return race

    def decide(self, node: Node, closed: bool, race: PlainRace, earned: list[Node]) -> None:
        if self.earns(node, closed):
            if self.ended(node):
                race.retire.add(node.row)
            elif self.speculated(node):
                race.confirm.add(node.row)
            else:
                earned.append(node)
        elif closed:
            race.prune.add(node.row)
            race.prune |= {child.row for child in self.tree.nodes if child.parent is node and child.status == Status.OPEN}

    def guess(self, level: list[Node], depth: int) -> list[Node]:
        """The likeliest survivors of a level that is not closed, as far as the speculations reach."""
        left = self.beam.speculate - sum(self.speculated(node) for node in level)
        likely = [node for node in level if self.ranks.get(node.row, math.inf) < self.places(depth) and self.waits(node)]
        likely = [node for node in likely if not self.ended(node) and not self.speculated(node)][: max(0, left)]
        return [node for node in likely if not self.earns(node, False)]
