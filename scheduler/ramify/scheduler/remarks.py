"""What is said of trees: why one has no answer, and what is odd about the answer of another.

Only what a tree's decisions know goes into it, so it is the same after a restart.
"""

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.plan import JobPlan

NO_ANSWER = "no chain came to an end by itself: raise max_steps, max_step_tokens or the budget"
MEND = "say with step= where the model's steps end, or raise max_step_tokens"


def no_answer(forest: Forest, plan: JobPlan, tree: int) -> str:
    """Why the chains of a tree that has ended amount to no answer."""
    rows = forest.candidates(np.array([tree], np.int32))
    full = rows[forest.finish[rows] == Finish.CONTEXT]
    if len(full):
        return _full(forest, plan, full)
    if cut_alone(forest, plan, rows):
        return f"no step ended with {plan.params.delimiter!r}, each was cut at {_most(plan)}: {MEND}"
    return NO_ANSWER


def note(forest: Forest, plan: JobPlan, row: int) -> str:
    """What is odd about the answer that ends in the node `row`; empty: nothing."""
    if forest.finish[row] == Finish.CONTEXT:
        return _full(forest, plan, np.array([row], np.int32))
    if not cut_alone(forest, plan, np.array([row], np.int32)):
        return ""
    return f"no step of the answer ended with {plan.params.delimiter!r}, they were cut at {_most(plan)}: {MEND}"


def cut_alone(forest: Forest, plan: JobPlan, rows: Rows) -> bool:
    """Whether steps of the chains that end in `rows` `[R]` were cut at their longest, and none ended as it should have."""
    if plan.params.delimiter is None:
        return False
    finish = forest.finish[forest.paths(rows)[0]]
    return bool((finish == Finish.STEP_CUT).any() and not (finish == Finish.STEP).any())


def _most(plan: JobPlan) -> str:
    return f"max_step_tokens={plan.params.max_step_tokens:,}"


def _full(forest: Forest, plan: JobPlan, rows: Rows) -> str:
    """Of chains that end in `rows` `[R]`, as their model's context was full."""
    size = f"the model's context is {plan.context_tokens_max:,}" if plan.context_tokens_max else "the model's context is shorter"
    prompt = int(forest.token_count[forest.trees.root[forest.tree[rows[0]]]])
    if not forest.token_count[rows[forest.depth[rows] == 1]].all():
        return f"the prompt has {prompt:,} tokens, {size}: give the model a longer context, or a shorter problem"
    longest = int(np.diff(forest.chain_tokens(rows)[1]).max())
    cut, more = ("the answer was cut at", "") if plan.cut == "answer" else ("chains were cut at up to", ", or say cut=answer")
    return f"{cut} {longest:,} tokens, {size}: lower max_steps or max_step_tokens{more}"
