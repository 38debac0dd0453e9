"""What a tree may still spend: nothing is dispatched that could overrun it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.columns import Status
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows, segment_lengths, segment_starts
from ramify.scheduler.plan import JobPlan, Outcome
from ramify.scheduler.policies.base import Moves


@dataclass(frozen=True, slots=True)
class Grant:
    """Expansions that may go ahead."""

    expand: Rows  # [E]
    count: Rows  # [E] at least 1 each
    flags: NDArray[np.uint8] | None  # [E]
    ended: Rows  # trees that may not go on at all
    refused: dict[int, str] = field(default_factory=dict)  # by tree id: the limit that the tree has hit, which fails it


def grant(forest: Forest, plan: JobPlan, moves: Moves, nodes_max: int) -> Grant:
    """Cut expansions to what each tree's budget bears, the first ones first.

    A step is reserved at the most tokens that it may have; what it doesn't use is its tree's again when it lands. What has been
    sampled but has not landed counts as in flight still, so that the cut is the same in a replay.

    Args:
        forest: the outcome of trees that are cut becomes BUDGET, or FAILED where they hit a limit; nodes that get nothing and
            have no children are pruned.
        plan: of the job.
        moves: of its policy.
        nodes_max: steps that a tree may ask for in all. A tree that wants more is refused.
    """
    expand, count, flags = moves.expand, moves.count, moves.flags
    if not len(expand):
        return Grant(expand, count, flags, expand[:0])
    trees, tree = forest.trees, forest.tree[expand]
    running = np.cumsum(count, dtype=np.int64)
    starts = segment_starts(tree)
    before = running - count
    before -= np.repeat(before[starts], segment_lengths(tree))
    asked = trees.asked[tree]
    over = np.unique(tree[asked + before + count > nodes_max])
    granted = count
    if plan.bounded:
        tokens = plan.tokens_per_tree_max - trees.settled[tree]
        steps = np.minimum(tokens // plan.params.max_step_tokens - trees.outstanding[tree], plan.steps_per_tree_max - asked)
        granted = np.clip(steps - before, 0, count).astype(np.int32)
        trees.outcome[tree[granted < count]] = Outcome.BUDGET
    if len(over):
        granted = np.where(np.isin(tree, over), 0, granted).astype(np.int32)
        trees.outcome[over] = Outcome.FAILED
    none = expand[granted == 0]
    forest.status[none[forest.child_count[none] == 0]] = Status.PRUNED
    some = granted > 0
    stuck = np.setdiff1d(tree, tree[some])
    ended = np.union1d(over, stuck[trees.outstanding[stuck] == 0]).astype(np.int32)
    message = f"the tree asks for more than {nodes_max:,} steps (limit nodes_per_tree_max): give it a smaller search"
    refused = dict.fromkeys(trees.tree_id[over].tolist(), message)
    return Grant(expand[some], granted[some], None if flags is None else flags[some], ended, refused)
