"""What is asked of engines and verifiers about some nodes: a command for each job."""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler import commands
from ramify.scheduler.commands import Command
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.plan import JobPlan


class Asking:
    """Makes commands about nodes of a forest, whose trees follow `plans`; both are the shard's, and change."""

    def __init__(self, forest: Forest, plans: list[JobPlan]) -> None:
        self._forest, self._plans = forest, plans

    def generate(self, rows: Rows) -> list[Command]:
        """Commands to sample `rows`."""
        return [each for plan, mine in self.by_plan(rows) for each in commands.Generate.of(self._forest, plan, mine)]

    def withdraw(self, rows: Rows) -> list[Command]:
        """A command to give up `rows`, which are being sampled."""
        names = self._forest.trees.tree_id[self._forest.tree[rows]], self._forest.node_id[rows]
        return [commands.Withdraw(*names)] if len(rows) else []

    def score(self, rows: Rows) -> list[Command]:
        """Commands to score the chains that end in `rows`, one for each job."""
        return [commands.Score(plan, commands.Chains.of(self._forest, plan, mine)) for plan, mine in self.by_plan(rows)]

    def by_plan(self, rows: Rows) -> list[tuple[JobPlan, Rows]]:
        """The nodes `rows` of each job, in their order."""
        plan = self.plan_of(rows)
        return [(self._plans[index], rows[plan == index]) for index in np.flatnonzero(np.bincount(plan)).tolist()]

    def trees_by_plan(self, trees: Rows) -> list[tuple[JobPlan, Rows]]:
        """The trees of each job, in their order."""
        plan = self._forest.trees.plan[trees]
        return [(self._plans[index], trees[plan == index]) for index in np.flatnonzero(np.bincount(plan)).tolist()]

    def plan_of(self, rows: Rows) -> NDArray[np.int32]:
        """`[R]` index of the plan of each of the nodes `rows` `[R]`."""
        return np.asarray(self._forest.trees.plan[self._forest.tree[rows]])
