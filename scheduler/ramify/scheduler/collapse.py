"""The end of a tree: its answers are compared where they vote, one of them is chosen, and the checker is asked about it."""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Chains, Check, Command, Compare
from ramify.scheduler.forest.columns import NO_ROW, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows, segment_lengths, segment_starts
from ramify.scheduler.plan import JobPlan, Outcome
from ramify.scheduler.policies.answers import IN_CORE, answer_texts, answering, choose, group_answers
from ramify.scheduler.remarks import no_answer


def finish(forest: Forest, plan: JobPlan, trees: Rows, messages: dict[int, str]) -> list[Command]:
    """End `trees` `[T]`, sorted, all of one job.

    Args:
        forest: the trees' status goes on to GROUPING, CHECKING or FINISHED.
        plan: of the job.
        trees: `[T]`.
        messages: by tree id; why a tree has no answer is put here.
    """
    t = forest.trees
    failed = t.outcome[trees] == Outcome.FAILED
    t.status[trees[failed]] = TreeStatus.FINISHED
    trees = trees[~failed]
    candidates = answering(forest, trees, plan.cut, plan.policy.max_steps)
    none = np.setdiff1d(trees, forest.tree[candidates]).astype(np.int32)
    for tree, tree_id in zip(none.tolist(), t.tree_id[none].tolist(), strict=True):
        messages.setdefault(tree_id, no_answer(forest, plan, tree))
    t.outcome[none[t.outcome[none] != Outcome.BUDGET]] = Outcome.FAILED
    t.status[none] = TreeStatus.FINISHED
    rest = np.setdiff1d(trees, none).astype(np.int32)
    t.outcome[rest[t.outcome[rest] != Outcome.BUDGET]] = Outcome.ANSWERED
    return settle(forest, plan, rest) if plan.answer == "best" else vote(forest, plan, rest)


def vote(forest: Forest, plan: JobPlan, trees: Rows) -> list[Command]:
    """Like `settle`, once all answers of `trees` `[T]` are compared; until then their status is GROUPING."""
    found, waiting = compare(forest, plan, trees)
    forest.trees.status[waiting] = TreeStatus.GROUPING
    return [*found, *settle(forest, plan, np.setdiff1d(trees, waiting).astype(np.int32))]


def settle(forest: Forest, plan: JobPlan, trees: Rows) -> list[Command]:
    """Choose the answers of `trees` `[T]`, sorted, which have some, and have them checked."""
    if not len(trees):
        return []
    t = forest.trees
    best, score = choose(forest, answering(forest, trees, plan.cut, plan.policy.max_steps), plan.answer, plan.aggregate)
    t.best[trees], t.best_score[trees] = best, score
    t.status[trees] = TreeStatus.CHECKING if plan.checker else TreeStatus.FINISHED
    return [Check(plan, Chains.of(forest, plan, best))] if plan.checker else []


def compare(forest: Forest, plan: JobPlan, trees: Rows) -> tuple[list[Command], Rows]:
    """Group the chains of `trees` `[T]` that have ended by their answers.

    Trees whose chains are all grouped already cost nothing. What the core can't compare by itself becomes a command, of which
    there is never more than one for a tree.

    Returns:
        Commands, and the trees `[W]`, sorted, that have to wait for an answer.
    """
    asked = forest.trees.comparing[trees]
    busy, trees = trees[asked], trees[~asked]
    rows = answering(forest, trees, plan.cut, plan.policy.max_steps)
    fresh = np.unique(forest.tree[rows[~forest.grouped[rows]]])
    rows = rows[np.isin(forest.tree[rows], fresh)]
    if not len(rows):
        return [], busy
    rows = rows[np.lexsort((forest.node_id[rows], forest.tree[rows]))]  # representatives must not depend on arrival
    texts = answer_texts(forest, rows, plan.extract)
    tree = forest.tree[rows]
    if rule := IN_CORE.get(plan.compare):
        starts, lengths = segment_starts(tree).tolist(), segment_lengths(tree).tolist()
        found = [
            group_answers(texts[start : start + length], rule, plan.tolerance)
            for start, length in zip(starts, lengths, strict=True)
        ]
        forest.group[rows] = np.concatenate([np.array(each, np.int32) for each in found])
        forest.grouped[rows] = True
        return [], busy
    forest.trees.comparing[fresh] = True
    waiting = np.union1d(busy, fresh).astype(np.int32)
    return [Compare(plan, forest.trees.tree_id[tree], forest.node_id[rows], texts)], waiting


def assign(forest: Forest, trees: Rows, node_id: NDArray[np.uint64], group: NDArray[np.int32]) -> None:
    """Write the groups `[R]` of the nodes `[R]` of `trees` `[R]` that are still here."""
    rows = forest.candidates(np.unique(trees).astype(np.int32))
    names = zip(forest.tree[rows].tolist(), forest.node_id[rows].tolist(), strict=True)
    row_of = dict(zip(names, rows.tolist(), strict=True))
    found = [row_of.get(name, NO_ROW) for name in zip(trees.tolist(), node_id.tolist(), strict=True)]
    here = np.array(found, np.int32) != NO_ROW
    rows = np.array(found, np.int32)[here]
    forest.group[rows], forest.grouped[rows] = group[here], True
