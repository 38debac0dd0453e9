"""Brings the store's waiting problems into the shard, as many as it may hold."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ramify import tracing
from ramify.scheduler.actors.pins import PinnedVerifier, pinned
from ramify.scheduler.actors.problems import admitted, prompts_of, some
from ramify.scheduler.actors.prompts import PromptError, Prompts
from ramify.scheduler.actors.sharing import Room, rooms
from ramify.scheduler.actors.standings import Standings
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.events import Event, JobCancelled
from ramify.scheduler.forest.ids import tree_ids
from ramify.scheduler.plan import Generator, JobPlan, Verifier
from ramify.scheduler.slots import in_slots
from ramify.scheduler.spec import plan_of
from ramify.store.errors import Fenced
from ramify.store.leases import Claim
from ramify.store.submissions import chains_at_once
from ramify.store.work import OpenJob, Pins, WaitingProblem, Work
from ramify.verifier.errors import VerifierError

log = logging.getLogger(__name__)

PAGE = 1024  # problems a read
PROMPT = "prompt"  # what a job waits for whose prompt settings and model don't go together
QUOTA = "quota"  # and one whose tenant has spent what it may
LASTING = (PROMPT, QUOTA)
HELD_MAX = 4096  # jobs that wait so and don't keep others of their tenants from being looked at
SEPARATOR = ","  # of the revisions of several models
UNLIKE = (
    "{one} and {other} have different tokenizers, and a chain's steps are written by all models of a job: "
    "name models of one family, or submit a job for each"
)
NO_TREES = np.empty(0, np.uint64)

Several = TypeVar("Several", Generator, Verifier)


class Models(Protocol):
    """What is asked of `Dispatcher`."""

    def info(self, model: str) -> ModelInfo | None:
        """See `Dispatcher.info`."""
        ...

    def missing(self, model: str) -> str:
        """See `Dispatcher.missing`."""
        ...


class Held(NamedTuple):
    """Why a job can't be admitted."""

    what: str
    reason: str
    problems: int  # that it has
    since_s: float  # on the monotonic clock


@dataclass(slots=True)
class Cursor:
    """How far a job is admitted."""

    after: int = -1  # index of the last problem that was
    more: bool = True  # whether problems may still wait


@dataclass(slots=True)
class Cohort:
    """Slots that came together."""

    slots: set[int]
    restored: NDArray[np.uint64]  # trees that came with them, and are not to be admitted
    cursors: dict[str, Cursor] = field(default_factory=dict)  # by job


