"""Sends chains to the verifier, in batches, and waits out its absences.

A model that is away or overloaded is left alone for a while, longer after each failure; then a single call tries whether it is
back. Its chains wait meanwhile: nothing is lost, and nothing is scored by default. Where several models judge a chain, what some
have answered is kept until all have.
"""

import asyncio
import heapq
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain as flatten
from types import NoneType
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import SpanKind

from ramify import tracing
from ramify.scheduler.actors.ensembles import Panel, last_only, panels
from ramify.scheduler.actors.meters import Meters
from ramify.scheduler.actors.queues import Weight
from ramify.scheduler.commands import Chains, Check, Score
from ramify.scheduler.events import AnswersChecked, Event, StepsLost, StepsScored
from ramify.scheduler.plan import Verdict
from ramify.verifier.client import ColumnsScored
from ramify.verifier.columns import ChainColumns, ColumnScores
from ramify.verifier.errors import DeadlineError, OverloadedError, UnavailableError, VerifierError

log = logging.getLogger(__name__)

BATCH_MAX = 1024  # chains a call
CALLS_MAX = 2  # open at once of one model: one is computed, one is on its way; meanwhile the next batch grows
PAUSE_S = 0.25  # after a model's first failure; twice as long after each further one in a row
DOUBLINGS_MAX = 5  # so never longer than 8 s
ABSENCE_S_MAX = 600.0  # so long a chain waits for a model that is away; then it is reported lost
OUTCOMES = {NoneType: "scored", UnavailableError: "unavailable", OverloadedError: "overloaded", DeadlineError: "late"}  # of calls
ACCEPTED = 0.5  # a checker's score from which an answer counts as right


class Verifier(Protocol):
    """What is asked of `VerifierClient`."""

    async def score_columns(self, model: str, chains: ChainColumns, *, last_only: bool, wait_for_ready: bool) -> ColumnsScored:
        """See `VerifierClient`."""
        ...


class Kind(NamedTuple):
    """What asks must have in common to go together in a call."""

    model: str
    checks: bool = False  # a checker's verdict is wanted, not scores
    last_only: bool = False  # the scores of last steps alone are wanted


@dataclass(slots=True, eq=False)
class Ask:
    """Chains that wait for one model."""

    kind: Kind
    job_id: str
    tenant: str
    chains: Chains
    added_s: float
    panel: Panel | None = None  # where other models judge them too

    @property
    def name(self) -> str:
        """The model's, without its revision."""
        return self.kind.model.rpartition("@")[0] or self.kind.model

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.panel is not None and self.panel.over

    def __len__(self) -> int:
        return len(self.chains.length)


@dataclass(slots=True)
class Absence:
    """A model that is away or overloaded."""

    since_s: float
    until_s: float  # not asked before
    reason: str
    failures: int = 1


class Wait(NamedTuple):
    """What of a job waits because a model is away or overloaded."""

    reason: str
    chains: int
    since_s: float  # when the first of them began to, on the monotonic clock


