"""What was committed before a restart, so that nothing of it is paid for twice.

A recovered shard starts its open trees from their roots, or from a snapshot, and takes the same decisions again; whatever it
wants sampled that the journal holds is answered from there at once. So recovery has no code path of its own in the shard. A
decision may depend on which steps had landed when it was taken: the journal knows for each step the decision that was the first
to know it, and hands a step out when the tree has come that far, so a replay can't decide otherwise than the first run did.

A journal grows with every slot that comes, and shrinks: a step is told once, and what a tree that has ended did not ask for
nobody will. When nothing is left it costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Command, Commit, Generate, NodeRows, Score, Snapshot, Withdraw
from ramify.scheduler.events import Event, StepsSampled
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.table import ranges, select
from ramify.scheduler.slots import in_slots

FORGET_TREES = 1024  # trees that have ended are looked for among the steps when there are so many
COMPACT_MIN = 4096  # steps below which freeing is not worth its cost

Growing = Callable[[NDArray[np.uint64]], tuple[NDArray[np.bool_], NDArray[np.int32]]]
"""See `Shard.growing`."""

NO_TREES = np.empty(0, np.uint64)
COMMAND_COLUMNS = ("hint", "tree_id", "node_id", "code", "attempt", "depth")  # of each step of a `Generate`
ROW_COLUMNS = [field.name for field in fields(NodeRows) if field.name not in ("tokens", "text")]


class Told:
    """Committed steps of open trees, J of them, each with the last that is known of its score and finish.

    Making one sorts the steps: where they are many, not in an event loop.
    """

    def __init__(self, nodes: NodeRows) -> None:
        """Index the steps; of a step that is there twice the first counts."""
        self.nodes = nodes
        self.names, self.order = np.unique(mix64(nodes.tree_id, nodes.node_id), return_index=True)
        self.token_start = np.cumsum(nodes.token_count, dtype=np.int64) - nodes.token_count
        self.text_start = np.cumsum(nodes.text_count, dtype=np.int64) - nodes.text_count
        self.left = np.zeros(len(nodes.node_id), np.bool_)  # [J] what may still be asked for
        self.left[self.order] = True
        self.count = len(self.names)  # of those

    def find(self, names: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """`[R]` which of the steps `names` `[R]` are here and not told yet, and the indexes of those."""
        if not self.count:
            return np.zeros(len(names), np.bool_), np.empty(0, np.int64)
        place = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        at = self.order[place]
        here = (self.names[place] == names) & self.left[at]
        return here, at[here]

    def done(self, at: NDArray[np.int64]) -> None:
        """The steps `at` will not be asked for any more."""
        at = np.unique(at[self.left[at]])
        self.left[at] = False
        self.count -= len(at)

    def compact(self) -> tuple[Self, NDArray[np.int64]]:
        """The same with what is left alone, and the new index of each step."""
        return type(self)(take(self.nodes, self.left)), np.cumsum(self.left) - 1


@dataclass(slots=True)
class Held:
    """Steps that have been asked for and whose turn has not come."""

    command: Generate
    which: NDArray[np.int64]  # [R] rows of the command
    told: Told
    at: NDArray[np.int64]  # [R] index in `told`


class Journal:
    """See the module."""

    def __init__(self, nodes: NodeRows | None = None) -> None:
        self._told: list[Told] = []  # one for each time that slots came, as long as anything of it is left
        self._held: list[Held] = []
        self._behind: list[Command] = []  # of trees of which steps are held: they must not overtake those
        self._ended: list[NDArray[np.uint64]] = []  # trees that will ask for nothing more, not looked for yet
        self._unknown = np.empty(
            (2, 0), np.uint64
        )  # names, sorted, and trees of steps that no decision knew, until they are scored
        if nodes is not None:
            self.extend(nodes)

    def __len__(self) -> int:
        """Steps that may still be asked for."""
        return sum(told.count for told in self._told)

    def extend(self, nodes: NodeRows | Told) -> None:
        """Take in what was committed of trees that come; to be called before they are admitted or restored."""
        told = nodes if isinstance(nodes, Told) else Told(nodes)
        if not told.count:
            return
        self._told.append(told)
        new = told.nodes.turn[told.order] == 0
        unknown = np.concatenate((self._unknown, (told.names[new], told.nodes.tree_id[told.order[new]])), axis=1)
        self._unknown = unknown[:, np.argsort(unknown[0])]

    def forget(self, trees: NDArray[np.uint64]) -> None:
        """The trees `trees` have ended for good. Their steps are dropped, some time."""
        if self._told:
            self._ended.append(trees)
            if sum(map(len, self._ended)) >= FORGET_TREES:
                ended, self._ended = np.concatenate(self._ended), []
                self._drop(lambda tree_id: np.isin(tree_id, ended))

    def release(self, slots: Sequence[int]) -> None:
        """Drop the steps of all trees of some slots at once: they may come again, with more."""
        self._drop(lambda tree_id: in_slots(tree_id, slots))

    def answer(self, found: Sequence[Command], growing: Growing) -> tuple[list[Command], list[Event]]:
        """Split commands into what is still to be done, and events that answer the rest from the journal.

        To be asked again, with the commands that the events lead to, until there are no more events. A snapshot on its way to the
        store takes along what the journal has yet to tell of its slot: it is committed, and not in the forest.
        """
        if not (self._told or self._behind or self._unknown.size):
            return list(found), []
        rest: list[Command] = []
        for command in [*self._behind, *found]:  # what was asked for first goes first, or nobody can tell what comes twice
            left = self._hold(command) if isinstance(command, Generate) else self._complete(command)
            if left is not None:
                rest.append(left)
        self._behind = []
        events = self._release(growing)
        rest = self._keep_behind(rest, growing)
        self._shrink()
        return rest, events

    def _complete(self, command: Command) -> Command:
        """A commit with the steps in its snapshots that the journal has yet to tell."""
        if not isinstance(command, Commit) or not command.snapshots:
            return command
        return replace(command, snapshots=[replace(each, steps=self._with_left(each)) for each in command.snapshots])

    def _with_left(self, snapshot: Snapshot) -> NodeRows:
        left = [take(told.nodes, told.left & in_slots(told.nodes.tree_id, (snapshot.slot,))) for told in self._told]
        found = [snapshot.steps, *left]
        return NodeRows(
            **{each.name: np.concatenate([getattr(nodes, each.name) for nodes in found]) for each in fields(NodeRows)}
        )

    def _hold(self, command: Generate) -> Generate | None:
        """Keep the rows that the journal holds; returns the others."""
        if not self._told:
            return command
        wanted = mix64(command.tree_id, command.node_id)
        known = np.zeros(len(wanted), np.bool_)
        for told in self._told:
            here, at = told.find(wanted)
            if len(at):
                self._held.append(Held(command, np.flatnonzero(here), told, at))
                known |= here
        return None if known.all() else without(command, known) if known.any() else command

    def _release(self, growing: Growing) -> list[Event]:
        """Answer, of each tree, the held steps that were known first, and those that no decision knew.

        The latter were with the verifier: they go there again (see `_is_early`), and land when it answers; but they must be told
        before the tree ends, for they were paid for. While a tree's answers are compared no decision about it is taken: what the
        one that waits for it was the first to know must be there by then, and what a later one was must not.
        """
        if not self._held:
            return []
        known_at = np.concatenate([held.told.nodes.turn[held.at] for held in self._held])
        trees, tree = np.unique(self._held_trees(), return_inverse=True)
        turn = np.where(known_at > 0, known_at, np.iinfo(np.int32).max)
        earliest = np.full(len(trees), np.iinfo(np.int32).max, np.int32)
        np.minimum.at(earliest, tree, turn)
        grows, waits = growing(trees)
        due = (turn == earliest[tree]) & ((waits == 0)[tree] | (turn <= waits[tree])) | (known_at == 0)
        here = grows[tree]
        events: list[Event] = []
        kept: list[Held] = []
        start = 0
        for held in self._held:
            mine = slice(start, start := start + len(held.at))
            if due[mine].any():
                events.append(_sampled(held, due[mine]))
                held.told.done(held.at[due[mine]])
            stays = ~due[mine] & here[mine]
            if stays.any():
                kept.append(replace(held, which=held.which[stays], at=held.at[stays]))
        self._held = kept
        return events

    def _held_trees(self) -> NDArray[np.uint64]:
        """The tree of each of the steps that are held."""
        return np.concatenate([NO_TREES, *(held.told.nodes.tree_id[held.at] for held in self._held)])

    def _keep_behind(self, rest: list[Command], growing: Growing) -> list[Command]:
        """Hold what the journal doesn't have of trees that it has not finished telling; returns the others."""
        trees = self._held_trees()
        found: list[Command] = []
        for command in rest:
            if isinstance(command, Score):
                (self._behind if self._is_early(command, trees, growing) else found).append(command)
                continue
            if not isinstance(command, Generate | Withdraw) or not len(trees):
                found.append(command)
                continue
            behind = np.isin(command.tree_id, trees)
            if behind.any():
                self._behind.append(_less(command, ~behind))
            if not behind.all():
                found.append(_less(command, behind))
        return found

    def _is_early(self, command: Score, trees: NDArray[np.uint64], growing: Growing) -> bool:
        """Whether a score could make steps known that no decision knew, to one that was taken before the restart."""
        if not self._unknown.size:
            return False
        scored = np.isin(self._unknown[0], mix64(command.chains.tree_id, command.chains.node_id))
        mine = self._unknown[1, scored]
        if not len(mine):
            return False
        _, waits = growing(mine)
        early = bool(waits.any() or np.isin(mine, trees).any())
        if not early:
            self._unknown = self._unknown[:, ~scored]
        return early

    def _drop(self, gone: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> None:
        for told in self._told:
            told.done(np.flatnonzero(told.left & gone(told.nodes.tree_id)))
        for held in self._held:
            stays = held.told.left[held.at]
            held.which, held.at = held.which[stays], held.at[stays]
        self._held = [held for held in self._held if len(held.at)]
        self._unknown = self._unknown[:, ~gone(self._unknown[1])]
        self._shrink()

    def _shrink(self) -> None:
        """Give memory back where most is told."""
        self._told = [told for told in self._told if told.count]
        for index, told in enumerate(self._told):
            if len(told.left) >= COMPACT_MIN and 2 * told.count < len(told.left):
                self._told[index], place = told.compact()
                for held in self._held:
                    if held.told is told:
                        held.told, held.at = self._told[index], place[held.at]


def _sampled(held: Held, which: NDArray[np.bool_]) -> StepsSampled:
    """The event that tells some of the held steps."""
    command, rows, told, at = held.command, held.which[which], held.told, held.at[which]
    nodes = told.nodes
    return StepsSampled(
        hint=command.hint[rows],
        tree_id=command.tree_id[rows],
        node_id=command.node_id[rows],
        tokens=nodes.tokens[ranges(told.token_start[at], nodes.token_count[at])],
        token_count=nodes.token_count[at],
        text=nodes.text[ranges(told.text_start[at], nodes.text_count[at])],
        text_count=nodes.text_count[at],
        logprob=nodes.logprob[at],
        finish=nodes.finish[at],
        score=np.where(nodes.turn[at] > 0, nodes.score[at], np.float32(np.nan)),  # with a score it would land at once
        turn=nodes.turn[at],
        committed=True,
        message="could not be sampled or scored before the restart",
    )


def take(nodes: NodeRows, which: NDArray[np.bool_]) -> NodeRows:
    """The steps that `which` `[R]` marks."""
    tokens, text = select(nodes.tokens, nodes.token_count, which), select(nodes.text, nodes.text_count, which)
    return NodeRows(**{name: getattr(nodes, name)[which] for name in ROW_COLUMNS}, tokens=tokens, text=text)


def _less(command: Generate | Withdraw, known: NDArray[np.bool_]) -> Generate | Withdraw:
    """The command less the steps that `known` `[R]` marks."""
    if isinstance(command, Withdraw):
        return Withdraw(command.tree_id[~known], command.node_id[~known])
    return without(command, known)


def without(command: Generate, known: NDArray[np.bool_]) -> Generate:
    """The command less the steps that `known` `[R]` marks, and less the chains that no step continues any more."""
    rows = (~known).nonzero()[0]
    group = command.group[rows]
    first = np.ones(len(group), np.bool_)
    np.not_equal(group[1:], group[:-1], out=first[1:])
    groups = group[first]
    starts = command.offsets[groups]
    lengths = (command.offsets[groups + 1] - starts).astype(np.int32)
    return replace(
        command,
        tokens=command.tokens[ranges(starts, lengths)],
        offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))),
        parent_id=command.parent_id[groups],
        group=np.cumsum(first, dtype=np.int32) - np.int32(1),
        **{name: getattr(command, name)[rows] for name in COMMAND_COLUMNS},
    )


def cut(command: Generate, start: int, end: int) -> Generate:
    """The steps [start, end) of a command, one at least, as views."""
    first, last = int(command.group[start]), int(command.group[end - 1]) + 1
    offsets = command.offsets[first : last + 1]
    return replace(
        command,
        tokens=command.tokens[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        parent_id=command.parent_id[first:last],
        group=command.group[start:end] - np.int32(first),
        **{name: getattr(command, name)[start:end] for name in COMMAND_COLUMNS},
    )
