"""Sends chains to the verifier, in batches, and waits out its absences."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ramify.scheduler.commands import Chains, Check, Score
from ramify.scheduler.events import AnswersChecked, Event, StepsLost, StepsScored
from ramify.scheduler.plan import Verdict
from ramify.verifier.chains import Chain, ChainScores
from ramify.verifier.client import VerifierClient
from ramify.verifier.errors import DeadlineError, OverloadedError, UnavailableError, VerifierError

log = logging.getLogger(__name__)

BATCH_MAX = 1024  # chains a call
CALLS_MAX = 2  # open at once: one is computed, one is on its way; meanwhile the next batch grows
PAUSE_S = 0.5  # after the verifier was away or overloaded
PAUSES_MAX = 1200  # ten minutes of absence; then the chains are reported lost
ACCEPTED = 0.5  # a checker's score from which an answer counts as right


@dataclass(slots=True)
class Ask:
    """Chains that wait for one model."""

    model: str
    job_id: str
    chains: Chains
    checks: bool  # a checker's verdict is wanted, not scores
    pauses: int = 0

    def __len__(self) -> int:
        return len(self.chains.length)


class Scoring:
    """See the module. Bounded by the shard's admission: it holds no chain twice."""

    def __init__(
        self, client: VerifierClient, references: Mapping[str, Mapping[int, str]], post: Callable[[Event], None]
    ) -> None:
        """Score through `client`; `references` are the right answers by job and tree id, for checkers."""
        self._client = client
        self._references = references
        self._post = post
        self._waiting: deque[Ask] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether any chain waits or is under way."""
        return bool(self._tasks or self._waiting)

    def add(self, command: Score | Check) -> None:
        """Take a command; `pump` sends it."""
        checks, plan = isinstance(command, Check), command.plan
        self._waiting.append(Ask(plan.checker if checks else plan.verifier, plan.job_id, command.chains, checks))

    def pump(self) -> None:
        """Send what waits, as far as calls may be open; asks of one model go together."""
        while self._waiting and len(self._tasks) < CALLS_MAX:
            batch, size, rest = [self._waiting.popleft()], 0, deque[Ask]()
            size = len(batch[0])
            while self._waiting:
                ask = self._waiting.popleft()
                fits = ask.model == batch[0].model and ask.checks == batch[0].checks and size + len(ask) <= BATCH_MAX
                (batch if fits else rest).append(ask)
                size += len(ask) if fits else 0
            self._waiting = rest
            task = asyncio.create_task(self._ask(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up all that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, batch: list[Ask]) -> None:
        chains = [
            Chain(problem, tuple(steps), self._references.get(ask.job_id, {}).get(tree, ""))
            for ask in batch
            for tree, (problem, steps) in zip(ask.chains.tree_id.tolist(), ask.chains.texts(), strict=True)
        ]
        try:
            found = (await self._client.score(batch[0].model, chains)).chains
        except (UnavailableError, OverloadedError, DeadlineError) as error:
            await self._wait(batch, str(error))
            return
        except VerifierError as error:
            log.error("the verifier can't score chains of job %s with %s: %s", jobs_of(batch), batch[0].model, error)
            self._give_up(batch, str(error))
            return
        at = 0
        for ask in batch:
            self._answer(ask, found[at : at + len(ask)])
            at += len(ask)

    async def _wait(self, batch: list[Ask], why: str) -> None:
        """The verifier is away or overloaded: nothing is lost and nothing is scored by default; the chains wait."""
        log.warning("%d chains of job %s wait for the verifier: %s", sum(map(len, batch)), jobs_of(batch), why)
        await asyncio.sleep(PAUSE_S)
        for ask in batch:
            ask.pauses += 1
            if ask.pauses > PAUSES_MAX:
                self._give_up([ask], why)
            else:
                self._waiting.append(ask)

    def _give_up(self, batch: list[Ask], why: str) -> None:
        for ask in batch:
            chains = ask.chains
            if ask.checks:
                self._post(AnswersChecked(chains.tree_id, np.full(len(ask), Verdict.UNKNOWN, np.uint8)))
            else:
                self._post(StepsLost(chains.hint, chains.tree_id, chains.node_id, chains.attempt, f"not scored: {why}"))

    def _answer(self, ask: Ask, found: list[ChainScores]) -> None:
        chains = ask.chains
        if ask.checks:
            verdicts = [_verdict(scores) for scores in found]
            self._post(AnswersChecked(chains.tree_id, np.array(verdicts, np.uint8)))
            return
        scores = [score.scores or [np.nan] * count for score, count in zip(found, chains.length.tolist(), strict=True)]
        message = next((score.message for score in found if not score.scores), "")
        flat = np.concatenate([np.array(each, np.float32) for each in scores])
        self._post(StepsScored(chains.hint, chains.tree_id, chains.node_id, flat, chains.length, message))


def jobs_of(batch: list[Ask]) -> str:
    """The jobs whose chains these are, for people."""
    return ", ".join(sorted({ask.job_id for ask in batch}))


def _verdict(found: ChainScores) -> Verdict:
    if not found.scores:
        return Verdict.UNKNOWN
    return Verdict.CORRECT if found.scores[-1] >= ACCEPTED else Verdict.WRONG
