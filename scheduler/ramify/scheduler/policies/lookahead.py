"""Lookahead search: beam search whose candidates are judged by where they lead.

Snell et al. 2024 (arXiv:2408.03314), section 5.2: a level's candidates are not judged by their own scores. Each is rolled out
for up to `lookahead` steps more, at temperature 0, and judged by the score of the chain at the end of its rollout. The best
`keep` are expanded by `branch`; the rollouts are thrown away.

Not all of them are: where a survivor's rollout came to an end by itself, it is a whole answer that has been paid for, so it is
set aside as one. A candidate that has ended, or was cut, is judged by its own score; it is carried along while it is among the
best (`finished = compete`). If a step of a rollout fails, its candidate is given up with it: nothing live is left below it, so
its row may be gone.

The steps of a rollout are called probes. What a tree waits for is read off its frontier, so a level takes 1 + `lookahead` turns:
while there are chains that can be rolled out further, they are; then the level is judged.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Flag
from ramify.scheduler.forest.forest import Aggregate, Forest
from ramify.scheduler.forest.segments import (
    Rows,
    count_before,
    first_of_group,
    minus,
    order_in_segment,
    total_in_segment,
)
from ramify.scheduler.policies.base import Moves, Policy


@dataclass(frozen=True, slots=True)
class Lookahead(Policy):
    """See the module. Ties go to the lower node id."""

    n: int = 16  # children of the root
    keep: int = 4  # survivors per level
    branch: int = 4  # children per survivor
    max_steps: int = 32  # rollouts end there too
    lookahead: int = 1  # probes per candidate; with 0 it would be beam search
    aggregate: Aggregate = "last"  # of a rollout: over the candidate's own steps and the probes
    duplicates: Literal["drop", "keep"] = "drop"  # `drop`: of candidates that say the same, only one may survive

    def advance(self, forest: Forest, trees: Rows) -> Moves:
        """Decide the next turn of trees whose frontier is scored: roll out further, or judge."""
        tip = forest.frontier(trees)  # [F] ends of rollouts, and candidates that have none yet
        candidate, probes = self._candidates(forest, tip)
        order = order_in_segment(forest.tree[tip], forest.chain_scores(tip, self.aggregate), forest.node_id[candidate])
        tip, candidate, probes = tip[order], candidate[order], probes[order]  # best first within each tree
        tree, ended, at_root = forest.tree[tip], forest.ended(tip, self.max_steps), forest.depth[tip] == 0
        rolls = ~ended & ~at_root & (probes < self.lookahead)
        judged = total_in_segment(rolls, tree) == 0
        eligible = first_of_group(tree, forest.text_hash[candidate]) | (self.duplicates == "keep")
        survives = judged & eligible & (count_before(eligible, tree) < self.keep)

        grows = survives & ~(ended & (probes == 0))
        answers = survives & (probes > 0) & (forest.finish[tip] == Finish.END)
        expands = rolls | grows
        return Moves(
            expand=np.where(rolls, tip, candidate)[expands],
            count=np.select([rolls, at_root], [1, self.n], self.branch)[expands].astype(np.int32),
            flags=np.where(rolls, Flag.GREEDY, 0)[expands].astype(np.uint8),
            prune=last_steps(forest, tip, np.where(judged & ~answers, probes + ~survives, 0)),
            retire=tip[answers],
            finish=minus(trees, tree[expands]),
        )

    def _candidates(self, forest: Forest, tip: Rows) -> tuple[Rows, Rows]:
        """`[F]` the candidate that each rollout belongs to, and `[F]` the number of its probes so far.

        A candidate's probe is sampled before its other children, so a probe is a node whose `child_index` is 0, unless it is a
        child of the root: these are candidates, all of them.
        """
        at, probes = tip.copy(), np.zeros(len(tip), np.int32)
        while (probe := (forest.depth[at] > 1) & (forest.child_index[at] == 0)).any():
            at[probe] = forest.parent[at[probe]]
            probes += probe
        return at, probes


def last_steps(forest: Forest, rows: Rows, count: Rows) -> Rows:
    """`[sum of counts]` the last `count` `[R]` nodes of the chains that end in `rows` `[R]`."""
    found, at = [rows[:0]], rows
    while len(at := at[(more := count > 0)]):
        found.append(at)
        at, count = forest.parent[at], count[more] - 1
    return np.concatenate(found)
