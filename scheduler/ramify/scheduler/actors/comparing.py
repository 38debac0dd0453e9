"""Compares answers by the rules that may hang, crash or take long, in processes of their own."""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pebble import ProcessExpired, ProcessPool

from ramify import logs
from ramify.scheduler.commands import Compare
from ramify.scheduler.comparers import LOAD_S, UnknownRule, ask, check_rule
from ramify.scheduler.events import AnswersGrouped, Event
from ramify.scheduler.policies.compare import NO_ANSWER

log = logging.getLogger(__name__)

WORKERS = 2  # processes of a shard
PAIR_S = 5.0  # for one comparison; then its worker is killed
TREE_S = 60.0  # for all of a tree's comparisons; those that are left then count as different
STRIKES_MAX = 2  # a text that has cost so many workers is compared no more
COMMANDS_MAX = 8  # open at once
POOLS_MAX = 2  # tried for one comparison
TASKS_MAX = 10_000  # of a worker; then a new one takes its place, so that what a rule leaks is bounded
STOP_S = 5.0  # in which a worker can be killed
PRELOADED = ["__main__", "ramify.scheduler.comparers", "math_verify"]
SHOWN_CHARS_MAX = 80  # of an answer in a log


@dataclass(slots=True)
class Tree:
    """The answers of one tree on their way into groups."""

    job_id: str
    rule: str  # empty: the rule can't be had, and different texts are different answers
    tolerance: float
    deadline_s: float  # on the loop's clock
    heads: list[str] = field(default_factory=list)  # the first answer of each group
    strikes: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)  # what went wrong, for each comparison that failed


@dataclass(frozen=True, slots=True)
class Said:
    """What a worker says of a pair."""

    same: bool
    error: str = ""  # why it could not tell
    died: bool = False  # of this pair, maybe


class Comparing:
    """Carries out `Compare`; each command is answered by one `AnswersGrouped`, whatever befalls the workers.

    An answer joins the first group whose first answer it equals, as in `policies.compare.groups`. Equal texts are equal by every
    rule; each other pair is compared at most once. A comparison that fails or takes too long counts as "different". Bounded by
    the shard's admission: it holds no tree twice, and at most two pairs for each worker are under way.
    """

    def __init__(self, post: Callable[[Event], None], workers: int = WORKERS, pair_s: float = PAIR_S) -> None:
        """Hand events to `post`; no process is started before the first pair."""
        self._post = post
        self._pairs = Pairs(workers, pair_s)
        # A tree waits for one pair at a time. With two trees for each worker, one pair is compared and one is at hand.
        self._open = asyncio.Semaphore(2 * workers)
        self._waiting: deque[Compare] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether any answer waits or is under way."""
        return bool(self._tasks or self._waiting)

    def add(self, command: Compare) -> None:
        """Take a command; `pump` begins it."""
        self._waiting.append(command)

    def pump(self) -> None:
        """Begin what waits, as far as commands may be open."""
        while self._waiting and len(self._tasks) < COMMANDS_MAX:
            task = asyncio.create_task(self._carry_out(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up all that is under way, and end the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pairs.close()

    async def _carry_out(self, command: Compare) -> None:
        plan, rule = command.plan, command.plan.compare
        with logs.about(job=plan.job_id):
            try:
                check_rule(rule)
            except UnknownRule as error:
                # It was known at submission: a package is missing here that the gateway has.
                log.error("answers of job %s are compared as texts: %s", plan.job_id, error)
                rule = ""
            bounds = [0, *(np.flatnonzero(np.diff(command.tree_id)) + 1).tolist(), len(command.answers)]
            trees = [(command.tree_id[start:end], command.answers[start:end]) for start, end in itertools.pairwise(bounds)]
            found = await asyncio.gather(*(self._group(plan.job_id, rule, plan.tolerance, *each) for each in trees))
            group = np.array([number for each in found for number in each], np.int32)
            self._post(AnswersGrouped(command.tree_id, command.node_id, group))

    async def _group(
        self, job_id: str, rule: str, tolerance: float, tree_id: NDArray[np.uint64], answers: list[str]
    ) -> list[int]:
        """The groups of one tree's answers."""
        found = {"": NO_ANSWER}
        async with self._open:
            tree = Tree(job_id, rule, tolerance, asyncio.get_running_loop().time() + TREE_S)
            for text in answers:
                if text not in found:
                    found[text] = await self._first(tree, text)
        if tree.failed:
            said = "job %s: %d pairs of answers count as different, as %s"
            log.warning(said, job_id, len(tree.failed), tree.failed[0], extra={"tree": str(tree_id[0])})
        return [found[text] for text in answers]

    async def _first(self, tree: Tree, text: str) -> int:
        """The first group whose head is the same as `text`; if there is none, a new one."""
        for group, head in enumerate(tree.heads):
            if await self._same(tree, head, text):
                return group
        tree.heads.append(text)
        return len(tree.heads) - 1

    async def _same(self, tree: Tree, head: str, text: str) -> bool:
        late = asyncio.get_running_loop().time() > tree.deadline_s
        if not tree.rule or late or max(tree.strikes[head], tree.strikes[text]) >= STRIKES_MAX:
            return False
        said = await self._pairs.compare(tree.rule, tree.tolerance, head, text)
        if said.died:
            tree.strikes.update((head, text))
        if said.error:
            tree.failed.append(f"{head[:SHOWN_CHARS_MAX]!r} and {text[:SHOWN_CHARS_MAX]!r} by {tree.rule}: {said.error}")
        return said.same


