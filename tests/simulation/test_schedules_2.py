"""One half of the random schedules; the other half is in a file of its own, so that two cores share them."""

import pytest

from tests.simulation.schedules import run, seeds

HALF, COUNT, BATCH = 2, 500, 25


@pytest.mark.parametrize("first", range((HALF - 1) * COUNT, HALF * COUNT, BATCH))
def test_a_random_schedule_comes_to_what_a_calm_run_does(first: int) -> None:
    for seed in seeds(first, BATCH):
        run(seed)
