"""Which engine a tree's steps go to."""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.ids import mix64


def rendezvous(keys: NDArray[np.uint64], engines: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Place keys on engines so that a lost engine moves only its own keys (Thaler and Ravishankar 1998).

    Args:
        keys: `[K]` what is placed, e.g. tree ids: a tree's steps meet the cache that its earlier steps have warmed.
        engines: `[E]` ids of the engines to choose from, at least one.

    Returns:
        `[K]` index of each key's engine: the one with the highest hash of both.
    """
    return np.asarray(np.argmax(mix64(keys[:, None], engines[None, :]), axis=1))
