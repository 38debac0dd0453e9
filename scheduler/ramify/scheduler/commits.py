"""What a commit holds: collected from the forest's dirty rows."""

from collections import Counter

import numpy as np

from ramify.scheduler.commands import Commit, JobDelta, NodeRows, ScoreRows, TreeResult
from ramify.scheduler.forest.columns import NO_ROW, Dirty, Flag, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.remarks import note


def collect(
    forest: Forest, plans: list[JobPlan], messages: dict[int, str], retries: Counter[str], sequence: int, *, always: bool = False
) -> Commit | None:
    """Gather all that is not written yet and mark it as being written.

    Args:
        forest: its dirty bits and the status of its finished trees change.
        plans: of the shard.
        messages: why a tree failed, by tree id.
        retries: steps that were asked for again, by job; those that the commit tells are taken out.
        sequence: of the commit.
        always: make a commit though there be nothing to write.

    Returns:
        The commit, or None if there is nothing to write.
    """
    dirty = forest.dirty[: forest.size]
    fresh = np.flatnonzero(dirty & Dirty.NODE).astype(np.int32)
    scored = np.flatnonzero(dirty & Dirty.SCORE).astype(np.int32)
    finished = np.flatnonzero(forest.trees.status[: forest.trees.size] == TreeStatus.FINISHED).astype(np.int32)
    if not (len(fresh) or len(scored) or len(finished) or always):
        return None
    commit = Commit(sequence, node_rows(forest, fresh), score_rows(forest, scored), [])
    plan_of_node, plan_of_tree = forest.trees.plan[forest.tree[fresh]], forest.trees.plan[finished]
    for index in np.union1d(plan_of_node, plan_of_tree).tolist():
        nodes = fresh[plan_of_node == index]
        commit.jobs.append(
            JobDelta(
                job_id=plans[index].job_id,
                steps=len(nodes),
                tokens=int(forest.token_count[nodes].sum(dtype=np.int64)),
                results=results(forest, plans[index], messages, finished[plan_of_tree == index]),
                retries=retries.pop(plans[index].job_id, 0),
                tenant=plans[index].tenant,
            )
        )
    forest.dirty[fresh] = forest.dirty[scored] = Dirty.COMMITTING
    forest.trees.status[finished] = TreeStatus.COMMITTING
    return commit


def node_rows(forest: Forest, rows: Rows) -> NodeRows:
    """The steps `rows` `[R]` as columns of their own."""
    return NodeRows(
        tree_id=forest.trees.tree_id[forest.tree[rows]],
        node_id=forest.node_id[rows],
        parent_id=forest.node_id[forest.parent[rows]],
        child_index=forest.child_index[rows],
        depth=forest.depth[rows],
        tokens=forest.tokens.take(forest.token_start[rows], forest.token_count[rows]),
        token_count=forest.token_count[rows],
        text=forest.text.take(forest.text_start[rows], forest.text_count[rows]),
        text_count=forest.text_count[rows],
        logprob=forest.logprob[rows],
        score=forest.score[rows],
        finish=forest.finish[rows],
        turn=forest.turn[rows],
    )


def score_rows(forest: Forest, rows: Rows) -> ScoreRows:
    """The scores of `rows` `[R]`; NaN: could not be scored."""
    return ScoreRows(forest.trees.tree_id[forest.tree[rows]], forest.node_id[rows], forest.score[rows], forest.turn[rows])


def results(forest: Forest, plan: JobPlan, messages: dict[int, str], finished: Rows) -> list[TreeResult]:
    """The results of `finished` trees of one job."""
    trees = forest.trees
    answered = finished[trees.best[finished] != NO_ROW]
    steps = {
        tree: [text.removesuffix(plan.params.delimiter or "") for text in texts]
        for tree, texts in zip(answered.tolist(), forest.step_texts(trees.best[answered]), strict=True)
    }
    writers = dict(zip(answered.tolist(), step_generators(forest, plan, trees.best[answered]), strict=True))
    wasted = wasted_tokens(forest, finished)
    return [
        TreeResult(
            tree_id=int(trees.tree_id[tree]),
            problem=int(trees.problem[tree]),
            outcome=int(trees.outcome[tree]),
            verdict=int(trees.verdict[tree]),
            steps=steps.get(tree, []),
            score=float(trees.best_score[tree]),
            answer_node_id=int(forest.node_id[trees.best[tree]]) if tree in steps else 0,
            step_count=int(trees.steps[tree]),
            tokens=int(trees.spent[tree]),
            wasted_tokens=int(wasted[tree]),
            message="" if tree in steps else messages.get(int(trees.tree_id[tree]), ""),
            generators=writers.get(tree, []),
            note=note(forest, plan, int(trees.best[tree])) if tree in steps else "",
        )
        for tree in finished.tolist()
    ]


def step_generators(forest: Forest, plan: JobPlan, rows: Rows) -> list[list[str]]:
    """The models that wrote the steps of each of the chains that end in `rows` `[R]`; nothing where the job has one."""
    if len(plan.generators) == 1:
        return [[] for _ in rows]
    path, length = forest.paths(rows)
    models = [plan.generators[at].model.partition("@")[0] for at in plan.writers(forest.node_id[path]).tolist()]
    ends = np.cumsum(length).tolist()
    return [models[end - count : end] for end, count in zip(ends, length.tolist(), strict=True)]


def wasted_tokens(forest: Forest, trees: Rows) -> dict[int, int]:
    """Tokens of the speculative steps of each of `trees` `[T]` (sorted) whose chains never earned them."""
    rows = forest.landed(trees[forest.trees.whole[trees]])
    rows = rows[(forest.flags[rows] & Flag.SPECULATIVE) != 0]
    wasted = np.bincount(np.searchsorted(trees, forest.tree[rows]), forest.token_count[rows], len(trees))
    return dict(zip(trees.tolist(), wasted.astype(np.int64).tolist(), strict=True))
