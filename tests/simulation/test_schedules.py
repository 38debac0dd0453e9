"""Random schedules, the same ones in each run; `make soak` has as many others as there is time for."""

from collections import Counter

import pytest

from tests.simulation.schedules import JOBS, job_of, run, seeds
from tests.simulation.storms import Draw

COUNT, BATCH = 320, 20


@pytest.mark.parametrize("first", range(0, COUNT, BATCH))
def test_a_random_schedule_comes_to_what_a_calm_run_does(first: int) -> None:
    for seed in seeds(first, BATCH):
        run(seed)


def test_there_are_enough_of_them() -> None:
    """Each job meets some storm, and each kind of storm many jobs, in company of the others."""
    assert {job_of(seed) for seed in range(COUNT)} == {*JOBS}
    storms = [Draw(seed).storm() for seed in range(COUNT)]
    kinds = Counter(kind for storm in storms for kind in storm.kinds)
    assert len(kinds) == 8
    assert min(kinds.values()) > COUNT / 8
    assert sum(len(storm.kinds) > 2 for storm in storms) > COUNT / 4
