"""Brings the store's waiting problems into the shard, as many as it may hold."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.scheduler.commands import NodeRows
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.events import Event, JobCancelled, TreesAdmitted
from ramify.scheduler.forest.ids import root_ids, tree_ids
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.spec import plan_of
from ramify.store.work import Claim, OpenJob, WaitingProblem, Work

log = logging.getLogger(__name__)

PAGE = 1024  # problems a read


@dataclass(slots=True)
class Admitted:
    """A job as far as it is admitted."""

    plan: JobPlan
    after: int = -1  # index of the last problem that was admitted
    more: bool = True  # whether problems may still wait


class Admission:
    """See the module."""

    def __init__(self, work: Work, claim: Claim, info: Callable[[str], ModelInfo | None], post: Callable[[Event], None]) -> None:
        self._work, self._claim, self._info, self._post = work, claim, info, post
        self._jobs: dict[str, Admitted] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self.references: dict[str, dict[int, str]] = {}  # right answers of open jobs: by job id, by tree id

    async def recover(self) -> tuple[list[NodeRows], dict[int, int]]:
        """What earlier runs have committed of the open trees: their steps, and a first segment for each such tree."""
        found: list[NodeRows] = []
        first_segment: dict[int, int] = {}
        for job in await self._work.open_jobs():
            indexes = [np.empty(0, np.int64)]
            after = -1
            while waiting := await self._work.waiting(job, self._claim, after, PAGE):
                indexes.append(np.array([problem.index for problem in waiting], np.int64))
                after = waiting[-1].index
            nodes = await self._work.journal(job, np.concatenate(indexes))
            found.append(nodes)
            first_segment |= dict.fromkeys(np.unique(nodes.tree_id).tolist(), job.segment_floor + 1)
            if len(nodes.node_id):
                log.warning("job %s goes on from %d committed steps", job.job_id, len(nodes.node_id))
        return found, first_segment

    async def admit(self, trees_max: int) -> None:
        """Admit up to `trees_max` problems, the oldest job first; give up the trees of jobs that have ended."""
        open_jobs = await self._work.open_jobs()
        for job_id in self._jobs.keys() - {job.job_id for job in open_jobs}:
            del self._jobs[job_id]
            self.references.pop(job_id, None)
            self._post(JobCancelled(job_id))
        for job in open_jobs:
            state = self._jobs.get(job.job_id)
            if state is None:
                plan = plan_of(job.job_id, job.spec, job.problems_total, job.started_ms)
                state = self._jobs[job.job_id] = Admitted(plan)
            info = self._info(state.plan.generator)
            while trees_max > 0 and state.more and info is not None:
                waiting = await self._work.waiting(job, self._claim, state.after, min(PAGE, trees_max))
                state.more = bool(waiting)
                if waiting:
                    state.after = waiting[-1].index
                    trees_max -= len(waiting)
                    self._post(self._event(job, state.plan, info, waiting))

    def _event(self, job: OpenJob, plan: JobPlan, info: ModelInfo, waiting: list[WaitingProblem]) -> TreesAdmitted:
        index = np.array([problem.index for problem in waiting], np.int64)
        names = tree_ids(job.job_id, index)
        self.references.setdefault(job.job_id, {}).update(
            (tree, problem.reference) for tree, problem in zip(names.tolist(), waiting, strict=True) if problem.reference
        )
        prompts = [info.prompt_template.replace("{problem}", problem.prompt) for problem in waiting]
        tokens = [self._encode(info, prompt) for prompt in prompts]
        texts = [np.frombuffer(problem.prompt.encode(), np.uint8) for problem in waiting]
        return TreesAdmitted(
            plan=plan,
            tree_id=names,
            problem=index,
            root_id=root_ids(job.spec.search.seed, index),
            tokens=np.concatenate(tokens),
            token_count=np.array([len(one) for one in tokens], np.int32),
            text=np.concatenate(texts),
            text_count=np.array([len(one) for one in texts], np.int32),
        )

    def _encode(self, info: ModelInfo, prompt: str) -> NDArray[np.int32]:
        if not info.tokenizer_json:
            return np.frombuffer(prompt.encode(), np.uint8).astype(np.int32)
        if info.revision not in self._tokenizers:
            self._tokenizers[info.revision] = Tokenizer.from_str(info.tokenizer_json)
        return np.array(self._tokenizers[info.revision].encode(prompt, add_special_tokens=False).ids, np.int32)
