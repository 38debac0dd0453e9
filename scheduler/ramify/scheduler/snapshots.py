"""When a slot's trees are copied out of the forest, what such a snapshot holds, and how trees go on from one."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler import collapse
from ramify.scheduler.commands import Chains, Check, Command, Generate, NodeRows, Snapshot, Withdraw
from ramify.scheduler.commits import node_rows
from ramify.scheduler.forest import parts
from ramify.scheduler.forest.columns import Status, TreeStatus
from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows
from ramify.scheduler.plan import JobPlan
from ramify.scheduler.slots import SLOTS, slot_of

OPEN = (TreeStatus.GROWING, TreeStatus.GROUPING, TreeStatus.CHECKING)


class Snapshots:
    """Says which slot is due for a snapshot.

    A slot is due when it has committed more steps since its last one than that one held, and than `steps_min`: so what a
    recovery reads is at most about three times what is alive, and of what is written at most about half is snapshots.
    """

    def __init__(self, steps_min: int) -> None:
        self._steps_min = steps_min
        self._since = np.zeros(SLOTS, np.int64)  # steps committed since the slot's last snapshot
        self._held = np.zeros(SLOTS, np.int64)  # nodes in that one

    def count(self, nodes: NodeRows) -> None:
        """These steps are in the commit that is being made."""
        self._since += np.bincount(slot_of(nodes.tree_id), minlength=SLOTS)

    def due(self, released: tuple[int, ...]) -> list[int]:
        """Slots to be copied along with the commit that is being made.

        Those that are given up and have a tail worth it, and at most one other, so that no commit becomes long.
        """
        found = [slot for slot in released if self._since[slot] >= self._steps_min]
        overdue = self._since - np.maximum(self._held, self._steps_min)
        overdue[list(released)] = -1
        slot = int(overdue.argmax())
        return [*found, slot] if overdue[slot] >= 0 else found

    def take(self, forest: Forest, plans: list[JobPlan], messages: dict[int, str], slot: int) -> Snapshot:
        """Copy a slot; everything in it is committed, or in the commit that is being made."""
        t = forest.trees
        mine = (slot_of(t.tree_id[: t.size]) == slot) & np.isin(t.status[: t.size], OPEN)
        trees = np.flatnonzero(mine).astype(np.int32)
        grows = mine & (t.status[: t.size] == TreeStatus.GROWING)
        scoring = np.flatnonzero(forest.status[: forest.size] == Status.SCORING).astype(np.int32)
        parts_of, held = dict[str, parts.Part](), 0
        for index in np.unique(t.plan[trees]).tolist():
            part = parts.cut(forest, trees[t.plan[trees] == index])
            told = {tree: messages[tree] for tree in part.trees["tree_id"].tolist() if tree in messages}
            parts_of[plans[index].job_id] = replace(part, messages=told)
            held += len(part.nodes["node_id"])
        self._since[slot], self._held[slot] = 0, held
        return Snapshot(slot, parts_of, node_rows(forest, scoring[grows[forest.tree[scoring]]]))


def resume(forest: Forest, plan: JobPlan, trees: Rows) -> list[Command]:
    """What restored `trees` `[T]`, sorted, all of one job, were waiting for: it is asked for again."""
    t = forest.trees
    status, comparing = t.status[trees], t.comparing[trees].copy()
    t.comparing[trees] = False
    growing = np.zeros(t.size, np.bool_)
    growing[trees[status == TreeStatus.GROWING]] = True
    first = int(t.root[trees].min(initial=forest.size))
    rows = first + np.flatnonzero(forest.status[first : forest.size] == Status.SAMPLING)
    sampling: Rows = rows[growing[forest.tree[rows]]].astype(np.int32)
    found: list[Command] = [*Generate.of(forest, plan, sampling)]
    unwanted = sampling[forest.status[forest.parent[sampling]] == Status.PRUNED]
    if len(unwanted):  # asked for all the same: the journal may have them
        found.append(Withdraw(t.tree_id[forest.tree[unwanted]], forest.node_id[unwanted]))
    found += collapse.compare(forest, plan, trees[comparing & (status == TreeStatus.GROWING)])[0]
    found += collapse.vote(forest, plan, trees[status == TreeStatus.GROUPING])
    checking: NDArray[np.int32] = trees[status == TreeStatus.CHECKING]
    return [*found, Check(plan, Chains.of(forest, plan, t.best[checking]))] if len(checking) else found