class Scoring:
    """See the module. Bounded by the shard's admission: it holds no chain twice."""

    def __init__(
        self,
        client: Verifier,
        references: Mapping[str, Mapping[int, str]],
        post: Callable[[Event], None],
        *,
        weight: Weight = lambda _: 1.0,
        meters: Meters | None = None,
        now_s: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Score through `client`.

        Args:
            client: Of the verifier.
            references: The right answers by job and tree id, for checkers.
            post: Takes the outcomes.
            weight: Of a tenant.
            meters: Hears how calls ended, and how long they took.
            now_s: The monotonic clock.
            chance: A number in [0, 1): schedulers that lost one verifier must not all come back at one moment.
        """
        self._client = client
        self._references = references
        self._post = post
        self._now_s, self._chance = now_s, chance
        self._weight, self._meters = weight, meters or Meters()
        self._waiting: dict[Kind, deque[Ask]] = {}
        self._open: dict[asyncio.Task[ColumnsScored], list[Ask]] = {}
        self._absences: dict[str, Absence] = {}  # by model

    @property
    def busy(self) -> bool:
        """Whether any chain waits or is under way."""
        return bool(self._open or self._waiting)

    @property
    def chains(self) -> int:
        """Chains that wait or are under way; one that several models judge counts for each."""
        return sum(map(len, flatten.from_iterable([*self._open.values(), *self._waiting.values()])))

    @property
    def models_away(self) -> int:
        """Models that are away or overloaded."""
        return len(self._absences)

    @property
    def waits(self) -> dict[str, Wait]:
        """What waits because the verifier is away or overloaded, by job."""
        found: dict[str, Wait] = {}
        told = set[Panel]()  # of which some model has been found to be away already
        for ask in flatten.from_iterable([*self._open.values(), *self._waiting.values()]):
            absence = self._absences.get(ask.kind.model)
            if absence is None or ask.over:
                continue
            since_s = max(absence.since_s, ask.added_s)
            reason = f"{ask.name}: {absence.reason}" if ask.panel else absence.reason
            known = found.get(ask.job_id, Wait(reason, 0, since_s))
            reasons = known.reason if reason in known.reason else f"{known.reason}; {reason}"
            chains = known.chains + (0 if ask.panel in told else len(ask))
            found[ask.job_id] = Wait(reasons, chains, min(known.since_s, since_s))
            if ask.panel:
                told.add(ask.panel)
        return found

    def add(self, command: Score | Check) -> None:
        """Take a command; `pump` sends it."""
        plan, now_s = command.plan, self._now_s()
        if isinstance(command, Check):
            self._wait(Ask(Kind(plan.checker, checks=True, last_only=True), plan.job_id, plan.tenant, command.chains, now_s))
        elif several := panels(command):
            for panel in several:
                for each in panel.verifiers:
                    kind = Kind(each.model, last_only=last_only(each))
                    self._wait(Ask(kind, plan.job_id, plan.tenant, panel.chains, now_s, panel))
        else:
            self._wait(Ask(Kind(plan.verifiers[0].model), plan.job_id, plan.tenant, command.chains, now_s))

    def pump(self) -> None:
        """Send what waits, as far as calls may be open; asks of one model go together."""
        while batch := self._take():
            chains = self._columns(batch)
            task = asyncio.create_task(self._ask(batch, chains))
            self._open[task] = batch
            task.add_done_callback(partial(self._done, chains))

    async def close(self) -> None:
        """Give up all that is under way."""
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wait(self, ask: Ask) -> None:
        self._waiting.setdefault(ask.kind, deque()).append(ask)

    def _take(self) -> list[Ask]:
        """The next asks that may go together in a call; none if all wait for their models.

        Tenants with fewest chains at a model for their weight go first, and of their asks those that wait longest.
        """
        kinds = [kind for kind in self._waiting if self._may_ask(kind.model)]
        if not kinds:
            return []
        kind = min(kinds, key=lambda kind: min(self._turn(ask) for ask in firsts(self._waiting[kind])))
        queue, batch, size = self._waiting.pop(kind), dict[Ask, None](), 0
        for ask in self._in_turn(queue):
            if not batch or size + len(ask) <= BATCH_MAX:
                batch[ask] = None
                size += len(ask)
        if len(batch) < len(queue):
            self._waiting[kind] = deque(ask for ask in queue if ask not in batch)
        return [*batch]

    def _turn(self, ask: Ask) -> tuple[float, float]:
        """When an ask has its turn: the lower goes first."""
        calls = (batch for batch in self._open.values() if batch[0].kind.model == ask.kind.model)
        there = sum(len(each) for batch in calls for each in batch if each.tenant == ask.tenant)
        return there / self._weight(ask.tenant), ask.added_s

    def _in_turn(self, queue: Iterable[Ask]) -> Iterator[Ask]:
        """Asks of one kind: each next one of the tenant that has least for its weight."""
        mine = dict[str, deque[Ask]]()
        for ask in queue:
            mine.setdefault(ask.tenant, deque()).append(ask)
        turns = [(*self._turn(asks[0]), tenant) for tenant, asks in mine.items()]
        heapq.heapify(turns)
        while turns:
            there, _, tenant = turns[0]
            ask = mine[tenant].popleft()
            yield ask
            if not mine[tenant]:
                heapq.heappop(turns)
            else:
                heapq.heapreplace(turns, (there + len(ask) / self._weight(tenant), mine[tenant][0].added_s, tenant))

    def _may_ask(self, model: str) -> bool:
        calls, absence = sum(batch[0].kind.model == model for batch in self._open.values()), self._absences.get(model)
        return calls < CALLS_MAX if absence is None else not calls and self._now_s() >= absence.until_s

    async def _ask(self, batch: list[Ask], chains: ChainColumns) -> ColumnsScored:
        like, kind, began_s = batch[0], batch[0].kind, self._now_s()
        jobs = (ask.job_id for ask in batch)
        with tracing.span("verifier.score", jobs, kind=SpanKind.CLIENT, model=like.name, chains=sum(map(len, batch))):
            try:
                return await self._client.score_columns(kind.model, chains, last_only=kind.last_only, wait_for_ready=False)
            finally:
                self._meters.took("score_call_seconds", self._now_s() - began_s, like.name)

    def _done(self, chains: ChainColumns, task: asyncio.Task[ColumnsScored]) -> None:
        """Tell what has become of a call. It is not open any more: whoever hears of it may send the next."""
        batch = self._open.pop(task)
        if task.cancelled():
            return
        kind, error = batch[0].kind, task.exception()
        self._meters.count("score_calls", 1, batch[0].name, OUTCOMES.get(type(error), "failed"))
        if isinstance(error, UnavailableError | OverloadedError | DeadlineError):
            self._put_back(batch, error)
            return
        self._absences.pop(kind.model, None)
        if error is not None:
            bug = None if isinstance(error, VerifierError) else error
            said, jobs = "chains of job %s can't be scored with %s: %s", jobs_of(batch)
            log.error(said, jobs, kind.model, error, exc_info=bug, extra={"job": jobs})
            self._give_up(batch, str(error))
        elif kind.checks:
            self._check(batch, task.result().scores)
        else:
            self._score(batch, chains, ColumnScores(task.result().scores, task.result().faults))

    def _columns(self, batch: list[Ask]) -> ChainColumns:
        chains = [ask.chains for ask in batch]
        references = list[str]()
        if batch[0].kind.checks:  # a reward model never sees the right answer
            of_job = [self._references.get(ask.job_id, {}) for ask in batch]
            trees = [each.tree_id.tolist() for each in chains]
            references = [known.get(tree, "") for known, mine in zip(of_job, trees, strict=True) for tree in mine]
        return ChainColumns(
            np.concatenate([each.text for each in chains]),
            np.concatenate([each.text_count for each in chains]),
            np.concatenate([each.length for each in chains]),
            references,
        )

    def _put_back(self, batch: list[Ask], error: VerifierError) -> None:
        """The model is away or overloaded: leave it alone for a while, and give up what has waited for too long."""
        model, now_s = batch[0].kind.model, self._now_s()
        absence = self._absences.setdefault(model, Absence(now_s, now_s, "", failures=0))
        absence.reason = str(error)
        if now_s >= absence.until_s:  # else it is another call's failure, of the same moment
            pause_s = PAUSE_S * 2 ** min(absence.failures, DOUBLINGS_MAX) * (1 + self._chance()) / 2
            advice_s = error.retry_delay_ms / 1000 if isinstance(error, OverloadedError) else 0.0
            absence.until_s = now_s + max(pause_s, advice_s)
            absence.failures += 1
            said, jobs = "%d chains of job %s wait for %s: %s", jobs_of(batch)
            log.warning(said, sum(map(len, batch)), jobs, model, error, extra={"job": jobs})
        lost = list[Ask]()
        again, self._waiting = flatten(batch, *self._waiting.values()), {}
        for ask in again:
            late = ask.kind.model == model and now_s - max(ask.added_s, absence.since_s) > ABSENCE_S_MAX
            if late:
                lost.append(ask)
            else:
                self._wait(ask)
        self._give_up(lost, absence.reason)

    def _give_up(self, batch: list[Ask], why: str) -> None:
        """A model will not judge some chains; others are not asked about them any more."""
        for ask in batch:
            chains = ask.chains
            if ask.kind.checks:
                self._post(AnswersChecked(chains.tree_id, np.full(len(ask), Verdict.UNKNOWN, np.uint8)))
            elif not ask.over:
                said = f"not scored by {ask.name}: {why}"
                self._post(StepsLost(chains.hint, chains.tree_id, chains.node_id, chains.attempt, said))
            if ask.panel:
                ask.panel.over = True
        left = {kind: deque(ask for ask in queue if not ask.over) for kind, queue in self._waiting.items()}
        self._waiting = {kind: queue for kind, queue in left.items() if queue}

    def _check(self, batch: list[Ask], scores: NDArray[np.float32]) -> None:
        """Tell what the last scores of the chains mean."""
        right = np.where(scores >= ACCEPTED, Verdict.CORRECT, Verdict.WRONG)
        verdicts = np.where(np.isnan(scores), Verdict.UNKNOWN, right).astype(np.uint8)
        at = 0
        for ask in batch:
            self._post(AnswersChecked(ask.chains.tree_id, verdicts[at : at + len(ask)]))
            at += len(ask)

    def _score(self, batch: list[Ask], chains: ChainColumns, scores: ColumnScores) -> None:
        at = 0
        for ask in batch:
            first, at, named = at, at + len(ask), ask.chains
            mine = scores.part(chains, first, at)
            message = f"not scored by {ask.name}: {mine.faults[0].message}" if mine.faults else ""
            if ask.panel is None:
                self._post(StepsScored(named.hint, named.tree_id, named.node_id, mine.scores, named.length, message))
                continue
            found = scores.scores[first:at] if ask.kind.last_only else mine.scores
            if event := ask.panel.hear(ask.kind.model, found, message):
                self._post(event)


def firsts(queue: Iterable[Ask]) -> Iterable[Ask]:
    """Of each tenant's asks the one that has waited longest."""
    found = dict[str, Ask]()
    for ask in queue:
        found.setdefault(ask.tenant, ask)
    return found.values()


def jobs_of(batch: list[Ask]) -> str:
    """The jobs whose chains these are, for people."""
    return ", ".join(sorted({ask.job_id for ask in batch}))
