"""What was committed before a restart, so that nothing of it is paid for twice.

A recovered shard starts its open trees from their roots and takes the same decisions again; whatever it wants sampled that the
journal holds is answered from there at once. So recovery has no code path of its own in the shard, and a replay can't decide
otherwise than the first run did.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.commands import Command, Generate, NodeRows
from ramify.scheduler.events import Event, StepsSampled
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.table import ranges


@dataclass(frozen=True, slots=True)
class Journal:
    """Committed steps of open trees, J of them, each with the last that is known of its score and finish."""

    nodes: NodeRows
    names: NDArray[np.uint64]  # [J] hash of (tree_id, node_id), sorted
    order: NDArray[np.int64]  # [J] index in `nodes` of each name
    token_start: NDArray[np.int64]  # [J]
    text_start: NDArray[np.int64]  # [J]

    @classmethod
    def of(cls, nodes: NodeRows) -> "Journal":
        """Index the steps; of a step that is there twice the first counts."""
        names, order = np.unique(mix64(nodes.tree_id, nodes.node_id), return_index=True)
        return cls(
            nodes,
            names,
            order,
            np.cumsum(nodes.token_count, dtype=np.int64) - nodes.token_count,
            np.cumsum(nodes.text_count, dtype=np.int64) - nodes.text_count,
        )

    def answer(self, found: list[Command]) -> tuple[list[Command], list[Event]]:
        """Split commands into what is still to be done, and events that answer the rest from the journal."""
        if not len(self.names):
            return found, []
        rest: list[Command] = []
        events: list[Event] = []
        for command in found:
            if not isinstance(command, Generate):
                rest.append(command)
                continue
            wanted = mix64(command.tree_id, command.node_id)
            place = np.minimum(np.searchsorted(self.names, wanted), len(self.names) - 1)
            known = self.names[place] == wanted
            if known.any():
                events.append(self._sampled(command, np.flatnonzero(known), self.order[place[known]]))
            if not known.all():
                rest.append(without(command, known))
        return rest, events

    def _sampled(self, command: Generate, which: NDArray[np.int64], at: NDArray[np.int64]) -> StepsSampled:
        nodes = self.nodes
        return StepsSampled(
            row=command.row[which],
            tree_id=command.tree_id[which],
            node_id=command.node_id[which],
            tokens=nodes.tokens[ranges(self.token_start[at], nodes.token_count[at])],
            token_count=nodes.token_count[at],
            text=nodes.text[ranges(self.text_start[at], nodes.text_count[at])],
            text_count=nodes.text_count[at],
            logprob=nodes.logprob[at],
            finish=nodes.finish[at],
            score=nodes.score[at],
            committed=True,
            message="could not be sampled or scored before the restart",
        )


def without(command: Generate, known: NDArray[np.bool_]) -> Generate:
    """The command less the steps that `known` `[R]` marks, and less the chains that no step continues any more."""
    groups, group = np.unique(command.group[~known], return_inverse=True)
    lengths = np.diff(command.offsets)[groups].astype(np.int32)
    return Generate(
        command.plan,
        command.tokens[ranges(command.offsets[groups], lengths)],
        np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))),
        group.astype(np.int32),
        command.row[~known],
        command.tree_id[~known],
        command.node_id[~known],
        command.code[~known],
    )
