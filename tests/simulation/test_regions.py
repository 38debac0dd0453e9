"""A region is cut off in the middle of a job, and comes back: no answer is wrong, work moves, work returns."""

from dataclasses import replace

import pytest

from tests.simulation.cluster import Cluster
from tests.simulation.jobs import WORKS
from tests.simulation.test_cluster import QUIET, assert_calm

CUT = replace(QUIET, cuts=3.0, lease_ms=600)
NAMES = ("beam", "best_of_n", "mcts", "rebase", "two_jobs")


@pytest.mark.parametrize("name", NAMES)
def test_a_region_that_is_cut_off_changes_no_answer_and_its_work_moves_and_returns(name: str) -> None:
    moved = returned = backs = lengths = 0
    for seed in range(6):
        cluster = Cluster(WORKS[name], CUT, seed).run()
        assert_calm(cluster, name)
        backs += cluster.pace.backs
        moved += cluster.moved_tokens
        returned += cluster.pace.returned
        lengths += sum(len(chain) for chain in cluster.costs.chains.values())
    print(f"{name}: {backs} cuts, {moved} tokens of {lengths} moved, {returned} steps in the region after it was back")
    assert backs >= 3
    assert 0 < moved < lengths / 2, "chains that were in the region go on elsewhere, and some go back; most don't move"
    assert returned > 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves_while_no_region_is_cut_off(name: str) -> None:
    cluster = Cluster(WORKS[name], QUIET, seed=2).run()
    assert_calm(cluster, name)
    assert cluster.moved_tokens == 0
