"""What must be true of a shard at every moment, and of a store when every tree has its result."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.plan import JobPlan, Outcome
from ramify.scheduler.shard import Shard
from tests.simulation.store import Name, Step, Store


class Work(Protocol):
    """A job and its problems."""

    @property
    def plan(self) -> JobPlan: ...

    @property
    def problems(self) -> tuple[int, ...]: ...

    @property
    def trees(self) -> list[int]: ...


def check_budgets(shard: Shard) -> None:
    """What is spent and what is under way, at its most, is within each tree's budget."""
    forest, trees = shard.forest, shard.forest.trees
    if not any(plan.bounded for plan in shard.plans):
        return
    sampling = np.bincount(forest.tree[: forest.size][forest.status[: forest.size] == Status.SAMPLING], minlength=trees.size)
    for tree in range(trees.size):
        plan = shard.plans[trees.plan[tree]]
        under_way = int(sampling[tree]) if trees.status[tree] == TreeStatus.GROWING else 0
        reserved = under_way * plan.params.max_step_tokens
        assert trees.spent[tree] + reserved <= plan.tokens_per_tree_max, "a budget is overrun"
        assert trees.steps[tree] + under_way <= plan.steps_per_tree_max, "a budget of steps is overrun"


def check_ended(store: Store, works: Sequence[Work]) -> None:
    """Costs add up, and each result is what its chain says."""
    lost_steps, lost_tokens = Counter[int](), Counter[int]()
    for (tree, _), step in store.voided:
        lost_steps[tree] += 1
        lost_tokens[tree] += len(step.tokens)
    for work in works:
        results = [store.results[tree] for tree in work.trees]
        job_id = work.plan.job_id
        tokens = sum(result.tokens for result in results) + sum(lost_tokens[tree] for tree in work.trees)
        assert store.token_count[job_id] == tokens, "what is spent is what is committed"
        assert store.step_count[job_id] == sum(result.step_count for result in results) + sum(lost_steps[t] for t in work.trees)
        for problem, result in zip(work.problems, results, strict=True):
            assert result.problem == problem
            assert bool(result.message) != bool(result.answer_node_id), "an answer, or why there is none"
            assert (result.outcome == Outcome.FAILED) <= (result.answer_node_id == 0)
            if result.answer_node_id:
                path = store.path(result.tree_id, result.answer_node_id)
                assert result.steps == [step.text.decode().removesuffix("\n") for step in path]
                assert path[-1].finish == Finish.END or (work.plan.cut == "answer" and path[-1].finish != Finish.ERROR)
            assert 0 <= result.wasted_tokens <= result.tokens


def check_chains(store: Store, chains: Mapping[Name, list[int]], prompts: Mapping[int, list[int]]) -> None:
    """Each committed step was to continue the chain above it; `prompts` by tree."""
    for (tree_id, node_id), step in store.steps.items():
        above = store.path(tree_id, node_id)[:-1]
        wanted = [*prompts[tree_id], *(token for each in above for token in each.tokens)]
        assert chains[tree_id, node_id] == wanted, f"{step} was to continue another chain"


def outcome(store: Store) -> tuple[dict[int, Any], dict[Name, Step]]:
    """Results and trees, comparable; messages apart, which say what happened on the way."""
    results = {
        tree: replace(result, message="", score=-1.0 if math.isnan(result.score) else result.score)
        for tree, result in store.results.items()
    }
    # Which decision was the first to know a step may depend on the order of arrival; the tree may not.
    return results, {name: replace(step, turn=0) for name, step in store.steps.items()}
