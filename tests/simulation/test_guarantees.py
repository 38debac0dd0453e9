"""Guarantees of DESIGN.md §8 that a simulated cluster shows, each under the storm that is hardest on it."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.simulation.cluster import Cluster
from tests.simulation.jobs import WORKS, calm
from tests.simulation.memory_store import DONE
from tests.simulation.schedules import JOBS
from tests.simulation.storms import Storm

STORM = Storm(
    shards=3,
    lease_ms=300,
    flush_ms=20,
    snapshot_steps_min=4,
    step_ms_max=60,
    batch_max=2,
    crash=0.02,
    kills=2.0,
    pauses=2.0,
    twins=1.0,
    store_fails=0.05,
    stays_dead=0.0,
    calm_after_s=2.0,
)
SEEDS = range(6)
NAMES = ("beam", "two_jobs", "self_consistency_margin without a barrier", "mcts without a barrier")


@pytest.fixture(scope="module")
def clusters() -> list[Cluster]:
    """Runs to which a lot has happened; what must be true at every moment was checked in each."""
    found = [Cluster(JOBS[name], STORM, seed).run() for name in NAMES for seed in SEEDS]
    happened = sum((cluster.happened for cluster in found), Counter[str]())
    assert min(happened[kind] for kind in ("kill", "pause", "twin", "late call", "fenced")) >= 3, happened
    return found


def test_guarantee_01_what_is_committed_is_there_after_any_crash(clusters: list[Cluster]) -> None:
    """And what a job's history tells at any moment is in segments that are committed at that moment, and stay."""
    for cluster in clusters:
        data = cluster.store.data
        for job in cluster.store.jobs.values():
            told = job.events[-1].counters
            assert told["steps"] == sum(tree in job.trees for tree, _ in data.steps)
            assert told["done"] == sum(tree in job.trees for tree in data.results)
            assert all(earlier.counters["done"] <= later.counters["done"] for earlier, later in pairwise(job.events))


def test_guarantee_02_the_ancestors_of_a_committed_step_are_committed(clusters: list[Cluster]) -> None:
    """The store checks it commit by commit; here, that they were committed no later."""
    for cluster in clusters:
        data = cluster.store.data
        segment_of = {name: segment.segment_id for segment in data.log for name in segment.steps}
        for (tree, node), step in data.steps.items():
            if step.depth > 1:
                assert segment_of[tree, step.parent_id] <= segment_of[tree, node]


def test_guarantee_03_a_step_counts_once(clusters: list[Cluster]) -> None:
    for cluster in clusters:
        names = [name for segment in cluster.store.data.log for name in segment.steps]
        assert len(names) == len({*names})
        assert sum(job.counters["steps"] for job in cluster.store.jobs.values()) == len(names)


def test_guarantee_04_a_slot_has_one_writer_at_a_time(clusters: list[Cluster]) -> None:
    """Some stood still past their lease, or were started twice: what they still wrote was to slots that were their own."""
    assert sum(cluster.happened["fenced"] for cluster in clusters) >= 3
    for cluster in clusters:
        last, writer = dict[int, int](), dict[tuple[int, int], str]()
        for slot, epoch, owner in cluster.store.writers:
            assert epoch >= last.setdefault(slot, epoch), "who has lost a slot writes to it no more"
            assert writer.setdefault((slot, epoch), owner) == owner, "two write under one epoch"
            last[slot] = epoch


def test_guarantee_05_spent_is_the_sum_of_what_is_committed(clusters: list[Cluster]) -> None:
    for cluster in clusters:
        for job in cluster.store.jobs.values():
            steps = [step for (tree, _), step in cluster.store.data.steps.items() if tree in job.trees]
            assert job.counters["tokens"] == sum(len(step.tokens) for step in steps)
            assert job.counters["tokens"] == sum(ended.result.tokens for ended in job.ended.values())


def test_guarantee_06_bounded_loss(clusters: list[Cluster]) -> None:
    """Paid for twice is nothing but what was in flight, or had come since the last durable commit, when a slot was lost."""
    twice = 0
    for cluster in clusters:
        assert not cluster.costs.broken
        assert cluster.costs.twice <= cluster.costs.bound
        twice += cluster.costs.twice
    spent = sum(job.counters["tokens"] for cluster in clusters for job in cluster.store.jobs.values())
    assert 0 < twice < spent, "something was lost, so there was something to be bounded"


@pytest.mark.parametrize("name", ["beam", "lookahead", "two_jobs"])
def test_guarantee_06_without_a_crash_nothing_is_paid_for_twice(name: str) -> None:
    quiet = replace(STORM, crash=0.0, kills=0.0, pauses=0.0, twins=0.0, store_fails=0.0, verifier_away=0.1)
    for seed in range(3):
        cluster = Cluster(WORKS[name], quiet, seed).run()
        assert {*cluster.costs.begun.values()} == {1}


@pytest.mark.parametrize("name", WORKS)
def test_guarantee_07_the_trees_of_a_run_with_crashes_are_those_of_one_without(name: str) -> None:
    cluster = Cluster(WORKS[name], STORM, seed=3).run()
    assert cluster.outcome() == calm(name).outcome(), repr(cluster)


def test_guarantee_07_a_committed_step_is_never_sampled_again(clusters: list[Cluster]) -> None:
    """Each of the engines' beginnings was held against the store; here, that there were enough of them."""
    for cluster in clusters:
        assert not cluster.costs.broken
    assert sum(sum(cluster.costs.begun.values()) for cluster in clusters) > 1000
    assert sum(cluster.costs.excused.total() for cluster in clusters) > 20


def test_guarantee_09_a_history_has_no_gap_and_no_duplicate_across_takeovers(clusters: list[Cluster]) -> None:
    takeovers = 0
    for cluster in clusters:
        for job in cluster.store.jobs.values():
            assert [event.cursor for event in job.events] == [*range(1, len(job.events) + 1)]
            assert [event.state for event in job.events].count(DONE) == 1
            takeovers += job.counters["takeovers"]
    assert takeovers > 10
