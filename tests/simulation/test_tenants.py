"""The simulated cluster with two tenants: one that wants more than there is, and one that comes after it."""

from dataclasses import replace

from tests.simulation.cluster import Cluster
from tests.simulation.storms import Storm
from tests.simulation.world import Work, plan

FLOOD = 30  # problems
STORM = Storm(shards=2, lease_ms=300, step_ms_max=60, trees_max=4, calm_after_s=1.5)


def of(name: str, tenant: str, problems: int, priority: int = 0) -> Work:
    return Work(replace(plan(name, n=4, keep=2), tenant=tenant, priority=priority), tuple(range(problems)), seed=problems)


def done_before(cluster: Cluster, first: str, other: str) -> int:
    """Problems of another job that were done when a job ended."""
    ended_ms = cluster.store.jobs[first].finished_ms
    assert ended_ms is not None
    return max(event.counters["done"] for event in cluster.store.jobs[other].events if event.at_ms <= ended_ms)


def test_a_flood_keeps_back_the_later_jobs_of_its_own_tenant_alone() -> None:
    """And none of their trees comes out otherwise."""
    flood, cases = (
        of("flood", "flood", FLOOD),
        {"other tenant": ("small", 0), "urgent": ("flood", 1), "one of many": ("flood", 0)},
    )
    clusters = {
        name: Cluster([flood, of("small", tenant, 2, priority)], STORM, seed=4) for name, (tenant, priority) in cases.items()
    }
    done = {name: done_before(cluster.run(), "small", "flood") for name, cluster in clusters.items()}
    assert max(done["other tenant"], done["urgent"]) <= FLOOD / 3
    assert done["one of many"] > 2 * FLOOD / 3
    first, *others = (cluster.outcome() for cluster in clusters.values())
    assert all(other == first for other in others)
