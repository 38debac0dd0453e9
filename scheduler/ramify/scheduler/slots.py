"""Slots, the unit in which trees are shared out among shards, and which shard is to hold which.

A tree belongs to one slot for ever. Every shard looks at the same table of slots and shards and computes the same assignment;
each then gives up what is not its own by it, and claims what is. Views may differ for a moment: leases and epochs keep that
safe, the next look puts it right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLOTS = 64
UNEVEN = 0.25  # slots move for their load's sake where that evens out more than this share of the mean load of a shard


def slot_of(tree_id: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`[R]` slot of each of the trees `[R]`."""
    return np.asarray(tree_id % np.uint64(SLOTS), np.int64)


def in_slots(tree_id: NDArray[np.uint64], slots: Sequence[int]) -> NDArray[np.bool_]:
    """`[R]` whether each of the trees `[R]` belongs to one of some slots."""
    member = np.zeros(SLOTS, np.bool_)
    member[list(slots)] = True
    return np.asarray(member[slot_of(tree_id)])


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as everybody sees it."""

    slot: int
    owner: str  # empty: nobody's, or of a shard whose lease has ended
    load: int  # live chains in it, as its last owner has told


def assign(views: Sequence[SlotView], shards: Sequence[str]) -> Mapping[int, str]:
    """Which shard is to hold which slot.

    What is nobody's goes to the shards with the fewest slots. Then slots move from the shards with the most slots to those with
    the fewest, until their numbers differ by one at most, which they do from then on. Then the shard with the heaviest load
    changes one slot for another with the one with the lightest (or gives it one, where it has more slots), as long as that makes
    the difference clearly smaller. No slot moves without need: once everyone holds what the assignment says, it says the same
    again.

    Args:
        views: every slot once.
        shards: names of the shards that are alive and not draining; others keep nothing.

    Returns:
        The shard of each slot; empty if there is no shard.
    """
    if not shards:
        return {}
    held: dict[str, list[SlotView]] = {shard: [] for shard in sorted(shards)}
    free = list[SlotView]()
    for view in sorted(views, key=lambda view: view.slot):
        held.get(view.owner, free).append(view)
    for view in sorted(free, key=_weight, reverse=True):
        _fewest(held).append(view)
    _even_out(held)
    _level(held)
    return {view.slot: shard for shard, mine in held.items() for view in mine}


def _even_out(held: dict[str, list[SlotView]]) -> None:
    """Bring the numbers of slots to differ by one at most, with as few moves as that takes; the lightest slots move."""
    while True:
        fullest = max(held.values(), key=len)
        emptiest = _fewest(held)
        if len(fullest) - len(emptiest) <= 1:
            return
        lightest = min(fullest, key=_weight)
        fullest.remove(lightest)
        emptiest.append(lightest)


def _level(held: dict[str, list[SlotView]]) -> None:
    """Swap two slots of the heaviest shard and the lightest, or move one where numbers allow it, while that clearly helps."""
    mean = sum(_load(mine) for mine in held.values()) / len(held)
    # Each move takes more than UNEVEN**2 / 2 * mean**2 off the sum of the squared loads, which is (shards * mean)**2 at most.
    for _ in range(round(2 * (len(held) / UNEVEN) ** 2)):
        heavy, light = max(held.values(), key=_load), min(held.values(), key=_load)
        gap = _load(heavy) - _load(light)
        best: tuple[float, SlotView, SlotView | None] | None = None
        for view in heavy:
            for other in (None, *light):
                moved = view.load - (other.load if other else 0)
                if 0 < moved < gap and (other is not None or len(heavy) > len(light)):
                    left = abs(gap - 2 * moved)
                    if best is None or left < best[0]:
                        best = left, view, other
        if best is None or gap - best[0] <= UNEVEN * mean:
            return
        _, view, other = best
        heavy.remove(view)
        light.append(view)
        if other is not None:
            light.remove(other)
            heavy.append(other)


def _fewest(held: dict[str, list[SlotView]]) -> list[SlotView]:
    return min(held.values(), key=lambda mine: (len(mine), _load(mine)))


def _load(mine: list[SlotView]) -> int:
    return sum(view.load for view in mine)


def _weight(view: SlotView) -> tuple[int, int]:
    return view.load, view.slot
