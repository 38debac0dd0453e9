"""Which engine a tree's steps go to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.ids import mix64

SLACK = 0.03  # by which an engine's load may exceed its fair part before keys go elsewhere
FULL = 1.5  # times its slots that an engine may have at any rate: a batch runs, half of another waits at its door
NOWHERE = -1
FIRST = np.uint64(2**64 - 1)  # above any hash


@dataclass(frozen=True, slots=True)
class Fleet:
    """E engines to choose from, at least one."""

    key: NDArray[np.uint64]  # [E] their ids
    slots: NDArray[np.int64]  # [E] sequences that each runs at once, one at least
    load: NDArray[np.int64]  # [E] steps that each has, waiting and under way


def place(
    keys: NDArray[np.uint64], count: NDArray[np.int64], home: NDArray[np.int64], fleet: Fleet, slack: float = SLACK
) -> NDArray[np.int64]:
    """Place keys on engines: where they were, else by rendezvous hashing, with bounded loads.

    A key stays on the engine that has its cache. One that has been nowhere, or whose engine is gone, goes to the engine that has
    the highest hash of both, so that a lost engine moves its own keys alone (Thaler and Ravishankar 1998). An engine whose load
    has come to `1 + slack` times its fair part, and is full, takes no more: a key then goes to the engine of the next highest
    hash, and is at home there (the bound of Mirrokni, Thorup and Zadimoghaddam 2018, arXiv:1608.01350, section 2). A tight bound
    moves fewer keys than a loose one: what is even early need not be evened out late, by keys with longer prefixes. No bound is
    less than `FULL` times an engine's slots: few steps are not scattered for the sake of evenness.

    Args:
        keys: `[K]` what is placed, each once, e.g. tree ids. A key is not divided: the last that an engine takes may exceed its
            bound.
        count: `[K]` steps that each key stands for.
        home: `[K]` index of the engine where each key was; `NOWHERE`: on none of these.
        fleet: engines.
        slack: at least 0.

    Returns:
        `[K]` index of each key's engine.
    """
    score = mix64(keys[:, None], fleet.key[None, :])
    known = np.flatnonzero(home != NOWHERE)
    score[known, home[known]] = FIRST
    best = np.argsort(~score, axis=1, kind="stable")
    total = int(fleet.load.sum() + count.sum())
    room = np.maximum((1 + slack) * total * fleet.slots / fleet.slots.sum(), FULL * fleet.slots) - fleet.load
    at, left = best[:, 0].copy(), np.arange(len(keys))
    for choice in range(len(fleet.key)):  # the rooms add up to more than is to be placed: each key finds one
        wanted, over = best[left, choice], []
        for engine in np.flatnonzero(np.bincount(wanted)).tolist():
            mine = left[wanted == engine]
            mine = mine[np.argsort(~score[mine, engine], kind="stable")]  # those that were here before those that come
            before = np.cumsum(count[mine]) - count[mine]
            fits = before < room[engine]
            at[mine[fits]] = engine
            room[engine] -= count[mine[fits]].sum()
            over.append(mine[~fits])
        left = np.concatenate([np.empty(0, np.int64), *over])
    return at