class Pairs:
    """Worker processes, each of which compares one pair of texts at a time; one that hangs or dies is replaced."""

    def __init__(self, workers: int, pair_s: float) -> None:
        self._workers, self._pair_s = workers, pair_s
        # A worker ends itself in time (see `comparers.ask`); that failing, the pool kills it; that failing, the pool is given up.
        self._kill_s = LOAD_S + pair_s + 1
        self._give_up_s = 2 * (self._kill_s + STOP_S)
        self._starting = asyncio.Lock()
        self._pool: ProcessPool | None = None

    async def compare(self, rule: str, tolerance: float, a: str, b: str) -> Said:
        """Whether two texts are the same by a rule; never raises."""
        error: Exception | None = None
        for _ in range(POOLS_MAX):
            pool, asked = await self._ready(), None
            try:
                asked = pool.schedule(ask, args=(rule, tolerance, a, b, self._pair_s), timeout=self._kill_s)
                async with asyncio.timeout(self._give_up_s):
                    return Said(*await asyncio.wrap_future(asked))
            except (ProcessExpired, TimeoutError) as found:
                if asked is None or not asked.cancelled():  # else it was not the pool that gave up
                    return Said(False, f"its worker died, or was killed after {self._pair_s} s: {found}", died=True)
                error = found
            except Exception as found:  # as when a worker is killed that has nothing to do; the pair has no fault in it
                error = found
            log.error("the workers that compare answers are replaced: %r", error)
            await self._stop(pool)
        return Said(False, repr(error), died=True)

    async def close(self) -> None:
        """End the processes, whatever they do."""
        if self._pool is not None:
            await self._stop(self._pool)

    async def _ready(self) -> ProcessPool:
        async with self._starting:
            if self._pool is None:
                # Forked from a server that has imported math-verify: a worker that was killed is replaced in no time, and the
                # threads of this process, which a fork would leave in the middle of what they do, aren't there.
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload(PRELOADED)
                self._pool = ProcessPool(self._workers, max_tasks=TASKS_MAX, context=context)
                # To ask whether it is active starts it, which takes a second the first time. If it can't, `schedule` says so.
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(getattr, self._pool, "active")
            return self._pool

    async def _stop(self, pool: ProcessPool) -> None:
        if self._pool is pool:
            self._pool = None
        await asyncio.to_thread(_stop, pool)


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()
