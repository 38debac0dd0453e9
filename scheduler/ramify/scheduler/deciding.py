"""Carries out what policies decide: nodes are expanded, confirmed, pruned or retired, and trees end."""

import numpy as np

from ramify.scheduler import collapse, spending
from ramify.scheduler.asking import Asking
from ramify.scheduler.commands import Command
from ramify.scheduler.forest.columns import Flag, Status, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows, minus
from ramify.scheduler.landing import Landing
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.policies.base import Moves


class Deciding:
    """Asks the policies about the trees that `landing` has touched. All that it is given is the shard's."""

    def __init__(
        self, forest: Forest, landing: Landing, asking: Asking, messages: dict[int, str], nodes_per_tree_max: int
    ) -> None:
        self._forest, self._landing, self._asking, self._messages = forest, landing, asking, messages
        self._nodes_per_tree_max = nodes_per_tree_max

    def advance(self) -> list[Command]:
        """Ask the policies about every tree that an event has reached, and again where a decision has made others possible."""
        found: list[Command] = []
        while self._landing.touched:
            for plan, mine in self._asking.trees_by_plan(self._reached()):
                # A budget is divided in the order of the moves: not in the order of arrival, unless this is kept (`whole`).
                if plan.policy.barrier == "level" or (plan.bounded and not plan.policy.whole):
                    mine = mine[self._forest.trees.outstanding[mine] == 0]
                if len(mine) and plan.policy.votes:
                    compares, waiting = collapse.compare(self._forest, plan, mine)
                    found += compares
                    mine = minus(mine, waiting)
                if len(mine):
                    found += self._move(plan, mine)
        return found

    def _reached(self) -> Rows:
        """Growing trees that were touched, sorted; they are touched no more."""
        trees = self._forest.trees
        reached = np.zeros(trees.size, np.bool_)
        for each in self._landing.touched:
            reached[each] = True
        self._landing.touched.clear()
        asked = reached & (trees.status[: trees.size] == TreeStatus.GROWING) & ~trees.comparing[: trees.size]
        return np.flatnonzero(asked).astype(np.int32)

    def _move(self, plan: JobPlan, trees: Rows) -> list[Command]:
        """Have the policy decide about `trees`, sorted, and carry its moves out."""
        forest = self._forest
        moves = plan.policy.advance(forest, trees)
        forest.trees.turn[trees] += 1
        forest.visits[moves.mark], forest.value[moves.mark] = moves.visits, moves.value
        confirmed = self._confirm(moves)
        withdrawn = self._prune(moves)
        forest.status[moves.retire] = Status.RETIRED
        grant = spending.grant(forest, plan, moves, self._nodes_per_tree_max)
        forest.unlist(trees)
        children = forest.expand(grant.expand, grant.count, grant.flags)
        for tree_id, message in grant.refused.items():
            self._messages[tree_id] = message
        finished = np.union1d(moves.finish, grant.ended).astype(np.int32)
        return withdrawn + self._asking.generate(np.concatenate((confirmed, children))) + self.finish(plan, finished)

    def _confirm(self, moves: Moves) -> Rows:
        """Lift the flag from the children of nodes that have earned them; returns those that still have to be sampled."""
        children, _ = self._forest.children(moves.confirm)
        children = children[(self._forest.flags[children] & Flag.SPECULATIVE) != 0]
        self._forest.flags[children] &= 0xFF ^ Flag.SPECULATIVE
        status = self._forest.status[children]
        self._landing.touched.append(self._forest.tree[children[status == Status.OPEN]])  # only now the policy sees them
        return np.asarray(children[status == Status.SAMPLING])

    def _prune(self, moves: Moves) -> list[Command]:
        """Give nodes up. Their children in flight stay, for they are paid for, and land as what they are."""
        forest = self._forest
        children, _ = forest.children(moves.prune[forest.status[moves.prune] == Status.EXPANDED])
        forest.status[moves.prune] = Status.PRUNED
        return self._asking.withdraw(children[forest.status[children] == Status.SAMPLING])

    def finish(self, plan: JobPlan, trees: Rows) -> list[Command]:
        """End `trees`, sorted: what is still in flight is not wanted any more, the rest becomes an answer."""
        if not len(trees):
            return []
        forest, busy = self._forest, trees[self._forest.trees.outstanding[trees] > 0]
        found: list[Command] = []
        if len(busy):
            rows = np.flatnonzero(forest.status[: forest.size] == Status.SAMPLING)
            found = self._asking.withdraw(rows[np.isin(forest.tree[rows], busy)].astype(np.int32))
        return found + collapse.finish(forest, plan, trees, self._messages)
