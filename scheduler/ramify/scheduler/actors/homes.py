"""Where caches are: which engine has which tree, or which part of a tree that is too wide for one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.actors.lanes import Lane
from ramify.scheduler.commands import Generate
from ramify.scheduler.forest.ids import job_key, mix64
from ramify.scheduler.placement import NOWHERE, Fleet, Terms

HOMES_MAX = 1 << 18  # trees and parts of which it is known where they are, those that came last; others go by their hashes

NOBODY = 0  # the key of no engine
U64 = NDArray[np.uint64]
Keys = tuple[int, ...]  # of engines
Place = Callable[[U64, NDArray[np.int64], NDArray[np.int64], Fleet], NDArray[np.int64]]
"""See `placement.place`."""


class Homes:
    """Chooses engines for steps, and remembers them.

    A tree is placed as a whole, as long as an engine can run at once what it asks for at once. From then on its subtrees are
    placed: the children of a node go where the node was sampled, and those of its root, which are many, are dealt out.
    """

    def __init__(self, choose: Place) -> None:
        self.moved_tokens = 0  # of chains that are prefilled again: another engine has them, or had them and was lost
        self._choose = choose
        self._homes: dict[int, Keys] = {}  # by unit, see `_units`: where it belongs
        self._warm: dict[int, Keys] = {}  # by unit: who has its chain in the cache
        self._divided: dict[int, int] = {}  # trees of which subtrees are placed, and what the widest part of a group may be

    def choose(self, command: Generate, lanes: Sequence[Lane], terms: Terms) -> NDArray[np.int64]:
        """`[R]` which of some engines, one at least, each of a command's steps goes to."""
        self._divide(command, max(lane.slots for lane in lanes))
        unit, divided = self._units(command)
        names, first, at_unit, count = np.unique(unit, return_index=True, return_inverse=True, return_counts=True)
        index = {lane.key: at for at, lane in enumerate(lanes)}
        trees = _trees(command)[first]
        pairs = zip(_of(self._homes, names, trees), _of(self._warm, names, trees), strict=True)
        known = [index.get((home or warm or (NOBODY,))[0], NOWHERE) for home, warm in pairs]
        chosen = self._choose(names, count, np.array(known, np.int64), fleet(command, lanes, terms))
        at, keys = np.asarray(chosen[at_unit]), [(lane.key,) for lane in lanes]
        _remember(self._homes, names, [keys[one] for one in chosen.tolist()])
        if divided.any():  # the children of each of these steps are a unit, and their home is where the step is sampled
            below = mix64(_trees(command)[divided], command.node_id[divided])
            _remember(self._homes, below, [keys[one] for one in at[divided].tolist()])
        return at

    def sent(self, command: Generate, lane: Lane) -> None:
        """Steps go to an engine, whose cache has their chains from now on."""
        unit, divided = self._units(command)
        names, first, at_unit = np.unique(unit, return_index=True, return_inverse=True)
        known = _of(self._warm, names, _trees(command)[first])
        moved = np.array([bool(keys) and lane.key not in keys for keys in known])
        if moved.any():
            groups = np.unique(command.group[moved[at_unit]])
            self.moved_tokens += int(np.diff(command.offsets)[groups].sum())
        here = (lane.key,)
        part = divided[first].tolist()  # a chain that does not grow; a tree does, where it is
        warm = [(*keys, *here) if parts and lane.key not in keys else here for keys, parts in zip(known, part, strict=True)]
        _remember(self._warm, names, warm)
        if divided.any():
            below = mix64(_trees(command)[divided], command.node_id[divided])
            _remember(self._warm, below, [here] * len(below))

    def lost(self, lane: Lane) -> None:
        """An engine may have lost what its cache had."""
        for unit, keys in self._warm.items():
            if lane.key in keys:
                self._warm[unit] = tuple(NOBODY if key == lane.key else key for key in keys)

    def _divide(self, command: Generate, widest: int) -> None:
        """From now on, subtrees are placed of those trees that ask for more than `widest` steps at once."""
        if len(command.hint) <= widest:
            return
        trees, count = np.unique(_trees(command), return_counts=True)
        for tree in trees[count > widest].tolist():
            self._divided.setdefault(tree, widest)
        _forget_oldest(self._divided)

    def _units(self, command: Generate) -> tuple[U64, NDArray[np.bool_]]:
        """`[R]` names of what is placed as one, and whether that is a part of a tree."""
        tree_id, group = _trees(command), command.group
        if not self._divided:
            return tree_id, np.zeros(len(tree_id), np.bool_)
        trees, at = np.unique(tree_id, return_inverse=True)
        widest = np.array([self._divided.get(tree, 0) for tree in trees.tolist()])[at]
        divided = widest > 0
        parent = mix64(tree_id, command.parent_id[group])
        piece = (np.arange(len(group)) - np.searchsorted(group, group)) // np.maximum(widest, 1)
        part = np.where(piece > 0, mix64(parent, piece.astype(np.uint64)), parent)
        return np.where(divided, part, tree_id), divided


def _trees(command: Generate) -> U64:
    """`[R]` the trees of a command's steps; to a job's several models, which share no cache, each tree is one of their own."""
    if len(command.plan.generators) == 1:
        return command.tree_id
    return mix64(command.tree_id, np.full(len(command.tree_id), job_key(command.generator), np.uint64))


def _of(known: dict[int, Keys], units: U64, trees: U64) -> list[Keys]:
    """What is known of some units, or of their trees as a whole."""
    return [known.get(unit) or known.get(tree, ()) for unit, tree in zip(units.tolist(), trees.tolist(), strict=True)]


def _remember(known: dict[int, Keys], units: U64, keys: Sequence[Keys]) -> None:
    for unit, each in zip(units.tolist(), keys, strict=True):
        known.pop(unit, None)  # it comes last again
        known[unit] = each
    _forget_oldest(known)


def _forget_oldest(known: dict[int, Any]) -> None:
    while len(known) > HOMES_MAX:
        del known[next(iter(known))]


def fleet(command: Generate, lanes: Sequence[Lane], terms: Terms) -> Fleet:
    """Engines as placement sees them, with what they cost the command's job."""
    return Fleet(
        key=np.array([lane.key for lane in lanes], np.uint64),
        slots=np.array([lane.slots for lane in lanes], np.int64),
        load=np.array([lane.load for lane in lanes], np.int64),
        cost=np.array([terms.cost(lane.engine.region, command.plan.routing) for lane in lanes]),
    )
