"""Problems of the store as the shard is told of them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.actors.prompts import PromptError, Prompts, check_step_prompt
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.events import TreesAdmitted
from ramify.scheduler.forest.ids import root_ids, tree_ids
from ramify.scheduler.forest.table import select
from ramify.scheduler.plan import JobPlan
from ramify.store.work import OpenJob, WaitingProblem


def prompts_of(job: OpenJob, plan: JobPlan, info: ModelInfo) -> Prompts | PromptError:
    """How the problems of a job become prompts, tried with one; or why they can't."""
    try:
        made = Prompts(info, job.spec.prompt, job.started_ms)
        made.encode(["1 + 1 = ?"])
        check_step_prompt(info, plan)
    except PromptError as error:
        return error
    return made


def admitted(job: OpenJob, plan: JobPlan, prompts: Prompts, waiting: Sequence[WaitingProblem]) -> TreesAdmitted:
    """The event that some problems of a job are to be searched. Raises `PromptError`, which names the first that can't be."""
    index = np.array([problem.index for problem in waiting], np.int64)
    tokens = _encoded(prompts, waiting)
    texts = [np.frombuffer(problem.prompt.encode(), np.uint8) for problem in waiting]
    return TreesAdmitted(
        plan=plan,
        tree_id=tree_ids(job.job_id, index),
        problem=index,
        root_id=root_ids(job.spec.search.seed, index),
        tokens=np.concatenate(tokens),
        token_count=np.array([len(one) for one in tokens], np.int32),
        text=np.concatenate(texts),
        text_count=np.array([len(one) for one in texts], np.int32),
    )


def _encoded(prompts: Prompts, waiting: Sequence[WaitingProblem]) -> list[NDArray[np.int32]]:
    """The tokens of each problem's prompt. Raises `PromptError`, which names the first that has none."""
    try:
        return prompts.encode([problem.prompt for problem in waiting])
    except PromptError:
        for problem in waiting:
            try:
                prompts.encode([problem.prompt])
            except PromptError as error:
                raise PromptError(f"problem {problem.index}: {error}") from error
        raise


def some(event: TreesAdmitted, which: NDArray[np.bool_]) -> TreesAdmitted:
    """The event with the trees alone that `which` `[T]` marks."""
    return replace(
        event,
        tree_id=event.tree_id[which],
        problem=event.problem[which],
        root_id=event.root_id[which],
        tokens=select(event.tokens, event.token_count, which),
        token_count=event.token_count[which],
        text=select(event.text, event.text_count, which),
        text_count=event.text_count[which],
    )
