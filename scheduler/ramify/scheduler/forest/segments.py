"""Operations on segments: one numpy call over many trees at once.

A *segment* is the run of entries that belong to one tree. `segment` arrays hold the tree of each entry and are sorted;
every function takes and returns flat arrays, so its cost is that of the entries, not of the trees.
"""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]


def segment_starts(segment: Rows) -> NDArray[np.int64]:
    """`[S]` position of the first entry of each of the S segments."""
    return np.flatnonzero(np.diff(segment, prepend=-1))


def segment_lengths(segment: Rows) -> NDArray[np.int64]:
    """`[S]` number of entries of each of the S segments."""
    return np.diff(segment_starts(segment), append=len(segment))


def position_in_segment(segment: Rows) -> Rows:
    """`[F]` place of each entry within its segment, from 0."""
    return (np.arange(len(segment)) - np.repeat(segment_starts(segment), segment_lengths(segment))).astype(np.int32)


def order_in_segment(segment: Rows, key: NDArray[np.float32], tie: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`[F]` permutation that sorts each segment by falling `key`; see `rank_in_segment`."""
    return np.lexsort((tie, -key, np.isnan(key), segment))


def rank_in_segment(segment: Rows, key: NDArray[np.float32], tie: NDArray[np.uint64]) -> Rows:
    """Rank of each entry within its segment by falling `key`, 0 for the highest.

    Args:
        segment: `[F]` sorted tree indices.
        key: `[F]` what to rank by; NaN ranks last.
        tie: `[F]` unique within a segment (a node id); the lower wins, so ranks do not depend on arrival order.

    Returns:
        `[F]` ranks, `0..len(segment_i)-1` in each segment.
    """
    rank = np.empty(len(segment), np.int32)
    rank[order_in_segment(segment, key, tie)] = position_in_segment(segment)
    return rank


def share_out(total: NDArray[np.int64] | int, segment: Rows) -> Rows:
    """Divide a total among the entries of each segment as evenly as whole numbers allow, the first ones getting one more.

    Args:
        total: `[S]` what to divide in each segment, or one number for all.
        segment: `[F]` sorted.

    Returns:
        `[F]` counts; those of one segment add up to its total.
    """
    lengths = segment_lengths(segment)
    each, rest = np.divmod(np.broadcast_to(total, lengths.shape), lengths)
    return (np.repeat(each, lengths) + (position_in_segment(segment) < np.repeat(rest, lengths))).astype(np.int32)


def first_of_group(segment: Rows, group: NDArray[np.uint64], tie: NDArray[np.uint64]) -> Mask:
    """`[F]` whether an entry has the lowest `tie` of all entries of its segment with the same `group`."""
    order = np.lexsort((tie, group, segment))
    first = np.empty(len(segment), np.bool_)
    first[order[:1]] = True
    first[order[1:]] = (segment[order[1:]] != segment[order[:-1]]) | (group[order[1:]] != group[order[:-1]])
    return first
