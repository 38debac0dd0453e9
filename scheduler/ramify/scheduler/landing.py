"""What becomes of nodes that are in flight no more."""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.columns import Dirty, Status
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows


class Landing:
    """See the module. Part of a shard, whose forest and messages it works on."""

    def __init__(self, forest: Forest, messages: dict[int, str]) -> None:
        """Land in `forest`, and tell in `messages`, by tree id, what went wrong first."""
        self.forest, self.messages = forest, messages
        self.touched: list[Rows] = []  # trees about which there may be something to decide

    def open(self, rows: Rows) -> None:
        """The nodes have all that the policy needs: it may decide about them."""
        self.land(rows, Status.OPEN)

    def land(self, rows: Rows, status: int) -> None:
        """The nodes are in flight no more, and their trees' policies are to be asked."""
        if len(rows):
            self.forest.land(rows, status)
            self.touched.append(self.forest.tree[rows])

    def drop_unwanted(self, rows: Rows, spared: Rows | None = None) -> Rows:
        """Land the nodes among `rows` `[R]` whose chain was given up meanwhile, unless they are `spared`; returns the others."""
        unwanted = self.forest.status[self.forest.parent[rows]] == Status.PRUNED
        if spared is not None and len(spared):
            unwanted &= ~np.isin(rows, spared)
        if unwanted.any():
            gone = rows[unwanted]
            self.score_changed(gone[self.forest.status[gone] == Status.SCORING])  # also if it has none: a replay must know when
            self.land(gone, Status.PRUNED)
        return np.asarray(rows[~unwanted])

    def refuse_long(self, rows: Rows, most: NDArray[np.int64]) -> Rows:
        """Give up the steps among `rows` `[R]` that hold more tokens than `most` `[R]`; returns the others."""
        long = self.forest.token_count[rows] > most
        self.forest.finish[rows[long]] = Finish.ERROR
        for at in np.flatnonzero(long).tolist():
            count = self.forest.token_count[rows[at]]
            self.give_up(rows[at : at + 1], f"a step has {count} tokens, above max_step_tokens={most[at]}")
        return np.asarray(rows[~long])

    def give_up(self, rows: Rows, message: str) -> None:
        """The nodes' chains are given up by a fault."""
        self.land(rows, Status.PRUNED)
        for tree_id in self.forest.trees.tree_id[self.forest.tree[rows]].tolist():
            self.messages.setdefault(tree_id, message)

    def unsampleable(self, rows: Rows, message: str) -> None:
        """No engine yields these steps: they become empty ones, the same that a replay would fill in."""
        none, count = np.empty(0, np.int32), np.zeros(len(rows), np.int32)
        error = np.full(len(rows), Finish.ERROR, np.uint8)
        self.forest.fill(rows, none, count, none.astype(np.uint8), count, np.zeros(len(rows), np.float32), error)
        self.forest.dirty[rows] = Dirty.NODE
        self.give_up(rows, message)

    def unscorable(self, rows: Rows, message: str) -> None:
        """The verifier has no score for the chains that end in these nodes."""
        self.forest.finish[rows] = Finish.ERROR
        self.score_changed(rows)
        self.give_up(rows, message)

    def score_changed(self, rows: Rows) -> None:
        """A step that is not written yet takes its score along; one that is must not be written, and paid, again."""
        unwritten = self.forest.dirty[rows] & Dirty.NODE
        self.forest.dirty[rows] |= np.where(unwritten, 0, Dirty.SCORE).astype(np.uint8)
