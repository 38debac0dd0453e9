"""Monte Carlo tree search over reasoning steps, with a process reward model's scores as values.

From the root down, the child with the highest `Q + exploration * P * sqrt(N_parent) / (1 + N)` is followed (PUCT of AlphaZero,
Silver et al. 2017, arXiv:1712.01815; over steps of an LLM in OpenR, arXiv:2410.09671) to a node without children. That is
expanded: `branch` steps are sampled. A step's value is the score of the chain that it ends, or 0 if it has none or could not be
sampled; it counts for the step and for everything above it.

* `N` is the number of steps sampled in a subtree, its root included, and `Q` the mean of their values.
* `P` is the softmax, over the children of one node, of their mean logprob per token.
* Steps count as visits of value 0 from the moment in which they are asked for until they have landed, so that expansions that
  run side by side spread (virtual loss, Chaslot et al. 2008, "Parallel Monte-Carlo Tree Search", section 3.3).

A chain that has ended competes: its value counts, it stays a candidate, but the search does not go there again; nor does it go
where all that is below has ended. A chain that was cut is no different. Ties go to the lower node id.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.columns import NO_ROW, Status
from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import Rows, minus, segment_starts
from ramify.scheduler.policies.base import Moves, Policy
from ramify.scheduler.policies.iterations import free_places

CLOSED = -np.inf
"""The value of a node at and below which nothing is left to be expanded, ever; so no priority is lower."""
NO_NAME = np.uint64(2**64 - 1)

Places = NDArray[np.intp]
"""Rows, in the type that numpy takes for indices without a conversion."""


class Added:
    """What a decision adds to the forest's columns, which it may only read. Memory that it doesn't touch costs nothing."""

    def __init__(self, forest: Forest) -> None:
        self.visits = np.zeros(forest.size, np.int32)
        self.value = np.zeros(forest.size, np.float64)
        self.busy = np.zeros(forest.size, np.bool_)  # nothing can be expanded at or below the node until more has landed
        self.touched = [np.empty(0, np.intp)]  # nodes of which visits or value change


@dataclass(frozen=True, slots=True)
class Mcts(Policy):
    """See the module. `visits` is a node's N, and `value` the sum of which Q is the mean."""

    whole: bool = field(default=True, init=False)

    iterations: int = 16  # nodes that are expanded in one tree
    parallel: int = 4  # expansions in flight at a time: never more than `parallel * branch` steps
    branch: int = 4  # children of a node that is expanded
    exploration: float = 1.25  # c_puct: weight of what is likely and little visited
    max_steps: int = 32
    aggregate: Aggregate = "last"
    barrier: Literal["level", "none"] = "level"  # `none`: an expansion may start as soon as `branch` steps have landed

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Back up what has landed, then choose what to expand."""
        added = Added(forest)
        self._back_up(forest, fresh(forest, trees), added)
        places = free_places(forest, trees, self.iterations, self.parallel, self.branch)
        roots = forest.trees.root[trees].astype(np.intp)
        chosen = [roots[:0]]
        for place in range(int(places.max(initial=0))):
            leaves = self._select(forest, roots[places > place], added)
            self._occupy(forest, leaves, added)
            chosen.append(leaves)

        expand = np.concatenate(chosen).astype(np.int32)
        expand = expand[np.argsort(forest.tree[expand], kind="stable")]
        mark = np.concatenate(added.touched).astype(np.int32)
        mark.sort()
        mark = mark[segment_starts(mark)]
        idle = minus(trees, forest.tree[expand])
        return Moves(
            expand=expand,
            count=np.full(len(expand), self.branch, np.int32),
            mark=mark,
            visits=forest.visits[mark] + added.visits[mark],
            value=forest.value[mark] + added.value[mark],
            finish=idle[forest.trees.outstanding[idle] == 0],
        )

    def _back_up(self, forest: Forest, rows: Rows, added: Added) -> None:
        """Count the values of nodes `[R]` that have landed, siblings together, for them and for all above them."""
        dead = forest.status[rows] == Status.PRUNED
        score = forest.chain_scores(rows, self.aggregate).astype(np.float64)
        value = np.where(dead | np.isnan(score), 0.0, score)
        at = rows.astype(np.intp)
        added.visits[at] = 1  # above them they are counted since they were asked for
        added.value[at] = np.where(dead | forest.ended(rows, self.max_steps), CLOSED, value)
        added.touched.append(at)
        starts = segment_starts(forest.parent[at])
        at, value = forest.parent[at[starts]].astype(np.intp), np.add.reduceat(value, starts) if len(at) else value
        while len(at):
            np.add.at(added.value, at, value)
            added.touched.append(at)
            above = forest.parent[at]
            inner = above != NO_ROW
            at, value = above[inner].astype(np.intp), value[inner]

    def _occupy(self, forest: Forest, leaves: Places, added: Added) -> None:
        """Count the steps that are asked for at `leaves` `[E]`, of different trees, for these and for all above them."""
        added.busy[leaves] = True
        at = leaves
        while len(at):
            added.visits[at] += self.branch
            added.touched.append(at)
            at = forest.parent[at].astype(np.intp)
            at = at[at != NO_ROW]

    def _select(self, forest: Forest, roots: Places, added: Added) -> Places:
        """The nodes `[E]` to be expanded next, at most one in each of the trees with `roots`.

        Where a way leads to nothing, it is closed and the walk goes one step back.
        """
        found, at = [roots[:0]], roots[~added.busy[roots]]
        while len(at):
            leaf = forest.status[at] == Status.OPEN
            found.append(at[leaf])
            at = at[~leaf]
            child = self._best_child(forest, at, added)
            at = np.where(child == NO_ROW, forest.parent[at], child)
            at = at[at != NO_ROW]
        return np.concatenate(found)

    def _best_child(self, forest: Forest, rows: Places, added: Added) -> Places:
        """`[R]` the child that PUCT prefers; NO_ROW where none can be followed, which is noted. Tables are `[B, R]`."""
        child = sibling_table(forest, rows)
        status, there = forest.status[child], child != NO_ROW
        alive = there & ((status == Status.OPEN) | (status == Status.EXPANDED))
        waits = there & ((status <= Status.SCORING) | added.busy[child])

        likely = np.where(alive, np.exp(forest.logprob[child] / np.maximum(forest.token_count[child], 1)), 0)
        prior = likely / np.maximum(likely.sum(axis=0), np.finfo(np.float64).tiny)
        visits = forest.visits[child] + added.visits[child]
        mean = (forest.value[child] + added.value[child]) / np.maximum(visits, 1)
        visits_above = forest.visits[rows] + added.visits[rows]
        priority = mean + self.exploration * prior * np.sqrt(visits_above) / (1 + visits)
        priority = np.where(alive & ~waits, priority, CLOSED)

        best = priority.max(axis=0)
        names = np.where(priority == best, forest.node_id[child], NO_NAME)
        preferred = np.where(names == names.min(axis=0), child, NO_ROW).max(axis=0)
        nothing, waits_below = best == CLOSED, waits.any(axis=0)
        added.busy[rows[nothing & waits_below]] = True
        closed = rows[nothing & ~waits_below]
        added.value[closed] = CLOSED
        added.touched.append(closed)
        return np.where(nothing, NO_ROW, preferred)


def fresh(forest: Forest, trees: Rows) -> Rows:
    """`[L]` nodes of `trees` `[T]` (sorted) that have landed since the last decision, grouped by tree, older nodes first."""
    rows = forest.landed(trees)
    return rows[forest.turn[rows] > forest.trees.turn[forest.tree[rows]]]


def sibling_table(forest: Forest, rows: Places) -> Places:
    """`[B, R]` the children of each of `rows` `[R]`, newest first, filled up with NO_ROW; B is at least 1."""
    table = [forest.last_child[rows].astype(np.intp)]
    while (rest := table[-1] != NO_ROW).any():
        table.append(np.where(rest, forest.elder[table[-1]], NO_ROW))
    return np.stack(table)
