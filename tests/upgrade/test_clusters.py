"""A Ray cluster of this release takes over from one of the release before, as when a RayService is upgraded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.faults.runs import outcome, owners, problems
from tests.faults.system import System, end
from tests.postgres import Postgres
from tests.upgrade.releases import NEW, Release, roles
from tests.upgrade.test_rolling import PROBLEMS, replace, submitted
from tests.upgrade.test_rolling import before as before  # a fixture
from tests.waiting import until

LONG = problems(300)

pytestmark = pytest.mark.faults  # two Ray clusters


def shards(store_url: str) -> set[str]:
    """Who holds slots, without their incarnations."""
    return {owner.partition("@")[0] for owner in owners(store_url).values()}


@contextlib.contextmanager
def cluster(home: Path, store_url: str) -> Iterator[System]:
    """A system on a Ray cluster; nothing of it outlives the block."""
    home.mkdir()
    system = System(home, store_url)
    try:
        yield system
    finally:
        end(*system.look())


def test_a_cluster_takes_over_while_a_job_runs(
    postgres: Postgres, before: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both work on one store for a while; the new one has migrated it under the old one's feet."""
    with contextlib.ExitStack() as stack:
        services = stack.enter_context(roles(tmp_path, postgres.url))
        with monkeypatch.context() as there:
            there.chdir(before.root)
            there.setenv("PYTHONPATH", before.environment["PYTHONPATH"])
            old = stack.enter_context(cluster(tmp_path / "old", postgres.url))
        replace(services, "gateway", before)
        old.until_well()
        first = submitted(services, "before the new one is there")
        with monkeypatch.context() as there:
            there.setenv("RAY_CLUSTER_NAME", "green")
            new = stack.enter_context(cluster(tmp_path / "new", postgres.url))
        both = {"shard:0", "shard:1", "green/shard:0", "green/shard:1"}
        until(lambda: shards(postgres.url) == both)
        replace(services, "gateway", NEW)
        watched = submitted(services, "on both", LONG)
        with Client(services.addresses["gateway"]) as client:
            assert client.job(watched.job.job_id).state == job_pb2.JOB_STATE_RUNNING, "this would show nothing"
        assert old.stop()["drained"]
        until(lambda: shards(postgres.url) == {"green/shard:0", "green/shard:1"})
        again = submitted(services, "undisturbed", LONG)
        for each in (first, watched, again):
            each.end()
        with Client(services.addresses["gateway"]) as client:
            came_to = outcome(client, client.job(again.job.job_id))
            assert outcome(client, client.job(watched.job.job_id)) == came_to
            short = outcome(client, client.job(first.job.job_id))
        assert (short.trees, short.results) == came_to.first(len(PROBLEMS))
        assert watched.events[-1].progress.takeovers == 0, "slots were handed over, not taken"
        new.stop()
