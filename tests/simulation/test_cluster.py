"""The simulated cluster: what it comes to when nothing happens, and each fault by itself."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.simulation.cluster import Cluster
from tests.simulation.jobs import WORKS, calm
from tests.simulation.storms import Draw, Storm

QUIET = Storm(shards=2, lease_ms=300, step_ms_max=60, batch_max=2, calm_after_s=1.5)
SHORT = replace(QUIET, shards=3, snapshot_steps_min=2, stays_dead=0.0)
CALLS = ("beat", "claim", "recover", "open_jobs", "waiting", "pin", "commit", "commit that releases", "leave")
POINTS = [f"{when} {call}" for call in CALLS for when in ("before", "after")]


def assert_calm(cluster: Cluster, name: str) -> None:
    """It has come to the trees and answers of one shard to which nothing happened."""
    assert cluster.outcome() == calm(name).outcome(), repr(cluster)


@pytest.mark.parametrize("name", WORKS)
def test_shards_share_a_job_and_come_to_what_one_comes_to(name: str) -> None:
    cluster = Cluster(WORKS[name], QUIET, seed=1).run()
    assert_calm(cluster, name)
    assert cluster.costs.twice == 0
    assert cluster.happened == {}
    assert not any(member.shell.keeper.slots for member in cluster.every if member.task.done() and not member.buried)


def history(cluster: Cluster) -> list[tuple[object, ...]]:
    """All that was committed, in its order, and when jobs heard of what."""
    segments = [(segment.segment_id, [*segment.steps]) for segment in cluster.store.data.log]
    events = [(event.at_ms, event.notice) for job in cluster.store.jobs.values() for event in job.events]
    return [(cluster.loop.time(), cluster.loop.handled), tuple(cluster.points.items()), *segments, *events]


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_brings_everything_back(seed: int) -> None:
    storm = replace(Draw(seed).storm(), shards=3, kills=2.0, pauses=2.0, store_fails=0.1, crash=0.02)
    first, second = (Cluster(WORKS["two_jobs"], storm, seed).run() for _ in range(2))
    assert history(first) == history(second)


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_each_point(point: str) -> None:
    died, drains = 0, 8.0 if "leave" in point or "releases" in point else 0.0
    for number in (1, 2, 3, 5, 8):
        cluster = Cluster(WORKS["two_jobs"], replace(SHORT, crash_at=(point, number), drains=drains), seed=number).run()
        assert_calm(cluster, "two_jobs")
        died += cluster.happened[point]
    assert died >= 3, f"{died} have died {point}"


def test_a_process_that_stands_still_past_its_lease_writes_nothing_afterwards() -> None:
    happened = Counter[str]()
    for seed in range(6):
        cluster = Cluster(WORKS["beam"], replace(SHORT, pauses=8.0, step_ms_max=150), seed).run()
        assert_calm(cluster, "beam")
        happened += cluster.happened
    assert happened["pause"] > 10
    assert happened["fenced"] > 2, "some stood still for too long"


def test_of_two_processes_of_one_shard_one_can_write() -> None:
    happened = Counter[str]()
    for seed in range(6):
        cluster = Cluster(WORKS["two_jobs"], replace(SHORT, twins=6.0, step_ms_max=150), seed).run()
        assert_calm(cluster, "two_jobs")
        happened += cluster.happened
    assert min(happened["twin"], happened["fenced"]) > 5


def test_trees_that_lose_steps_to_damage_are_marked_and_come_to_the_same() -> None:
    restarts = damaged = 0
    for seed in range(12):
        cluster = Cluster(WORKS["lookahead"], replace(SHORT, kills=4.0, damages=20.0, step_ms_max=60), seed).run()
        assert_calm(cluster, "lookahead")
        (job,) = cluster.store.jobs.values()
        lost = {tree for (tree, _), _ in cluster.store.data.voided}
        marked = {tree for tree, index in job.trees.items() if index in job.restarted}
        indexed = all(segment.indexed for segment in cluster.store.data.log)
        assert lost <= marked or not indexed, "a tree of which nothing else is known begins anew like one that never began"
        restarts += job.counters["restarts"]
        damaged += cluster.happened["damaged segment"]
    assert damaged > 20
    assert restarts > 2


def test_several_verifiers_come_to_the_same_scores_whoever_dies_or_is_away() -> None:
    kills = 0
    for seed in range(4):
        storm = replace(SHORT, kills=4.0, verifier_away=0.2, step_ms_max=60)
        cluster = Cluster(WORKS["beam_of_three_verifiers"], storm, seed).run()
        assert_calm(cluster, "beam_of_three_verifiers")
        kills += cluster.happened["kill"]
    assert kills > 10


def test_shards_that_come_and_go_hand_over_in_order() -> None:
    """A drain ends, and what it costs is what was in flight; it may begin while slots are being claimed."""
    drains = 0
    for seed in range(6):
        cluster = Cluster(WORKS["mcts"], replace(SHORT, shards=4, drains=8.0, lease_ms=1200, store_ms_max=30), seed).run()
        assert_calm(cluster, "mcts")
        drains += cluster.happened["drain"]
        assert cluster.happened["fenced"] == 0
        moves = [event.notice for job in cluster.store.jobs.values() for event in job.events if event.notice]
        assert all("whose lease had ended" not in text for _, text in moves), "nobody had to wait for a lease"
    assert drains > 10


def test_a_shard_that_holds_nothing_can_be_told_to_end() -> None:
    """It never ended when its beat had just been hurried: the cancellation was lost."""
    for seed in range(6):
        cluster = Cluster(WORKS["best_first_several"], replace(QUIET, pauses=4.0, drains=2.0), seed).run()
        assert "a drain does not end" not in cluster.broken
