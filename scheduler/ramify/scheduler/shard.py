"""The shard: the state machine that grows many trees. `handle(events) -> commands`, and nothing else.

It is pure: no clock, no randomness, no I/O. Time arrives as a `Tick`, samples and scores as events; whatever it wants done it
returns. Feeding it the same events gives the same commands, on every machine. Events may come late, twice or not at all: an event
about a node that does not wait for it changes nothing; one that cannot be (a score before its step) raises `IllegalEvent`, and
changes nothing either.

    TreesAdmitted ─▶ OPEN root ─ policy ─▶ Generate ─▶ StepsSampled ─▶ Score ─▶ StepsScored ─▶ OPEN ─ policy ─▶ ...
                                    └─▶ finished tree ─▶ Check ─▶ AnswersChecked ─▶ Commit ─▶ Committed ─▶ rows are freed
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler import commands, commits
from ramify.scheduler.commands import Command
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.errors import IllegalEvent
from ramify.scheduler.events import (
    AnswersChecked,
    Committed,
    Event,
    JobCancelled,
    StepsLost,
    StepsSampled,
    StepsScored,
    Tick,
    TreesAdmitted,
    holds,
    same_length,
)
from ramify.scheduler.forest.forest import Dirty, Forest, Status, TreeStatus
from ramify.scheduler.forest.ids import node_codes, sibling_codes
from ramify.scheduler.forest.segments import Mask, Rows, segment_lengths, segment_starts
from ramify.scheduler.forest.table import select
from ramify.scheduler.plan import UNBOUNDED, JobPlan, Outcome, Verdict
from ramify.scheduler.policies.answers import choose

NO_ANSWER = "no chain came to an end by itself: raise max_steps, max_step_tokens or the budget"
COMPACT_MIN = 4096  # rows below which freeing is not worth its cost


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """Bounds of a shard."""

    flush_ms: int = 100  # a commit is due this long after the last one
    tries_max: int = 5  # times a node may be lost before its chain is given up


class Shard:
    """See the module."""

    def __init__(self, limits: ShardLimits | None = None) -> None:
        self.limits = limits or ShardLimits()
        self.forest = Forest()
        self.plans: list[JobPlan] = []
        self.messages: dict[int, str] = {}  # tree_id: the first thing that went wrong in a growing tree
        self._touched: list[Rows] = []  # trees that an event of this call has reached
        self._rows_kept = 0  # rows after the last compaction
        self._sequence = 0
        self._committing = False
        self._flushed_ms = 0
        self._apply: dict[type[Event], Callable[[Any], list[Command]]] = {
            TreesAdmitted: self._admit,
            StepsSampled: self._sampled,
            StepsScored: self._scored,
            StepsLost: self._lost,
            AnswersChecked: self._checked,
            Committed: self._committed,
            JobCancelled: self._cancel,
            Tick: self._tick,
        }

    @property
    def live_trees(self) -> int:
        """Trees that are admitted and not yet committed or cancelled."""
        return int((self.forest.trees.status[: self.forest.trees.size] != TreeStatus.FREE).sum())

    def handle(self, events: Sequence[Event]) -> list[Command]:
        """Take events in order and say what is to be done next.

        Raises:
            IllegalEvent: of the first event that cannot be; it and those after it have changed nothing.
        """
        found: list[Command] = []
        try:
            for event in events:
                found += self._apply[type(event)](event)
        finally:
            found += self._advance()
        self._compact()
        return found

    # --- events -----------------------------------------------------------------------------------------------------

    def _admit(self, event: TreesAdmitted) -> list[Command]:
        same_length(event.tree_id, event.problem, event.root_id, event.token_count, event.text_count)
        holds(event.tokens, event.token_count)
        holds(event.text, event.text_count)
        if (event.token_count < 1).any() or len(np.unique(event.tree_id)) < len(event.tree_id):
            raise IllegalEvent("TreesAdmitted holds an empty prompt, or a tree twice")
        known = self.forest.trees.tree_id[: self.forest.trees.size]
        new = ~np.isin(event.tree_id, known)
        trees = self.forest.admit(
            self._plan_index(event.plan),
            event.tree_id[new],
            event.problem[new],
            event.root_id[new],
            select(event.tokens, event.token_count, new),
            event.token_count[new],
            select(event.text, event.text_count, new),
            event.text_count[new],
        )
        self._touched.append(trees)
        return []

    def _plan_index(self, plan: JobPlan) -> int:
        for index, known in enumerate(self.plans):
            if known.job_id == plan.job_id:
                return index
        self.plans.append(plan)
        return len(self.plans) - 1

    def _sampled(self, event: StepsSampled) -> list[Command]:
        same_length(event.row, event.tree_id, event.node_id, event.token_count, event.text_count)
        same_length(event.row, event.logprob, event.finish, event.score)
        holds(event.tokens, event.token_count)
        holds(event.text, event.text_count)
        if not np.isin(event.finish, [*Finish]).all():
            raise IllegalEvent("StepsSampled.finish holds a number that is no Finish")
        forest = self.forest
        rows, new = self._waiting(event.row, event.tree_id, event.node_id, Status.SAMPLING)
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
        failed = forest.finish[rows] == Finish.ERROR
        self._give_up(rows[failed], event.message)
        needs = ~failed & np.isnan(forest.score[rows]) & self._is_scored(rows)
        forest.status[rows[needs]] = Status.SCORING
        self._open(rows[~failed & ~needs])
        return self._score(rows[needs])

    def _is_scored(self, rows: Rows) -> Mask:
        """`[R]` whether the policies of the nodes' trees want a score of them."""
        plan = self.forest.trees.plan[self.forest.tree[rows]]
        wanted = np.zeros(len(rows), np.bool_)
        for index in np.unique(plan).tolist():
            of_plan, policy = plan == index, self.plans[index].policy
            wanted[of_plan] = True if policy.scores == "step" else self.forest.ended(rows[of_plan], policy.max_steps)
        return wanted

    def _scored(self, event: StepsScored) -> list[Command]:
        same_length(event.row, event.tree_id, event.node_id, event.length)
        holds(event.scores, event.length)
        if not (event.length > 0).all():
            raise IllegalEvent("StepsScored holds a chain without scores; an unscorable chain has NaN")
        forest = self.forest
        rows, known = forest.locate(event.row, event.tree_id, event.node_id)
        if (forest.status[rows] == Status.SAMPLING).any():
            raise IllegalEvent("StepsScored scores a node that is not sampled yet")
        if (forest.depth[rows] != event.length[known]).any():
            raise IllegalEvent("StepsScored has not one score for each step of a chain")
        rows, new = self._waiting(event.row, event.tree_id, event.node_id, Status.SCORING)
        path, _ = forest.paths(rows)
        scores = select(event.scores, event.length, new)
        unscored = np.isnan(forest.score[path]) & ~np.isnan(scores)
        path, first = np.unique(path[unscored], return_index=True)  # a step shared by chains is scored once
        forest.score[path] = scores[unscored][first]
        last = np.cumsum(event.length[new]) - 1
        failed = np.isnan(scores[last])
        self._score_changed(path)
        self._unscorable(rows[failed], event.message)
        self._open(rows[~failed])
        return []

    def _lost(self, event: StepsLost) -> list[Command]:
        same_length(event.row, event.tree_id, event.node_id)
        forest = self.forest
        rows, _ = forest.locate(event.row, event.tree_id, event.node_id)
        rows = np.unique(rows[np.isin(forest.status[rows], (Status.SAMPLING, Status.SCORING)) & self._growing(rows)])
        forest.tries[rows] += 1
        over, sampling = forest.tries[rows] >= self.limits.tries_max, forest.status[rows] == Status.SAMPLING
        message = f"lost {self.limits.tries_max} times: {event.message}"
        self._unsampleable(rows[over & sampling], message)
        self._unscorable(rows[over & ~sampling], message)
        return self._generate(rows[~over & sampling]) + self._score(rows[~over & ~sampling])

    def _checked(self, event: AnswersChecked) -> list[Command]:
        same_length(event.tree_id, event.verdict)
        if not np.isin(event.verdict, [*Verdict]).all():
            raise IllegalEvent("AnswersChecked.verdict holds a number that is no Verdict")
        trees = self.forest.trees
        order = np.argsort(trees.tree_id[: trees.size])
        place = np.searchsorted(trees.tree_id[order], event.tree_id)
        at = order[np.minimum(place, len(order) - 1)] if len(order) else np.empty(0, np.int64)
        waits = (trees.tree_id[at] == event.tree_id[: len(at)]) & (trees.status[at] == TreeStatus.CHECKING)
        trees.verdict[at[waits]] = event.verdict[: len(at)][waits]
        trees.status[at[waits]] = TreeStatus.FINISHED
        return []

    def _committed(self, event: Committed) -> list[Command]:
        if event.sequence > self._sequence:
            raise IllegalEvent(f"Committed {event.sequence}, but the last commit was {self._sequence}")
        if event.sequence < self._sequence or not self._committing:
            return []
        forest, trees = self.forest, self.forest.trees
        forest.dirty[: forest.size] &= 0xFF ^ Dirty.COMMITTING
        done = np.flatnonzero(trees.status[: trees.size] == TreeStatus.COMMITTING)
        trees.status[done] = TreeStatus.FREE
        for tree_id in trees.tree_id[done].tolist():
            self.messages.pop(tree_id, None)
        self._committing = False
        return []

    def _cancel(self, event: JobCancelled) -> list[Command]:
        trees = self.forest.trees
        for index, plan in enumerate(self.plans):
            if plan.job_id == event.job_id:
                mine = (trees.plan[: trees.size] == index) & (trees.status[: trees.size] != TreeStatus.COMMITTING)
                trees.status[: trees.size][mine] = TreeStatus.FREE
                for tree_id in trees.tree_id[: trees.size][mine].tolist():
                    self.messages.pop(tree_id, None)
        return []

    def _tick(self, event: Tick) -> list[Command]:
        trees, found = self.forest.trees, list[Command]()
        for index, plan in enumerate(self.plans):
            if plan.deadline_ms <= event.now_ms:
                mine = (trees.plan[: trees.size] == index) & (trees.status[: trees.size] == TreeStatus.GROWING)
                late = np.flatnonzero(mine).astype(np.int32)
                trees.outcome[late] = Outcome.BUDGET
                found += self._finish(plan, late)
        if self._committing or event.now_ms < self._flushed_ms + self.limits.flush_ms:
            return found
        commit = commits.collect(self.forest, self.plans, self.messages, self._sequence + 1)
        if commit is None:
            return found
        self._sequence, self._committing, self._flushed_ms = self._sequence + 1, True, event.now_ms
        return [*found, commit]

    # --- decisions --------------------------------------------------------------------------------------------------

    def _advance(self) -> list[Command]:
        """Ask the policies about every tree that an event has reached."""
        trees = self.forest.trees
        touched = np.unique(np.concatenate([*self._touched, np.empty(0, np.int32)])).astype(np.int32)
        self._touched.clear()
        touched = touched[trees.status[touched] == TreeStatus.GROWING]
        found: list[Command] = []
        plan_of = trees.plan[touched]
        for index in np.unique(plan_of).tolist():
            plan, mine = self.plans[index], touched[plan_of == index]
            # A budget is divided in the order of the moves, which must not depend on the order of arrival.
            if plan.policy.barrier == "level" or plan.tokens_per_tree_max < UNBOUNDED:
                mine = mine[trees.outstanding[mine] == 0]
            if len(mine):
                found += self._move(plan, mine)
        return found

    def _move(self, plan: JobPlan, trees: Rows) -> list[Command]:
        """Have the policy decide about `trees`, sorted, and carry its moves out."""
        forest = self.forest
        moves = plan.policy.advance(forest, trees)
        forest.status[moves.prune] = Status.PRUNED
        forest.status[moves.retire] = Status.RETIRED
        expand, count, broke = self._afford(plan, moves.expand, moves.count)
        children = forest.expand(expand, count)
        return self._generate(children) + self._finish(plan, np.union1d(moves.finish, broke).astype(np.int32))

    def _afford(self, plan: JobPlan, expand: Rows, count: Rows) -> tuple[Rows, Rows, Rows]:
        """Cut expansions to what each tree's budget bears, the best first; also the trees that can't go on."""
        if plan.tokens_per_tree_max >= UNBOUNDED or not len(expand):
            return expand, count, expand[:0]
        trees = self.forest.trees
        tree = self.forest.tree[expand]
        steps = (plan.tokens_per_tree_max - trees.spent[tree]) // plan.params.max_step_tokens
        running = np.cumsum(count) - count
        before = running - np.repeat(running[segment_starts(tree)], segment_lengths(tree))
        granted = np.clip(steps - before, 0, count).astype(np.int32)
        trees.outcome[tree[granted < count]] = Outcome.BUDGET
        self.forest.status[expand[granted == 0]] = Status.PRUNED
        some = granted > 0
        return expand[some], granted[some], np.setdiff1d(tree, tree[some])

    def _finish(self, plan: JobPlan, trees: Rows) -> list[Command]:
        """Collapse `trees`, sorted, to their answers."""
        if not len(trees):
            return []
        forest, t = self.forest, self.forest.trees
        best, score = choose(forest, trees, plan.answer, plan.aggregate)
        answered = forest.tree[best]
        t.best[answered], t.best_score[answered] = best, score
        t.status[trees] = TreeStatus.FINISHED
        none = np.setdiff1d(trees, answered)
        in_time = t.outcome[trees] != Outcome.BUDGET
        t.outcome[trees[in_time]] = Outcome.ANSWERED
        t.outcome[none[t.outcome[none] == Outcome.ANSWERED]] = Outcome.FAILED
        for tree in none.tolist():
            self.messages.setdefault(int(t.tree_id[tree]), NO_ANSWER)
        if not plan.checker or not len(best):
            return []
        t.status[answered] = TreeStatus.CHECKING
        return [commands.Check(plan, commands.Chains.of(forest, best))]

    # --- commands ---------------------------------------------------------------------------------------------------

    def _generate(self, rows: Rows) -> list[Command]:
        """Commands to sample `rows`, one for each job."""
        forest, found = self.forest, list[Command]()
        rows = rows[np.argsort(forest.parent[rows], kind="stable")]
        for plan, mine in self._by_plan(rows):
            parents, group = np.unique(forest.parent[mine], return_inverse=True)
            tokens, offsets = forest.chain_tokens(parents)
            tree_id, node_id = forest.trees.tree_id[forest.tree[mine]], forest.node_id[mine]
            parent_id, index = forest.node_id[forest.parent[mine]], forest.child_index[mine]
            code = sibling_codes(parent_id, index) if plan.spread_siblings else node_codes(node_id)
            found.append(commands.Generate(plan, tokens, offsets, group.astype(np.int32), mine, tree_id, node_id, code))
        return found

    def _score(self, rows: Rows) -> list[Command]:
        """Commands to score the chains that end in `rows`, one for each job."""
        return [commands.Score(plan, commands.Chains.of(self.forest, mine)) for plan, mine in self._by_plan(rows)]

    def _by_plan(self, rows: Rows) -> list[tuple[JobPlan, Rows]]:
        plan = self.forest.trees.plan[self.forest.tree[rows]]
        return [(self.plans[index], rows[plan == index]) for index in np.unique(plan).tolist()]

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _growing(self, rows: Rows) -> Mask:
        return np.equal(self.forest.trees.status[self.forest.tree[rows]], TreeStatus.GROWING)

    def _waiting(
        self, hint: Rows, tree_id: NDArray[np.uint64], node_id: NDArray[np.uint64], status: Status
    ) -> tuple[Rows, NDArray[np.int64]]:
        """Like `Forest.locate`, of the nodes of growing trees in `status` alone, each of them once."""
        rows, named = self.forest.locate(hint, tree_id, node_id)
        waits = (self.forest.status[rows] == status) & self._growing(rows)
        rows, named = rows[waits], named[waits]
        _, first = np.unique(rows, return_index=True)
        first.sort()
        return rows[first], named[first]

    def _open(self, rows: Rows) -> None:
        """The nodes have all that the policy needs: it may decide about them."""
        self.forest.status[rows] = Status.OPEN
        self._landed(rows)

    def _give_up(self, rows: Rows, message: str) -> None:
        """The nodes' chains are given up by a fault."""
        self.forest.status[rows] = Status.PRUNED
        self._landed(rows)
        for tree_id in self.forest.trees.tree_id[self.forest.tree[rows]].tolist():
            self.messages.setdefault(tree_id, message)

    def _unsampleable(self, rows: Rows, message: str) -> None:
        """No engine yields these steps: they become empty ones, the same that a replay would fill in."""
        none, count = np.empty(0, np.int32), np.zeros(len(rows), np.int32)
        error = np.full(len(rows), Finish.ERROR, np.uint8)
        self.forest.fill(rows, none, count, none.astype(np.uint8), count, np.zeros(len(rows), np.float32), error)
        self.forest.dirty[rows] = Dirty.NODE
        self._give_up(rows, message)

    def _unscorable(self, rows: Rows, message: str) -> None:
        """The verifier has no score for the chains that end in these nodes."""
        self.forest.finish[rows] = Finish.ERROR
        self._score_changed(rows)
        self._give_up(rows, message)

    def _score_changed(self, rows: Rows) -> None:
        """A step that is not written yet takes its score along; one that is must not be written, and paid, again."""
        unwritten = self.forest.dirty[rows] & Dirty.NODE
        self.forest.dirty[rows] |= np.where(unwritten, 0, Dirty.SCORE).astype(np.uint8)

    def _landed(self, rows: Rows) -> None:
        np.subtract.at(self.forest.trees.outstanding, self.forest.tree[rows], 1)
        self._touched.append(np.unique(self.forest.tree[rows]))

    def _compact(self) -> None:
        if self.forest.size < max(COMPACT_MIN, 2 * self._rows_kept):
            return
        self.forest.compact()
        self._rows_kept = self.forest.size
        used, plan = np.unique(self.forest.trees.plan[: self.forest.trees.size], return_inverse=True)
        self.plans = [self.plans[index] for index in used.tolist()]
        self.forest.trees.plan[: self.forest.trees.size] = plan
