"""Searches that go on by single expansions: how many of them may start."""

import numpy as np

from ramify.scheduler.forest.forest import Forest
from ramify.scheduler.forest.segments import Rows


def free_places(forest: Forest, trees: Rows, iterations: int, parallel: int, branch: int) -> Rows:
    """`[T]` how many expansions of `branch` steps each may start now in each of `trees` `[T]` (any order, repeats allowed).

    The trees' columns count steps: those asked for, and of these those that have not landed. As many expansions count as begun,
    or as in flight, as there have to be for them. (Not those sampled: how many of these are with the verifier is not what a
    decision may depend on, for a replay could not repeat it.)

    Args:
        forest: read only.
        trees: `[T]`.
        iterations: most expansions of one tree.
        parallel: most expansions in flight at a time.
        branch: steps of each expansion.
    """
    in_flight = forest.trees.outstanding[trees]
    begun = -(-forest.trees.asked[trees] // branch)
    free: Rows = np.minimum(iterations - begun, parallel - -(-in_flight // branch)).astype(np.int32)
    return np.maximum(free, 0)
