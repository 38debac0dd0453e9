"""Operations on segments: one numpy call over many trees at once.

A *segment* is the run of entries that belong to one tree. `segment` arrays hold the tree of each entry and are sorted;
every function takes and returns flat arrays, so its cost is that of the entries, not of the trees.
"""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.ids import mix64

Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]


def segment_starts(segment: Rows) -> NDArray[np.int64]:
    """`[S]` position of the first entry of each of the S segments."""
    first = np.ones(len(segment), np.bool_)
    np.not_equal(segment[1:], segment[:-1], out=first[1:])
    return first.nonzero()[0]


def segment_lengths(segment: Rows) -> NDArray[np.int64]:
    """`[S]` number of entries of each of the S segments."""
    return _lengths(segment_starts(segment), len(segment))


def _lengths(starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    lengths = np.empty(len(starts), np.int64)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1:] = size - starts[-1:]
    return lengths


def position_in_segment(segment: Rows) -> Rows:
    """`[F]` place of each entry within its segment, from 0."""
    starts = segment_starts(segment)
    return (np.arange(len(segment)) - starts.repeat(_lengths(starts, len(segment)))).astype(np.int32)


def order_in_segment(segment: Rows, key: NDArray[np.float32], tie: NDArray[np.uint64]) -> NDArray[np.int64]:
    """`[F]` permutation that sorts each segment by falling `key`; see `rank_in_segment`."""
    names = (segment.astype(np.uint64) << np.uint64(32)) | falling(key)
    order = np.argsort(names)
    equal = np.diff(names[order]) == 0
    if equal.any():  # few are, so that only they are sorted by two keys
        inside = np.concatenate((equal, [False])) | np.concatenate(([False], equal))
        among = order[inside]
        order[inside] = among[np.lexsort((tie[among], names[among]))]
    return order


def falling(key: NDArray[np.float32]) -> NDArray[np.uint64]:
    """`[F]` numbers of 32 bits that rise as `key` falls; NaN has the highest, and both zeros have the same."""
    bits = (key.astype(np.float32) + np.float32(0)).view(np.uint32)
    rising = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x80000000))
    return np.where(np.isnan(key), np.uint32(0xFFFFFFFF), ~rising).astype(np.uint64)


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


def first_of_group(segment: Rows, group: NDArray[np.uint64]) -> Mask:
    """`[F]` whether an entry is the first one of its segment with its `group` `[F]`, a hash."""
    first = np.zeros(len(segment), np.bool_)
    names = mix64(segment.astype(np.uint64), group)
    order = np.argsort(names)
    begins = np.flatnonzero(np.diff(names[order], prepend=~names[order[:1]]) != 0)
    first[np.minimum.reduceat(order, begins) if len(begins) else order] = True
    return first


def minus(trees: Rows, others: Rows) -> Rows:
    """`[T']` those of `trees` `[T]` (sorted) that are not among `others`, all of which are among `trees`; repeats allowed."""
    stays = np.ones(len(trees), np.bool_)
    stays[np.searchsorted(trees, others)] = False
    return trees[stays]


def count_before(mask: Mask, segment: Rows) -> Rows:
    """`[F]` how many entries of the same segment are marked before each entry."""
    running = np.cumsum(mask, dtype=np.int32) - mask.astype(np.int32)
    return (running - np.repeat(running[segment_starts(segment)], segment_lengths(segment))).astype(np.int32)


def total_in_segment(mask: Mask, segment: Rows) -> Rows:
    """`[F]` how many entries of each entry's segment are marked."""
    lengths = segment_lengths(segment)
    totals = np.add.reduceat(mask, segment_starts(segment), dtype=np.int32) if len(mask) else np.empty(0, np.int32)
    return np.repeat(totals, lengths)


def sums_in_segment(value: NDArray[np.float64], segment: Rows) -> NDArray[np.float64]:
    """`[F]` sum of the values `[F]` of a segment up to and with each entry.

    Rounded as if the segment were alone: what else is there makes no difference.
    """
    lengths = segment_lengths(segment)
    place = np.repeat(np.arange(len(lengths)), lengths), position_in_segment(segment)
    table = np.zeros((len(lengths), int(lengths.max(initial=0))))
    table[place] = value
    running: NDArray[np.float64] = np.cumsum(table, axis=1)[place]
    return running


def softmax_in_segment(key: NDArray[np.float64], temperature: float, segment: Rows) -> NDArray[np.float64]:
    """`[F]` what the softmax of the keys `[F]` gives each entry, before it is divided by its segment's sum.

    The highest key gives 1, NaN gives 0; where there is nothing but NaN, each gives 1.
    """
    highest = np.fmax.reduceat(key, segment_starts(segment)) if len(key) else key
    highest = np.repeat(highest, segment_lengths(segment))
    return np.where(np.isnan(highest), 1.0, np.nan_to_num(np.exp((key - highest) / temperature)))


def points_in_segment(points: NDArray[np.float64], upper: NDArray[np.float64], segment: Rows) -> Rows:
    """How many points fall into each of the intervals that the entries of a segment are.

    Args:
        points: `[S, P]` from 0 to below the last `upper` of their segment, in any order.
        upper: `[F]` where each interval ends, itself not in it; the next one begins there, and the first one at 0.
        segment: `[F]` sorted.

    Returns:
        `[F]` counts; those of one segment add up to P.
    """
    points, size, lengths = np.sort(points, axis=1), points.shape[1], segment_lengths(segment)
    row = np.repeat(np.arange(len(lengths)), lengths)
    below = np.zeros(len(upper), np.int32)  # points below each interval's end: binary search in all segments at once
    for bit in reversed(range(size.bit_length())):
        more = below + np.int32(1 << bit)
        right = (more <= size) & (points[row, np.minimum(more, size) - 1] < upper)
        below[right] = more[right]
    first = position_in_segment(segment) == 0
    counts: Rows = np.where(first, below, np.diff(below, prepend=np.int32(0)))
    return counts
