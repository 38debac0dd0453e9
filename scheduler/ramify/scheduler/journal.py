"""What was committed before a restart, so that nothing of it is paid for twice.

A recovered shard starts its open trees from their roots and takes the same decisions again; whatever it wants sampled that the
journal holds is answered from there at once. So recovery has no code path of its own in the shard. A decision may depend on which
steps had landed when it was taken: the journal knows for each step the decision that was the first to know it, and hands a step
out when the tree has come that far, so a replay can't decide otherwise than the first run did.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Command, Generate, NodeRows, Score
from ramify.scheduler.events import Event, StepsSampled
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.table import ranges

Growing = Callable[[NDArray[np.uint64]], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
"""See `Shard.growing`."""


@dataclass(slots=True)
class Held:
    """Steps that have been asked for and whose turn has not come."""

    command: Generate
    which: NDArray[np.int64]  # [R] rows of the command
    at: NDArray[np.int64]  # [R] index in the journal


class Journal:
    """Committed steps of open trees, J of them, each with the last that is known of its score and finish."""

    def __init__(self, nodes: NodeRows) -> None:
        """Index the steps; of a step that is there twice the first counts."""
        self._nodes = nodes
        self._names, self._order = np.unique(mix64(nodes.tree_id, nodes.node_id), return_index=True)
        self._token_start = np.cumsum(nodes.token_count, dtype=np.int64) - nodes.token_count
        self._text_start = np.cumsum(nodes.text_count, dtype=np.int64) - nodes.text_count
        self._held: list[Held] = []
        self._behind: list[Command] = []  # of trees of which steps are held: they must not overtake those

    def answer(self, found: Sequence[Command], growing: Growing) -> tuple[list[Command], list[Event]]:
        """Split commands into what is still to be done, and events that answer the rest from the journal.

        To be asked again, with the commands that the events lead to, until there are no more events.
        """
        if not len(self._names):
            return list(found), []
        rest: list[Command] = []
        for command in [*found, *self._behind]:
            left = self._hold(command) if isinstance(command, Generate) else command
            if left is not None:
                rest.append(left)
        self._behind = []
        events = self._release(growing)
        return self._keep_behind(rest, growing), events

    def _hold(self, command: Generate) -> Generate | None:
        """Keep the rows that the journal holds; returns the others."""
        wanted = mix64(command.tree_id, command.node_id)
        place = np.minimum(np.searchsorted(self._names, wanted), len(self._names) - 1)
        known = self._names[place] == wanted
        if known.any():
            self._held.append(Held(command, np.flatnonzero(known), self._order[place[known]]))
        return None if known.all() else without(command, known) if known.any() else command

    def _release(self, growing: Growing) -> list[Event]:
        """Answer, of each tree, the held steps that were known first, and those that no decision knew.

        The latter were with the verifier: they go there again (see `_is_early`), and land when it answers; but they must be told
        before the tree ends, for they were paid for. While a tree's answers are compared no decision about it is taken, so what
        a later one was the first to know must wait.
        """
        if not self._held:
            return []
        at = np.concatenate([held.at for held in self._held])
        trees, tree = np.unique(self._nodes.tree_id[at], return_inverse=True)
        turn = np.where(self._nodes.turn[at] > 0, self._nodes.turn[at], np.iinfo(np.int32).max)
        earliest = np.full(len(trees), np.iinfo(np.int32).max, np.int32)
        np.minimum.at(earliest, tree, turn)
        grows, compares = growing(trees)
        due, here = (turn == earliest[tree]) & ~compares[tree] | (self._nodes.turn[at] == 0), grows[tree]
        events: list[Event] = []
        kept: list[Held] = []
        start = 0
        for held in self._held:
            mine = slice(start, start := start + len(held.at))
            if due[mine].any():
                events.append(self._sampled(held.command, held.which[due[mine]], held.at[due[mine]]))
            stays = ~due[mine] & here[mine]
            if stays.any():
                kept.append(Held(held.command, held.which[stays], held.at[stays]))
        self._held = kept
        return events

    def _keep_behind(self, rest: list[Command], growing: Growing) -> list[Command]:
        """Hold what the journal doesn't have of trees that it has not finished telling; returns the others."""
        trees = np.concatenate([self._nodes.tree_id[:0], *(self._nodes.tree_id[held.at] for held in self._held)])
        found: list[Command] = []
        for command in rest:
            if isinstance(command, Score):
                (self._behind if self._is_early(command, trees, growing) else found).append(command)
                continue
            if not isinstance(command, Generate) or not len(trees):
                found.append(command)
                continue
            behind = np.isin(command.tree_id, trees)
            if behind.any():
                self._behind.append(without(command, ~behind))
            if not behind.all():
                found.append(without(command, behind))
        return found

    def _is_early(self, command: Score, trees: NDArray[np.uint64], growing: Growing) -> bool:
        """Whether a score could make steps known that no decision knew, to one that was taken before the restart."""
        names = mix64(command.chains.tree_id, command.chains.node_id)
        place = np.minimum(np.searchsorted(self._names, names), len(self._names) - 1)
        unknown = (self._names[place] == names) & (self._nodes.turn[self._order[place]] == 0)
        if not unknown.any():
            return False
        mine = command.chains.tree_id[unknown]
        _, compares = growing(mine)
        return bool(compares.any() or np.isin(mine, trees).any())

    def _sampled(self, command: Generate, which: NDArray[np.int64], at: NDArray[np.int64]) -> StepsSampled:
        nodes = self._nodes
        return StepsSampled(
            hint=command.hint[which],
            tree_id=command.tree_id[which],
            node_id=command.node_id[which],
            tokens=nodes.tokens[ranges(self._token_start[at], nodes.token_count[at])],
            token_count=nodes.token_count[at],
            text=nodes.text[ranges(self._text_start[at], nodes.text_count[at])],
            text_count=nodes.text_count[at],
            logprob=nodes.logprob[at],
            finish=nodes.finish[at],
            score=np.where(nodes.turn[at] > 0, nodes.score[at], np.float32(np.nan)),  # with a score it would land at once
            turn=nodes.turn[at],
            committed=True,
            message="could not be sampled or scored before the restart",
        )


def without(command: Generate, known: NDArray[np.bool_]) -> Generate:
    """The command less the steps that `known` `[R]` marks, and less the chains that no step continues any more."""
    groups, group = np.unique(command.group[~known], return_inverse=True)
    lengths = np.diff(command.offsets)[groups].astype(np.int32)
    return replace(
        command,
        tokens=command.tokens[ranges(command.offsets[groups], lengths)],
        offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))),
        group=group.astype(np.int32),
        hint=command.hint[~known],
        tree_id=command.tree_id[~known],
        node_id=command.node_id[~known],
        code=command.code[~known],
        attempt=command.attempt[~known],
    )
