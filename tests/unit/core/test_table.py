"""Runs of values, gathered in the one way or the other by how many they are."""

from typing import Any

import numpy as np
import pytest

from ramify.scheduler.forest.table import GATHER_MAX, SLICE_VALUES, ranges, select, take_runs


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
@pytest.mark.parametrize(
    ("runs", "longest"),
    [(0, 1), (1, 5), (40, 30), (3, GATHER_MAX), (9, 3000), (400, 90), (3000, 7), (GATHER_MAX + 1, 1), (20, 4 * SLICE_VALUES)],
)
def test_runs_are_their_ranges(dtype: Any, runs: int, longest: int) -> None:
    draw = np.random.default_rng(runs * longest)
    values = draw.integers(0, 200, 50_000).astype(dtype)
    counts = draw.integers(0, longest + 1, runs).astype(np.int32)
    for starts in (
        draw.integers(0, len(values) - longest, runs),
        np.sort(draw.integers(0, len(values) - longest, runs)),
        draw.integers(0, 9) + np.cumsum(counts, dtype=np.int64) - counts,  # one after the other
        np.where(draw.random(runs) < 0.01, 7, 0) + np.cumsum(counts, dtype=np.int64) - counts,  # most of them
    ):
        inside = np.minimum(starts, len(values) - longest).astype(np.int64)
        found = take_runs(values, inside, counts)
        assert found.dtype == values.dtype
        assert found.tolist() == values[ranges(inside, counts)].tolist()


def test_what_lies_together_is_not_copied() -> None:
    values = np.arange(1000, dtype=np.int32)
    counts = np.array([3, 0, 5], np.int32)
    assert np.shares_memory(take_runs(values, np.array([10, 13, 13]), counts), values)
    assert not np.shares_memory(take_runs(values, np.array([10, 14, 20]), counts), values)
    assert select(values[:8], counts, np.array([True, False, True])).tolist() == [*range(8)]
