"""The shard: the state machine that grows many trees. `handle(events) -> commands`, and nothing else.

It is pure: no clock, no randomness, no I/O. Time arrives as a `Tick`, samples and scores as events; whatever it wants done it
returns. Feeding it the same events gives the same commands, on every machine. Events may come late, twice or not at all: an event
about a node that does not wait for it changes nothing; one that cannot be (a score before its step) raises `IllegalEvent`, and
changes nothing either.

    TreesAdmitted ─▶ OPEN root ─ policy ─▶ Generate ─▶ StepsSampled ─▶ Score ─▶ StepsScored ─▶ OPEN ─ policy ─▶ ...
                        └─▶ finished tree ─▶ Compare ─▶ Check ─▶ Commit ─▶ Committed ─▶ rows are freed
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler import collapse, commits
from ramify.scheduler.asking import Asking
from ramify.scheduler.commands import Command
from ramify.scheduler.deciding import Deciding
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.events import (
    AnswersChecked,
    AnswersGrouped,
    Committed,
    Event,
    JobCancelled,
    SlotsReleased,
    StepsLost,
    StepsSampled,
    StepsScored,
    Tick,
    TreesAdmitted,
    TreesRestored,
    holds,
    same_length,
)
from ramify.scheduler.forest.columns import Dirty, Status, TreeStatus
from ramify.scheduler.forest.forest import Forest, Hints
from ramify.scheduler.forest.parts import graft, some_trees
from ramify.scheduler.forest.segments import Mask, Rows
from ramify.scheduler.forest.table import select
from ramify.scheduler.landing import Landing
from ramify.scheduler.plan import JobPlan, Outcome, Verdict
from ramify.scheduler.slots import in_slots
from ramify.scheduler.snapshots import Snapshots, resume

COMPACT_MIN = 4096  # rows below which freeing is not worth its cost
DEAD_SHARE = 4  # it is where one row in so many is dead
FINISHES = np.array([*Finish], np.uint8)
GROWTH = 1.25  # else it is looked at again when there are so many times more


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """Bounds of a shard."""

    flush_ms: int = 100  # a commit is due this long after the last one
    tries_max: int = 5  # times a node may be lost before its chain is given up
    nodes_per_tree_max: int = 1_000_000  # steps that one tree may ask for; beyond, it fails
    snapshot_steps_min: int = 4096  # committed steps of a slot that are worth a snapshot


class Shard:
    """See the module."""

    def __init__(self, limits: ShardLimits | None = None) -> None:
        self.limits = limits or ShardLimits()
        self.forest = Forest()
        self.plans: list[JobPlan] = []
        self.messages: dict[int, str] = {}  # tree_id: the first thing that went wrong in a growing tree
        self._landing = Landing(self.forest, self.messages)
        self._asking = Asking(self.forest, self.plans)
        limits = self.limits
        self._deciding = Deciding(self.forest, self._landing, self._asking, self.messages, limits.nodes_per_tree_max)
        self._compact_at = COMPACT_MIN  # rows at which to look whether freeing is worth it
        self._sequence = 0
        self._committing = False
        self._flushed_ms = 0
        self._releasing: tuple[int, ...] = ()  # slots that are given up with the next commit
        self._leaving = False  # the commit that is being written gives slots up
        self._retries = Counter[str]()  # by job, since the last commit that told of it
        self._snapshots = Snapshots(self.limits.snapshot_steps_min)
        self._apply: dict[type[Event], Callable[[Any], list[Command]]] = {
            TreesAdmitted: self._admit,
            TreesRestored: self._restore,
            SlotsReleased: self._release,
            StepsSampled: self._sampled,
            StepsScored: self._scored,
            StepsLost: self._lost,
            AnswersGrouped: self._grouped,
            AnswersChecked: self._checked,
            Committed: self._committed,
            JobCancelled: self._cancel,
            Tick: self._tick,
        }

    @property
    def live_trees(self) -> int:
        """Trees that are admitted and not yet committed or cancelled."""
        return int((self.forest.trees.status[: self.forest.trees.size] != TreeStatus.FREE).sum())

    @property
    def live_chains(self) -> int:
        """Nodes of growing trees that are in flight or in the frontier."""
        forest, trees = self.forest, self.forest.trees
        rows = np.flatnonzero(forest.status[: forest.size] <= Status.OPEN)
        return int((trees.status[forest.tree[rows]] == TreeStatus.GROWING).sum())

    def growing(self, tree_id: NDArray[np.uint64]) -> tuple[Mask, NDArray[np.int32]]:
        """`[R]` whether each of the trees `[R]` is here and grows, and the decision that waits for its answers to be compared.

        A decision is told by its number; 0 where none waits.
        """
        t = self.forest.trees
        trees, known = t.find(tree_id)
        grows, waits = np.zeros(len(tree_id), np.bool_), np.zeros(len(tree_id), np.int32)
        grows[known] = t.status[trees] == TreeStatus.GROWING
        waits[known] = np.where(t.comparing[trees], t.turn[trees] + 1, 0)
        return grows, np.where(grows, waits, np.int32(0))

    def handle(self, events: Sequence[Event]) -> list[Command]:
        """Take events in order and say what is to be done next.

        Raises:
            IllegalEvent: of the first event that cannot be; it and those after it have changed nothing. What those before it
                lead to is in the error's `commands`.
        """
        found: list[Command] = []
        try:
            for event in events:
                found += self._apply[type(event)](event)
        except IllegalEvent as error:
            error.commands = [*found, *self._deciding.advance()]
            raise
        found += self._deciding.advance()
        self._compact()
        return found

    # --- events -----------------------------------------------------------------------------------------------------

    def _admit(self, event: TreesAdmitted) -> list[Command]:
        same_length(event.tree_id, event.problem, event.root_id, event.token_count, event.text_count)
        holds(event.tokens, event.token_count)
        holds(event.text, event.text_count)
        if (event.token_count < 1).any() or len(np.unique(event.tree_id)) < len(event.tree_id):
            raise IllegalEvent("TreesAdmitted holds an empty prompt, or a tree twice")
        new = np.ones(len(event.tree_id), np.bool_)
        new[self.forest.trees.find(event.tree_id)[1]] = False
        trees = self.forest.admit(
            self._plan_index(event.plan),
            event.tree_id[new],
            event.problem[new],
            event.root_id[new],
            select(event.tokens, event.token_count, new),
            event.token_count[new],
            select(event.text, event.text_count, new),
            event.text_count[new],
            whole=event.plan.policy.whole,
        )
        self._landing.touched.append(trees)
        return []

    def _restore(self, event: TreesRestored) -> list[Command]:
        part = event.part
        new = np.ones(len(part), np.bool_)
        new[self.forest.trees.find(part.trees["tree_id"])[1]] = False
        part = some_trees(part, new)
        trees = graft(self.forest, part, self._plan_index(event.plan))
        self.messages.update(part.messages)
        found = resume(self.forest, event.plan, trees)
        self._landing.touched.append(trees[self.forest.trees.outstanding[trees] == 0])
        return found

    def _release(self, event: SlotsReleased) -> list[Command]:
        self._releasing = tuple(sorted({*self._releasing, *event.slots}))
        return []

    def _plan_index(self, plan: JobPlan) -> int:
        for index, known in enumerate(self.plans):
            if known.job_id == plan.job_id:
                return index
        self.plans.append(plan)
        return len(self.plans) - 1

    def _sampled(self, event: StepsSampled) -> list[Command]:
        same_length(event.hint, event.tree_id, event.node_id, event.token_count, event.text_count)
        same_length(event.hint, event.logprob, event.finish, event.score, event.hint if event.turn is None else event.turn)
        holds(event.tokens, event.token_count)
        holds(event.text, event.text_count)
        if not np.isin(event.finish, FINISHES).all():
            raise IllegalEvent("StepsSampled.finish holds a number that is no Finish")
        forest = self.forest
        rows, new = self._waiting(event.hint, event.tree_id, event.node_id, Status.SAMPLING)
        forest.fill(
            rows,
            select(event.tokens, event.token_count, new),
            event.token_count[new],
            select(event.text, event.text_count, new),
            event.text_count[new],
            event.logprob[new],
            event.finish[new],
        )
        forest.score[rows] = event.score[new]
        forest.dirty[rows] = 0 if event.committed else Dirty.NODE
        unlanded = rows[:0]
        if event.turn is not None:  # decisions go on being counted where they were, also those that no step is left of
            np.maximum.at(forest.trees.turn, forest.tree[rows], event.turn[new] - 1)
            unlanded = rows[event.turn[new] == 0]  # the verifier had them: they land when it answers, as in every other replay
        rows = self._landing.refuse_long(rows, self._step_tokens_max(rows))
        failed = forest.finish[rows] == Finish.ERROR
        self._landing.give_up(rows[failed], event.message)
        rows = self._landing.drop_unwanted(rows[~failed], unlanded)
        needs = np.isnan(forest.score[rows]) & self._is_scored(rows)
        forest.status[rows[needs]] = Status.SCORING
        self._landing.open(rows[~needs])
        return self._asking.score(rows[needs])

    def _step_tokens_max(self, rows: Rows) -> NDArray[np.int64]:
        """`[R]` the most tokens that each of the nodes `rows` `[R]` may have."""
        return np.array([plan.params.max_step_tokens for plan in self.plans], np.int64)[self._asking.plan_of(rows)]

    def _is_scored(self, rows: Rows) -> Mask:
        """`[R]` whether the policies of the nodes' trees want a score of them."""
        plan = self._asking.plan_of(rows)
        wanted = np.zeros(len(rows), np.bool_)
        for index in np.flatnonzero(np.bincount(plan)).tolist():
            of_plan, policy = plan == index, self.plans[index].policy
            wanted[of_plan] = True if policy.scores == "step" else self.forest.ended(rows[of_plan], policy.max_steps)
        return wanted

    def _scored(self, event: StepsScored) -> list[Command]:
        same_length(event.hint, event.tree_id, event.node_id, event.length)
        holds(event.scores, event.length)
        if not (event.length > 0).all():
            raise IllegalEvent("StepsScored holds a chain without scores; an unscorable chain has NaN")
        forest = self.forest
        rows, known = forest.locate(event.hint, event.tree_id, event.node_id)
        if (forest.status[rows] == Status.SAMPLING).any():
            raise IllegalEvent("StepsScored scores a node that is not sampled yet")
        if (forest.depth[rows] != event.length[known]).any():
            raise IllegalEvent("StepsScored has not one score for each step of a chain")
        rows, new = self._once(rows, known, Status.SCORING)
        path, _ = forest.paths(rows)
        scores = select(event.scores, event.length, new)
        unscored = np.isnan(forest.score[path]) & ~np.isnan(scores)
        path, first = np.unique(path[unscored], return_index=True)  # a step shared by chains is scored once
        forest.score[path] = scores[unscored][first]
        failed = np.isnan(scores[np.cumsum(event.length[new]) - 1])
        self._landing.score_changed(path)
        self._landing.score_changed(rows)  # also where another chain has brought the score: the decision that knows it is new
        self._landing.unscorable(rows[failed], event.message)
        self._landing.open(self._landing.drop_unwanted(rows[~failed]))
        return []

    def _lost(self, event: StepsLost) -> list[Command]:
        same_length(event.hint, event.tree_id, event.node_id, event.attempt)
        forest = self.forest
        rows, known = forest.locate(event.hint, event.tree_id, event.node_id)
        waits = ((forest.status[rows] == Status.SAMPLING) | (forest.status[rows] == Status.SCORING)) & self._growing(rows)
        rows = np.unique(rows[waits & (forest.tries[rows] == event.attempt[known])]).astype(np.int32)
        rows = self._landing.drop_unwanted(rows)
        forest.tries[rows] += 1
        over, sampling = forest.tries[rows] >= self.limits.tries_max, forest.status[rows] == Status.SAMPLING
        message = f"lost {self.limits.tries_max} times: {event.message}"
        self._landing.unsampleable(rows[over & sampling], message)
        self._landing.unscorable(rows[over & ~sampling], message)
        for plan, again in self._asking.by_plan(rows[~over]):
            self._retries[plan.job_id] += len(again)
        return self._asking.generate(rows[~over & sampling]) + self._asking.score(rows[~over & ~sampling])

    def _grouped(self, event: AnswersGrouped) -> list[Command]:
        same_length(event.tree_id, event.node_id, event.group)
        trees, known = self.forest.trees.find(event.tree_id)
        waits = self.forest.trees.comparing[trees]
        trees, known = trees[waits], known[waits]
        collapse.assign(self.forest, trees, event.node_id[known], event.group[known])
        trees = np.unique(trees).astype(np.int32)
        self.forest.trees.comparing[trees] = False
        self._landing.touched.append(trees)
        ended = trees[self.forest.trees.status[trees] == TreeStatus.GROUPING]
        return [command for plan, mine in self._asking.trees_by_plan(ended) for command in collapse.vote(self.forest, plan, mine)]

    def _checked(self, event: AnswersChecked) -> list[Command]:
        same_length(event.tree_id, event.verdict)
        if not np.isin(event.verdict, [*Verdict]).all():
            raise IllegalEvent("AnswersChecked.verdict holds a number that is no Verdict")
        trees = self.forest.trees
        at, known = trees.find(event.tree_id)
        waits = trees.status[at] == TreeStatus.CHECKING
        trees.verdict[at[waits]] = event.verdict[known[waits]]
        trees.status[at[waits]] = TreeStatus.FINISHED
        return []

    def _committed(self, event: Committed) -> list[Command]:
        if event.sequence > self._sequence:
            raise IllegalEvent(f"Committed {event.sequence}, but the last commit was {self._sequence}")
        if event.sequence < self._sequence or not self._committing:
            return []
        forest, trees = self.forest, self.forest.trees
        forest.dirty[: forest.size] &= 0xFF ^ Dirty.COMMITTING
        self._free(np.flatnonzero(trees.status[: trees.size] == TreeStatus.COMMITTING))
        self._committing = False
        return self._part() if self._leaving else []

    def _part(self) -> list[Command]:
        """Forget the trees of slots that were given up: they may come back, and would be taken for known."""
        found, self._leaving = self._deciding.advance(), False  # what is to be decided about is kept by row
        self.forest.compact()
        return found

    def _cancel(self, event: JobCancelled) -> list[Command]:
        trees = self.forest.trees
        mine = np.array([plan.job_id == event.job_id for plan in self.plans], np.bool_)
        return self._give_up(mine[trees.plan[: trees.size]]) if mine.any() else []

    def _give_up(self, which: Mask) -> list[Command]:
        """Let go of the trees that `which` `[T]` marks, unless their result is being written."""
        t = self.forest.trees
        gone = which & (t.status[: t.size] != TreeStatus.COMMITTING) & (t.status[: t.size] != TreeStatus.FREE)
        rows = np.flatnonzero(self.forest.status[: self.forest.size] == Status.SAMPLING)
        found = self._asking.withdraw(rows[gone[self.forest.tree[rows]]].astype(np.int32))
        self._free(np.flatnonzero(gone))
        return found

    def _free(self, trees: NDArray[np.int64]) -> None:
        self.forest.trees.status[trees] = TreeStatus.FREE
        for tree_id in self.forest.trees.tree_id[trees].tolist():
            self.messages.pop(tree_id, None)

    def _tick(self, event: Tick) -> list[Command]:
        trees, found = self.forest.trees, list[Command]()
        for index, plan in enumerate(self.plans):
            if plan.deadline_ms <= event.now_ms:
                mine = (trees.plan[: trees.size] == index) & (trees.status[: trees.size] == TreeStatus.GROWING)
                late = np.flatnonzero(mine).astype(np.int32)
                trees.outcome[late] = Outcome.BUDGET
                found += self._deciding.finish(plan, late)
        due = event.now_ms >= self._flushed_ms + self.limits.flush_ms
        if self._committing or not (due or self._releasing):
            return found
        return [*found, *self._deciding.advance(), *self._flush(event.now_ms)]  # a snapshot holds what is decided, not half of it

    def _flush(self, now_ms: int) -> list[Command]:
        """The commit that is due, if there is anything to write or to release, and what follows from a release."""
        released, sequence = self._releasing, self._sequence + 1
        commit = commits.collect(self.forest, self.plans, self.messages, self._retries, sequence, always=bool(released))
        if commit is None:
            return []
        self._snapshots.count(commit.nodes)
        for slot in self._snapshots.due(released):
            commit.snapshots.append(self._snapshots.take(self.forest, self.plans, self.messages, slot))
        self._sequence, self._committing, self._flushed_ms, self._releasing = sequence, True, now_ms, ()
        if not released:
            return [commit]
        self._leaving = True
        trees = self.forest.trees
        return [replace(commit, released=released), *self._give_up(in_slots(trees.tree_id[: trees.size], released))]

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _growing(self, rows: Rows) -> Mask:
        return np.equal(self.forest.trees.status[self.forest.tree[rows]], TreeStatus.GROWING)

    def _waiting(
        self, hint: Hints, tree_id: NDArray[np.uint64], node_id: NDArray[np.uint64], status: int
    ) -> tuple[Rows, NDArray[np.int64]]:
        """Like `Forest.locate`, of the nodes of growing trees in `status` alone, each of them once."""
        return self._once(*self.forest.locate(hint, tree_id, node_id), status)

    def _once(self, rows: Rows, named: NDArray[np.int64], status: int) -> tuple[Rows, NDArray[np.int64]]:
        waits = (self.forest.status[rows] == status) & self._growing(rows)
        rows, named = rows[waits], named[waits]
        if not (rows[1:] > rows[:-1]).all():  # else nothing can be there twice
            first = np.sort(np.unique(rows, return_index=True)[1])
            rows, named = rows[first], named[first]
        return rows, named

    def _compact(self) -> None:
        """Free rows when the forest has grown much and much of it is dead."""
        forest = self.forest
        if forest.size < self._compact_at:
            return
        if forest.dead_rows() * DEAD_SHARE < forest.size:
            self._compact_at = int(GROWTH * forest.size)  # a look costs little, but not nothing
            return
        forest.compact()
        self._compact_at = max(COMPACT_MIN, 2 * forest.size)
        used, plan = np.unique(forest.trees.plan[: forest.trees.size], return_inverse=True)
        self.plans[:] = [self.plans[index] for index in used.tolist()]
        forest.trees.plan[: forest.trees.size] = plan