class Admission:
    """See the module."""

    def __init__(
        self,
        work: Work,
        claim: Callable[[], Claim],
        models: Models,
        verifier: PinnedVerifier,
        post: Callable[[Event], None],
        standings: Standings,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Admit to `post` what waits in the slots of the cohorts; `claim` is the right to pin jobs."""
        self._work, self._claim, self._models, self._verifier, self._post = work, claim, models, verifier, post
        self._standings, self._now_s = standings, now_s
        self._cohorts: list[Cohort] = []
        self._jobs: dict[str, OpenJob] = {}  # that have begun here
        self._plans: dict[str, JobPlan] = {}  # of the same
        self._held: dict[str, Held] = {}  # by job
        self._waiting: dict[str, OpenJob] = {}  # the same jobs
        self._prompts: dict[str, tuple[ModelInfo, Prompts | PromptError]] = {}  # by job: for which model, and how or why not
        self.references: dict[str, dict[int, str]] = {}  # right answers of open jobs: by job id, by tree id

    @property
    def waits(self) -> Mapping[str, Held]:
        """Jobs of which nothing can be admitted, and why."""
        return self._held

    @property
    def jobs(self) -> Mapping[str, JobPlan]:
        """Jobs that have begun here and have not ended."""
        return self._plans

    def add(self, slots: Sequence[int], restored: NDArray[np.uint64] = NO_TREES) -> None:
        """Admit from some more slots, but for trees that are here already."""
        self._cohorts.append(Cohort({*slots}, np.sort(restored)))

    def release(self, slots: Sequence[int]) -> None:
        """Admit no more from some slots."""
        for cohort in self._cohorts:
            cohort.slots -= {*slots}
        self._cohorts = [cohort for cohort in self._cohorts if cohort.slots]
        for job_id, known in self.references.items():
            trees = np.fromiter(known, np.uint64, len(known))
            kept = trees[~in_slots(trees, slots)].tolist()
            self.references[job_id] = {tree: known[tree] for tree in kept}

    def done(self, job_id: str, tree_id: int) -> None:
        """A tree has its result."""
        self.references.get(job_id, {}).pop(tree_id, None)

    async def admit(self, trees_max: int, live: Sequence[tuple[JobPlan, int]] = ()) -> list[OpenJob]:
        """Admit problems up to `trees_max` open trees: to each tenant its share, of its jobs that of the highest priority first.

        Jobs of one priority are admitted in the order of their creation. The trees of jobs that have ended are given up.

        Args:
            trees_max: places, see `sharing`.
            live: open trees of each job here.

        Returns:
            The jobs that have ended.
        """
        if not self._cohorts:
            return []
        await self._standings.look()
        open_jobs = await self._work.open_jobs(self._jobs | dict(islice(self._waiting.items(), HELD_MAX)))
        alive = {job.job_id for job in open_jobs}
        ended = [self._jobs.pop(job_id) for job_id in self._plans if job_id not in alive]
        for job in ended:
            del self._plans[job.job_id]
            self.references.pop(job.job_id, None)
            self._post(JobCancelled(job.job_id))
        self._forget(alive)
        wanting = dict[str, list[OpenJob]]()
        for job in open_jobs:
            if await self._wants(job):
                wanting.setdefault(job.tenant, []).append(job)
        slots = sum(len(cohort.slots) for cohort in self._cohorts)
        highest = {tenant: jobs[0].priority for tenant, jobs in wanting.items()}
        for tenant, room in rooms(highest, live, trees_max, slots, self._standings).items():
            await self._admit_jobs(wanting[tenant], room)
        self._merge()
        return ended

    async def begin(self, job: OpenJob) -> JobPlan | None:
        """The plan of a job, which keeps to the revisions of its models from now on; None: what they are can't be told yet."""
        known = self._plans.get(job.job_id)
        if known is not None:
            return known
        plan = plan_of(job.job_id, job.spec, job.problems_total, job.started_ms)
        pins = await self._pins(job, plan)
        if pins is None:
            return None
        generators, verifiers = _keep_to(pins.generator, plan.generators), _keep_to(pins.verifier, plan.verifiers)
        infos = [self._models.info(each.model) for each in generators]
        plan = replace(
            plan,
            generators=generators,
            context_tokens_max=min(info.context_tokens_max if info else 0 for info in infos),
            verifiers=verifiers,
            checker=pinned(plan.checker, pins.checker),
            tenant=job.tenant,
            priority=job.priority,
            chains=max(1, chains_at_once(job.spec.search)),
        )
        self._jobs.setdefault(job.job_id, job)
        return self._plans.setdefault(job.job_id, plan)

    async def read_references(self, job: OpenJob, slots: Sequence[int], index: NDArray[np.int64]) -> None:
        """Read the right answers of problems that come restored, so that they can be checked."""
        after, last = -1, int(index.max(initial=-1))
        while after < last and (waiting := await self._work.waiting(job, slots, after, PAGE)):
            after = waiting[-1].index
            self._keep_references(job.job_id, waiting)

    async def _pins(self, job: OpenJob, plan: JobPlan) -> Pins | None:
        pins, given = job.pins, dict[str, str]()
        if not pins.generator:
            infos = self._generators(job, plan)
            if infos is None or await self._prompts_of(job, plan, infos[0]) is None:
                return None  # else it would keep to a revision that can't serve it
            given["generator"] = SEPARATOR.join(info.revision for info in infos)
        for role, models in (("verifier", [each.model for each in plan.verifiers]), ("checker", [plan.checker])):
            if any(models) and not getattr(pins, role):
                revisions = await self._revisions(job, models)
                if revisions is None:
                    return None
                given[role] = SEPARATOR.join(revisions)
        if not given:
            return pins
        wanted = replace(pins, **given)
        return await self._work.pin(self._claim(), job.job_id, wanted.generator, wanted.verifier, wanted.checker)

    async def _revisions(self, job: OpenJob, models: Sequence[str]) -> list[str] | None:
        """Those that the verifier has of some models; None: it can't be told of one, and the job is held."""
        found = list[str]()
        for model in models:
            try:
                found.append(await self._verifier.revision(model))
            except VerifierError as error:
                self._hold(job, "verifier", f"{model} can't be asked for its revision: {error}")
                return None
        return found

    def _generators(self, job: OpenJob, plan: JobPlan) -> list[ModelInfo] | None:
        """The models that are to write a job's steps; None: one is not there, or they don't go together, and the job is held."""
        infos = list[ModelInfo]()
        for model, _ in plan.generators:
            info = self._models.info(model)
            if info is None:
                self._hold(job, "engines", self._models.missing(model))
                return None
            infos.append(info)
            if info.tokenizer_json != infos[0].tokenizer_json:
                self._hold(job, "generators", UNLIKE.format(one=infos[0].name, other=info.name))
                return None
        return infos

    async def _prompts_of(self, job: OpenJob, plan: JobPlan, info: ModelInfo) -> Prompts | None:
        """How the problems of a job become prompts; None: they and the model don't go together, and the job is held."""
        known, made = self._prompts.get(job.job_id, (None, None))
        if made is None or known != info:
            made = await asyncio.to_thread(prompts_of, job, plan, info)
            self._prompts[job.job_id] = info, made
        if isinstance(made, Prompts):
            return made
        self._hold(job, PROMPT, str(made))
        return None

    def _can_go_on(self, job_id: str) -> bool:
        """Whether a job's models can be told again."""
        plan = self._plans.get(job_id)
        return plan is not None and self._models.info(plan.generators[0].model) is not None

    def _hold(self, job: OpenJob, what: str, reason: str) -> None:
        """The job waits; it is told since when."""
        known = self._held.get(job.job_id)
        since_s = known.since_s if known and known.what == what else self._now_s()
        self._held[job.job_id] = Held(what, reason, job.problems_total, since_s)
        self._waiting[job.job_id] = job

    def _forget(self, alive: Collection[str]) -> None:
        """Of jobs that have ended nothing is kept, and none waits for what is there again."""
        self._held = {
            job_id: held
            for job_id, held in self._held.items()
            if job_id in alive and (held.what in LASTING or not self._can_go_on(job_id))
        }
        self._waiting = {job_id: job for job_id, job in self._waiting.items() if job_id in self._held}
        self._prompts = {job_id: made for job_id, made in self._prompts.items() if job_id in alive}
        for cohort in self._cohorts:
            cohort.cursors = {job_id: cursor for job_id, cursor in cohort.cursors.items() if job_id in alive}

    async def _wants(self, job: OpenJob) -> bool:
        """Whether problems of a job can be admitted now, if there is room."""
        if not any(cohort.cursors.get(job.job_id, Cursor()).more for cohort in self._cohorts):
            return False
        if reason := self._standings.spent(job.tenant):
            self._hold(job, QUOTA, reason)
        elif job.job_id in self._held:
            await self._admit_job(job, 0)  # what it waited for may be there
        return job.job_id not in self._held

    async def _admit_jobs(self, jobs: Sequence[OpenJob], room: Room) -> None:
        """Admit problems of a tenant's jobs in their order, as far as there is room."""
        for job in jobs:
            chains = max(1, chains_at_once(job.spec.search))
            if not (most := room.fits(job.priority, chains)):
                return
            room.take(await self._admit_job(job, most), job.priority, chains)

    async def _admit_job(self, job: OpenJob, trees_max: int) -> int:
        """Admit up to `trees_max` problems of a job; how many they were."""
        try:
            plan = await self.begin(job)
        except Fenced as error:  # slots that were given up meanwhile; if they were taken from us, the next beat says so
            log.info("job %s begins a little later: %s", job.job_id, error)
            return 0
        if plan is None:
            return 0
        info = self._models.info(plan.generators[0].model)
        if info is None:
            self._hold(job, "engines", self._models.missing(plan.generators[0].model))
            return 0
        prompts = await self._prompts_of(job, plan, info)
        if prompts is None:
            return 0
        left = trees_max
        for cohort in [*self._cohorts]:
            cursor = cohort.cursors.setdefault(job.job_id, Cursor())
            while left > 0 and cursor.more and cohort.slots:
                waiting = await self._work.waiting(job, sorted(cohort.slots), cursor.after, min(PAGE, left))
                try:
                    left -= await self._admit_page(job, plan, prompts, cohort, waiting) if waiting else 0
                except PromptError as error:  # of what one of the problems says, which it will say the next time too
                    self._prompts[job.job_id] = info, error
                    self._hold(job, PROMPT, str(error))
                    return trees_max - left
                cursor.more = bool(waiting)
                cursor.after = waiting[-1].index if waiting else cursor.after
        self._held.pop(job.job_id, None)
        return trees_max - left

    async def _admit_page(
        self, job: OpenJob, plan: JobPlan, prompts: Prompts, cohort: Cohort, waiting: Sequence[WaitingProblem]
    ) -> int:
        """Admit those of some problems that are to be admitted still; how many they were."""
        with tracing.span("shard.admit", [job.job_id], problems=len(waiting)):
            event = await asyncio.to_thread(admitted, job, plan, prompts, waiting)
        # Meanwhile slots may have been given up, or the job; and what came restored may have ended, and must not begin anew.
        new = in_slots(event.tree_id, sorted(cohort.slots)) & ~np.isin(event.tree_id, cohort.restored)
        if self._plans.get(job.job_id) is not plan or not new.any():
            return 0
        self._keep_references(job.job_id, [problem for problem, mine in zip(waiting, new.tolist(), strict=True) if mine])
        self._post(event if new.all() else some(event, new))
        return int(new.sum())

    def _keep_references(self, job_id: str, waiting: Sequence[WaitingProblem]) -> None:
        known = [problem for problem in waiting if problem.reference]
        names = tree_ids(job_id, np.array([problem.index for problem in known], np.int64)).tolist()
        references = self.references.setdefault(job_id, {})
        references.update((tree, problem.reference) for tree, problem in zip(names, known, strict=True))

    def _merge(self) -> None:
        """Cohorts of which everything is admitted are one from then on."""
        over = [cohort for cohort in self._cohorts if cohort.cursors and not any(each.more for each in cohort.cursors.values())]
        if len(over) > 1:
            slots = {slot for cohort in over for slot in cohort.slots}
            jobs = {job_id for cohort in over for job_id in cohort.cursors}
            if all(cohort.cursors.keys() == jobs for cohort in over):
                self._cohorts = [cohort for cohort in self._cohorts if cohort not in over]
                self._cohorts.append(Cohort(slots, NO_TREES, {job_id: Cursor(more=False) for job_id in jobs}))


def _keep_to(revisions: str, models: tuple[Several, ...]) -> tuple[Several, ...]:
    """The models, named with their revisions."""
    found = revisions.split(SEPARATOR) if len(models) > 1 else [revisions]
    return tuple(each._replace(model=pinned(each.model, revision)) for each, revision in zip(models, found, strict=True))
