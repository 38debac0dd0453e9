"""What a forest's rows are: columns and the states that they can be in."""

from collections.abc import Mapping
from typing import ClassVar, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ramify.scheduler.forest.table import Table

NO_ROW = -1
NO_GROUP = -1


# Plain numbers: to compare a column with a member of an enum takes numpy five times as long.


class Status:
    """Where a node is. It goes SAMPLING, SCORING (unless its policy needs no score of it), OPEN and then one of the others."""

    SAMPLING: Final = 0  # dispatched to an engine
    SCORING: Final = 1  # dispatched to the verifier
    OPEN: Final = 2  # in the frontier: the policy has yet to decide, or has decided to carry it along
    EXPANDED: Final = 3  # has children
    PRUNED: Final = 4  # given up
    RETIRED: Final = 5  # has ended and is set aside as a candidate for the answer


class TreeStatus:
    """Where a tree is."""

    GROWING: Final = 0
    GROUPING: Final = 1  # has ended; its answers are being compared
    CHECKING: Final = 2  # has an answer, which is with the checker
    FINISHED: Final = 3  # its result waits for its commit
    COMMITTING: Final = 4  # its result is in the commit that is being written
    FREE: Final = 5  # committed or cancelled; `compact` may drop it


class Dirty:
    """Bits of what a commit still has to write of a node."""

    NODE: Final = 1  # the step itself
    SCORE: Final = 2  # its score; the step is committed, or is written along with it
    COMMITTING: Final = 4  # in the commit that is being written


class Flag:
    """Bits that say how a node came to be."""

    GREEDY: Final = 1  # sampled at temperature 0, whatever the job's is
    SPECULATIVE: Final = 2  # sampled before its chain had earned it


class Trees(Table):
    """One row for each tree."""

    COLUMNS: ClassVar[Mapping[str, DTypeLike]] = {
        "tree_id": np.uint64,
        "problem": np.int64,
        "spent": np.int64,
        "settled": np.int64,
        "steps": np.int64,
        "asked": np.int64,
        "listed_start": np.int64,
        "plan": np.int32,
        "root": np.int32,
        "outstanding": np.int32,
        "turn": np.int32,
        "best": np.int32,
        "listed_count": np.int32,
        "listed_room": np.int32,
        "best_score": np.float32,
        "status": np.uint8,
        "outcome": np.uint8,
        "verdict": np.uint8,
        "whole": np.bool_,
        "comparing": np.bool_,
    }
    tree_id: NDArray[np.uint64]
    problem: NDArray[np.int64]  # index in its job
    spent: NDArray[np.int64]  # tokens sampled: those of its steps, end marks apart (a fault may overwrite who had one)
    settled: NDArray[np.int64]  # of these, those of landed nodes: what a decision may know of
    steps: NDArray[np.int64]  # nodes sampled
    asked: NDArray[np.int64]  # nodes dispatched
    listed_start: NDArray[np.int64]  # its list of landed nodes, see `Forest.landed`: place in the arena,
    plan: NDArray[np.int32]  # index of its job's plan in the shard
    root: NDArray[np.int32]  # row of the root node
    outstanding: NDArray[np.int32]  # nodes SAMPLING or SCORING
    turn: NDArray[np.int32]  # decisions that its policy has taken about it
    best: NDArray[np.int32]  # row of the node that ends the answer; NO_ROW until there is one
    listed_count: NDArray[np.int32]  # its length,
    listed_room: NDArray[np.int32]  # and the length that it may grow to where it is
    best_score: NDArray[np.float32]
    status: NDArray[np.uint8]  # a TreeStatus
    outcome: NDArray[np.uint8]  # an Outcome, once finished
    verdict: NDArray[np.uint8]  # a Verdict, once checked
    whole: NDArray[np.bool_]  # dead branches stay until the tree ends, for its policy counts them
    comparing: NDArray[np.bool_]  # answers are being compared; no decision until then

    def find(self, tree_id: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Rows of the trees `tree_id` `[R]` that are here, and which of the names they answer."""
        known = self.tree_id[: self.size]
        if self.size == 0 or len(tree_id) == 0:
            return np.empty(0, np.int32), np.empty(0, np.int64)
        order = np.argsort(known)
        at = order[np.minimum(np.searchsorted(known[order], tree_id), self.size - 1)]
        right = known[at] == tree_id
        return at[right].astype(np.int32), np.flatnonzero(right)


class Nodes(Table):
    """One row for each node; parents come before their children."""

    COLUMNS: ClassVar[Mapping[str, DTypeLike]] = {
        "node_id": np.uint64,
        "text_hash": np.uint64,
        "token_start": np.int64,
        "text_start": np.int64,
        "value": np.float64,
        "tree": np.int32,
        "parent": np.int32,
        "child_index": np.int32,
        "child_count": np.int32,
        "last_child": np.int32,
        "elder": np.int32,
        "token_count": np.int32,
        "text_count": np.int32,
        "visits": np.int32,
        "turn": np.int32,
        "group": np.int32,
        "logprob": np.float32,
        "score": np.float32,
        "depth": np.int16,
        "status": np.uint8,
        "finish": np.uint8,
        "dirty": np.uint8,
        "tries": np.uint8,
        "flags": np.uint8,
        "grouped": np.bool_,
    }
    node_id: NDArray[np.uint64]
    text_hash: NDArray[np.uint64]  # equal for chains of one tree that say the same
    token_start: NDArray[np.int64]
    text_start: NDArray[np.int64]
    value: NDArray[np.float64]  # what the policy keeps of the node, with `visits`: for MCTS the sum of the values backed up
    tree: NDArray[np.int32]  # row in `trees`
    parent: NDArray[np.int32]  # NO_ROW for a root
    child_index: NDArray[np.int32]
    child_count: NDArray[np.int32]  # children dispatched so far
    last_child: NDArray[np.int32]  # the newest child that is still here; NO_ROW: none
    elder: NDArray[np.int32]  # the next older child of the same parent; NO_ROW: none
    token_count: NDArray[np.int32]
    text_count: NDArray[np.int32]
    visits: NDArray[np.int32]
    turn: NDArray[np.int32]  # the decision, by number, that was the first to know the node's outcome; 0: it is in flight
    group: NDArray[np.int32]  # chains of one tree with the same answer have one number; NO_GROUP: no answer, or not `grouped`
    logprob: NDArray[np.float32]
    score: NDArray[np.float32]  # NaN: not scored
    depth: NDArray[np.int16]  # 0 for a root
    status: NDArray[np.uint8]  # a Status
    finish: NDArray[np.uint8]  # a Finish; 0 for roots and what is not sampled yet
    dirty: NDArray[np.uint8]  # bits of Dirty
    tries: NDArray[np.uint8]  # times that the node was lost by an engine or a verifier
    flags: NDArray[np.uint8]  # bits of Flag
    grouped: NDArray[np.bool_]  # whether the answer has been compared with the tree's others
