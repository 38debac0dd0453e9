"""A small world in one process: one shard, fakes around it, a virtual clock, and weather.

All chance comes from one seed, so a failure is brought back by the seed that it prints. After every `handle` the forest is
validated and the laws that hold at every moment are checked.
"""

import heapq
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ramify.scheduler.commands import Check, Command, Commit, Compare, Generate, Score, Withdraw
from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.events import (
    Committed,
    Event,
    JobCancelled,
    StepsLost,
    StepsSampled,
    Tick,
    TreesAdmitted,
    TreesRestored,
)
from ramify.scheduler.forest.ids import root_ids, tree_ids
from ramify.scheduler.journal import Journal
from ramify.scheduler.plan import Generator, JobPlan
from ramify.scheduler.policies.knobs import Knobs, defaults_of
from ramify.scheduler.shard import Shard, ShardLimits
from tests.simulation import fakes, laws
from tests.simulation.store import Name, Step, Store

FLUSH_MS = 5
TURNS_MAX = 3000  # no search of these tests needs a tenth of it
LOSSES_MAX = 3  # of one node by chance: fewer than `ShardLimits.tries_max`, so that none is given up
LIVES_MAX = 30
BY_CHANCE = -1  # as `snapshot_steps_min`: a small number


def commit() -> str:
    """The commit that is checked out: with the seed, it brings a failure back."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


@dataclass(frozen=True)
class Work:
    """A job and its problems."""

    plan: JobPlan
    problems: tuple[int, ...] = (0, 1, 2)
    seed: int = 1

    @property
    def trees(self) -> list[int]:
        """Ids of its trees."""
        found: list[int] = tree_ids(self.plan.job_id, np.array(self.problems, np.int64)).tolist()
        return found


@dataclass(frozen=True)
class Weather:
    """What can go wrong, and how often."""

    delay_ms_max: int = 1  # an answer takes 1 to so many: those of one command overtake each other
    batch_max: int = 1000  # rows of a command that are answered at once
    duplicate: float = 0.0  # chance that an answer comes twice
    lose: float = 0.0  # chance that a row is lost
    late: float = 0.0  # chance that a lost row is answered all the same, later
    withdraw: float = 0.0  # chance that a step which is withdrawn had not begun
    crash: float = 0.0  # chance of a crash after a turn
    crash_at: tuple[int, str] | None = None  # number of a commit, "before" or "after" it is durable


CALM = Weather()
ROUGH = Weather(delay_ms_max=20, batch_max=3, duplicate=0.3, lose=0.2, late=0.5, withdraw=0.5, crash=0.03)


@dataclass(frozen=True)
class Write:
    """A commit on its way to the disk."""

    commit: Commit


def plan(job_id: str = "job", **given: Any) -> JobPlan:
    """A job's plan from its knobs; `tokens_per_tree_max`, `deadline_ms`, `checker` and its models are the plan's own."""
    names = ("tokens_per_tree_max", "steps_per_tree_max", "deadline_ms", "checker", "generators", "verifiers")
    own = {name: given.pop(name) for name in names if name in given}
    knobs = Knobs.fill({"max_steps": 4, "max_step_tokens": 6, **given})
    return JobPlan(
        job_id=job_id,
        policy=knobs.build(),
        params=StepParams(knobs["temperature"], knobs["top_p"], knobs["max_step_tokens"], "\n"),
        aggregate=knobs["aggregate"],
        answer=knobs["answer"],
        cut=knobs["cut"],
        extract=knobs.extract(),
        compare=knobs["compare"],
        tolerance=knobs["tolerance"],
        **{"checker": "", "generators": (Generator("generator"),), "verifiers": (fakes.ALONE,), **own},
    )


def chains(policy: str, count: int) -> dict[str, Any]:
    """The knob that makes a policy write about so many chains in a tree; iterations may be of one step each."""
    return {"n": count} if "n" in defaults_of(policy) else {"iterations": 2 * count}


@dataclass
class World:
    """See the module."""

    works: Sequence[Work]
    weather: Weather = CALM
    seed: int = 0
    doomed: Callable[[int], bool] = lambda node_id: False  # nodes that every engine loses
    watch: Callable[["World", list[Event]], None] = lambda world, events: None  # called after every `handle`
    limits: ShardLimits = field(default_factory=lambda: ShardLimits(flush_ms=FLUSH_MS, snapshot_steps_min=BY_CHANCE))
    _pending: list[tuple[int, float, Event | Write]] = field(init=False, default_factory=list)  # a heap, by due time

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        if self.limits.snapshot_steps_min == BY_CHANCE:
            self.limits = replace(self.limits, snapshot_steps_min=random.Random(self.seed).randint(1, 8))
        self.now_ms = 1
        roots = [root_ids(work.seed, np.array(work.problems, np.int64)).tolist() for work in self.works]
        self.store = Store(
            {
                tree: root
                for work, each in zip(self.works, roots, strict=True)
                for tree, root in zip(work.trees, each, strict=True)
            }
        )
        self.open = [tree for work in self.works for tree in work.trees]  # neither answered nor cancelled
        self.chains: dict[Name, list[int]] = {}  # tokens that each dispatched step was to continue
        self.asked: dict[Name, StepsLost] = {}  # what the loss of each dispatched step would be
        self.tries: Counter[Name] = Counter()  # dispatches of each step in all lives
        self.lives: list[list[list[Event]]] = []  # what each shard was fed, call by call
        self.losses: Counter[Name] = Counter()
        self.commits = 0
        self._begin()

    def __repr__(self) -> str:
        works = [work.plan for work in self.works]
        return f"World(seed={self.seed}, weather={self.weather}, works={works}) at commit {commit()}"

    def run(self) -> "World":
        """Go on until every tree has ended."""
        for _ in range(TURNS_MAX):
            if not self.open:
                return self
            self.turn()
        raise AssertionError(f"{len(self.open)} trees are open after {TURNS_MAX} turns: {self!r}")

    def turn(self) -> None:
        """Let time pass until something is due, and feed it to the shard."""
        due = self._pending[0][0] if self._pending else self.now_ms + FLUSH_MS
        self.now_ms = max(self.now_ms + 1, min(due, self.now_ms + FLUSH_MS))
        events: list[Event] = []
        while self._pending and self._pending[0][0] <= self.now_ms:
            what = heapq.heappop(self._pending)[2]
            if not isinstance(what, Write):
                events.append(what)
            elif not self._write(what.commit):
                return
        self.feed([*events, Tick(self.now_ms)])
        if self.chance.random() < self.weather.crash and len(self.lives) < LIVES_MAX:
            self._begin()

    def feed(self, events: list[Event]) -> None:
        """Have the shard handle events, and all that the journal answers to what it then wants."""
        while events:
            self.lives[-1].append(events)
            found = self.shard.handle(events)
            self.shard.forest.validate()
            laws.check_budgets(self.shard)
            self.watch(self, events)
            rest, events = self.journal.answer(found, self.shard.growing)
            for command in rest:
                self._carry_out(command)

    def cancel(self, work: Work) -> None:
        """Give a job up; it is not admitted any more."""
        self._pending = [each for each in self._pending if getattr(each[2], "plan", None) != work.plan]
        heapq.heapify(self._pending)
        self.open = [tree for tree in self.open if tree not in work.trees]
        self.store.gone.update(tree for tree in work.trees if tree not in self.store.results)
        self.feed([JobCancelled(work.plan.job_id)])

    def later(self, what: Event | Write) -> None:
        """It happens after a while."""
        due = self.now_ms + self.chance.randint(1, self.weather.delay_ms_max)
        heapq.heappush(self._pending, (due, self.chance.random(), what))

    # --- lives ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The process starts, again: what was not committed is gone, and so is all that was under way."""
        self._pending = []
        recovered = self.recovered = self.store.recover()
        self.shard, self.journal = Shard(self.limits), Journal(recovered.journal)
        self.lives.append([])
        admissible = {*self.open} - recovered.trees
        for work in self.works:
            self.feed([TreesRestored(work.plan, part) for part in recovered.parts.get(work.plan.job_id, [])])
            waiting = [problem for problem, tree in zip(work.problems, work.trees, strict=True) if tree in admissible]
            while waiting:
                size = self.chance.randint(1, len(waiting)) if self.weather.delay_ms_max > 1 else len(waiting)
                self.later(admitted(work, waiting[:size]))
                waiting = waiting[size:]

    def _write(self, commit: Commit) -> bool:
        """Make a commit durable; False if the process dies of it."""
        self.commits += 1
        if self.weather.crash_at == (self.commits, "before"):
            self._begin()
            return False
        self.store.apply(commit)
        self.open = [tree for tree in self.open if tree not in self.store.results]
        if self.weather.crash_at == (self.commits, "after"):
            self._begin()
            return False
        self._send(Committed(commit.sequence))
        return True

    # --- commands ---------------------------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        match command:
            case Generate():
                self._generate(command)
            case Score():
                answer = partial(fakes.scored, verifiers=command.plan.verifiers)
                for part in self._parts(len(command.chains.length)):
                    part, gone = self._lose(part, command.chains.tree_id, command.chains.node_id)
                    self._answer(answer, fakes.lost, command.chains, part, gone)
            case Withdraw():
                self._withdraw(command)
            case Compare():
                self._send(fakes.grouped(command))
            case Check():
                for part in self._parts(len(command.chains.length)):
                    self._send(fakes.checked(command.chains, part))
            case Commit():
                self.later(Write(command))

    def _generate(self, command: Generate) -> None:
        assert (np.diff(command.group) >= 0).all(), "groups ascend"
        writers = {command.plan.generators[at].model for at in command.plan.writers(command.node_id).tolist()}
        assert writers == {command.generator}, "a step is one model's"
        assert np.array_equal(np.unique(command.group), np.arange(len(command.offsets) - 1)), "every chain is continued"
        names = list(zip(command.tree_id.tolist(), command.node_id.tolist(), strict=True))
        for at, (name, group) in enumerate(zip(names, command.group.tolist(), strict=True)):
            assert name not in self.store.steps, f"{name} is committed and yet dispatched again: {self!r}"
            start, end = command.offsets[group : group + 2].tolist()
            chain = command.tokens[start:end].tolist()
            assert self.chains.setdefault(name, chain) == chain, "a step continues the same chain in every life"
            self.asked[name] = fakes.lost(command, np.array([at], np.int64))
            self.tries[name] += 1
        for part in self._parts(len(names)):
            part, gone = self._lose(part, command.tree_id, command.node_id)
            self._answer(fakes.sampled, fakes.lost, command, part, gone)

    def _withdraw(self, command: Withdraw) -> None:
        """Some of what is withdrawn has not begun: instead of its answer comes its loss."""
        wanted = [*zip(command.tree_id.tolist(), command.node_id.tolist(), strict=True)]
        gone = [name for name in wanted if self.chance.random() < self.weather.withdraw]
        dropped: dict[Name, None] = {}
        for at, (due, tie, event) in enumerate(self._pending):
            if isinstance(event, StepsSampled):
                names = [*zip(event.tree_id.tolist(), event.node_id.tolist(), strict=True)]
                self._pending[at] = due, tie, fakes.some(event, np.array([name not in gone for name in names], np.bool_))
                dropped |= dict.fromkeys(name for name in names if name in gone)
        for name in dropped:
            self._send(self.asked[name])

    def _parts(self, size: int) -> list[fakes.Index]:
        """Rows in any order, cut to batches."""
        rows = list(range(size))
        if self.weather.batch_max < size:
            self.chance.shuffle(rows)
        most = self.weather.batch_max
        return [np.array(rows[at : at + most], np.int64) for at in range(0, size, most)]

    def _lose(self, part: fakes.Index, tree_id: Any, node_id: Any) -> tuple[fakes.Index, fakes.Index]:
        """Rows that are answered, and those that are not."""
        gone: list[int] = []
        for at in part.tolist():
            name = int(tree_id[at]), int(node_id[at])
            by_chance = self.chance.random() < self.weather.lose and self.losses[name] < LOSSES_MAX
            if self.doomed(name[1]) or by_chance:
                self.losses[name] += 1
                gone.append(at)
        return part[~np.isin(part, gone)], np.array(gone, np.int64)

    def _answer(self, answer: Any, lose: Any, asked: Any, part: fakes.Index, gone: fakes.Index) -> None:
        if len(part):
            self._send(answer(asked, part))
        if len(gone):
            self._send(lose(asked, gone))
            if self.chance.random() < self.weather.late:
                self._send(answer(asked, gone))

    def _send(self, event: Event) -> None:
        self.later(event)
        if self.chance.random() < self.weather.duplicate:
            self.later(event)

    # --- laws -------------------------------------------------------------------------------------------------------

    def check_ended(self) -> None:
        """What must be true of the store when every tree has its result."""
        laws.check_ended(self.store, self.works)
        prompts = {tree: prompt(problem) for work in self.works for tree, problem in zip(work.trees, work.problems, strict=True)}
        laws.check_chains(self.store, self.chains, prompts)

    def outcome(self) -> tuple[dict[int, Any], dict[Name, Step]]:
        """Results and trees, comparable."""
        return laws.outcome(self.store)


def prompt(problem: int) -> list[int]:
    """Tokens of a problem."""
    return [1000 + problem, 7]


def admitted(work: Work, problems: Sequence[int]) -> TreesAdmitted:
    """The event that brings some of a job's problems."""
    index = np.array(problems, np.int64)
    texts = [f"problem {problem}".encode() for problem in problems]
    return TreesAdmitted(
        plan=work.plan,
        tree_id=tree_ids(work.plan.job_id, index),
        problem=index,
        root_id=root_ids(work.seed, index),
        tokens=fakes.i32([token for problem in problems for token in prompt(problem)]),
        token_count=fakes.i32([len(prompt(problem)) for problem in problems]),
        text=np.frombuffer(b"".join(texts), np.uint8),
        text_count=fakes.i32([len(text) for text in texts]),
    )


def counts_again(event: Event) -> bool:
    """Events of which each counts, however often it comes: what was not due at the first may be due at the second."""
    return isinstance(event, Tick)
