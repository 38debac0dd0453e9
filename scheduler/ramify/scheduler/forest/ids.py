"""Names that are the same on every machine and after every restart: nodes, trees, seeds, texts.

A node's id is a hash of its parent's id and its place among its siblings; a root's id is a hash of the job's seed and the
problem's index. So an id says how a chain came to be, two runs with one seed give the same ids, and the id is at the same
time the seed of the step's sampling. Ids are unique within a tree; `(tree_id, node_id)` is unique everywhere.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_CODE = 0xC0DE  # tells codes from all else that is hashed from ids
_WRITER = 0x3117E2  # and writers
_POLYNOMIAL = 0x5851F42D4C957F2D  # odd, so that every power is invertible mod 2**64


def mix64(a: U64, b: U64) -> U64:
    """Hash pairs of 64-bit numbers (the finaliser of SplitMix64, Steele et al. 2014, over a + golden * (b + 1)).

    Args:
        a: `[...]`, at least one dimension.
        b: broadcastable to `a`.

    Returns:
        `[...]` hashes; `mix64(mix64(a, b), c)` hashes a path.
    """
    x = a + np.uint64(_GOLDEN) * (b + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def mix64_int(a: int, b: int) -> int:
    """`mix64` of two whole numbers."""
    x = (a + _GOLDEN * (b + 1)) & _MASK
    x = ((x ^ (x >> 30)) * _M1) & _MASK
    x = ((x ^ (x >> 27)) * _M2) & _MASK
    return x ^ (x >> 31)


def job_key(job_id: str) -> int:
    """64-bit hash of a job's name."""
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=8).digest(), "little")


def tree_ids(job_id: str, problems: NDArray[np.int64]) -> U64:
    """`[T]` globally unique ids of the trees of a job's problems `[T]`."""
    return mix64(np.full(len(problems), job_key(job_id), np.uint64), problems.astype(np.uint64))


def root_ids(seed: int, problems: NDArray[np.int64]) -> U64:
    """`[T]` node ids of the roots of a job's problems `[T]`: of the seed and the problem alone, not of the job."""
    return mix64(np.full(len(problems), mix64_int(seed & _MASK, 0), np.uint64), problems.astype(np.uint64))


def uniforms(key: U64, salt: int) -> NDArray[np.float64]:
    """`[R]` numbers in [0, 1), even over all keys `[R]`: what a policy takes for chance, the same in every run."""
    return (mix64(key, np.full(len(key), salt, np.uint64)) >> np.uint64(11)) * np.float64(2.0**-53)


def writers(node_id: U64, weights: Sequence[float]) -> NDArray[np.int64]:
    """`[R]` which of some models writes each of the nodes `[R]`: each its share of all nodes, by its weight."""
    if len(weights) == 1:
        return np.zeros(len(node_id), np.int64)
    bounds = np.cumsum(weights)
    return np.searchsorted(bounds[:-1] / bounds[-1], uniforms(node_id, _WRITER), side="right")


def node_codes(node_id: U64) -> NDArray[np.float64]:
    """`[R]` codes in [0, 1) that are even over all nodes `[R]` and independent of each other."""
    return uniforms(node_id, _CODE)


def sibling_codes(parent_id: U64, child_index: NDArray[np.int32]) -> NDArray[np.float64]:
    """`[R]` codes in [0, 1) that are even over all nodes, and spread evenly over the children of one.

    The van der Corput sequence in base 2, shifted by a random number of the parent's (Cranley and Patterson 1976): the first
    `2**k` children lie `2**-k` apart, and no child's code depends on how many there will be.

    Args:
        parent_id: `[R]`.
        child_index: `[R]`.
    """
    bits = child_index.astype(np.uint32)
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0x0000FFFF)):
        bits = ((bits >> np.uint32(shift)) & np.uint32(mask)) | ((bits & np.uint32(mask)) << np.uint32(shift))
    shifted = mix64(parent_id, np.full(len(parent_id), _CODE, np.uint64)) + (bits.astype(np.uint64) << np.uint64(32))
    return (shifted >> np.uint64(11)) * np.float64(2.0**-53)


def hash_ranges(data: NDArray[np.uint8], counts: NDArray[np.int32]) -> U64:
    """Hash consecutive runs of bytes, all at once, eight bytes of each at a time.

    Args:
        data: `[sum of counts]` the runs one after the other.
        counts: `[R]` their lengths.

    Returns:
        `[R]` hashes; equal runs have equal hashes.
    """
    found = np.zeros(len(counts), np.uint64)
    padded = np.concatenate((data, np.zeros(8, np.uint8)))
    words = np.ndarray((len(data) + 1,), "V8", padded, 0, (1,))  # the eight bytes from each place on
    at, left = np.cumsum(counts, dtype=np.int64) - counts, counts.astype(np.int64)
    rows = np.arange(len(counts))
    while True:
        some = left > 0
        if not some.all():
            rows, at, left = rows[some], at[some], left[some]
        if not len(rows):
            return mix64(found, counts.astype(np.uint64))
        word = words[at].view(np.uint64)
        if left.min() < 8:  # of the last word, the bytes behind the run's end are another's
            word &= np.uint64(_MASK) >> (np.uint64(8) * (np.uint64(8) - np.minimum(left, 8).astype(np.uint64)))
        found[rows] = (found[rows] ^ (found[rows] >> np.uint64(29)) ^ word) * np.uint64(_POLYNOMIAL)
        at, left = at + 8, left - 8
