"""Every role is replaced by this release's, one after the other, while jobs run: none of them sees it."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ramify.client import Client, Unavailable
from ramify.scheduler.actors.lanes import QUEUE_FACTOR
from ramify.scheduler.slots import SLOTS
from ramify.store.database import Database
from ramify.store.migration import Migration, newest
from ramify.v1 import job_pb2
from tests.faults.runs import outcome, owners, problems
from tests.upgrade.releases import NEW, Release, Roles, previous, roles
from tests.waiting import until

MODEL = "sim-prm"
SLOTS_AN_ENGINE = 32
ENGINE = (
    f"simulated?slots={SLOTS_AN_ENGINE}&token_ms=10&time_scale=0.3&"
    "step_lengths=uniform&step_tokens_min=16&step_tokens_max=48&end_probability=0.05"
)
PROBLEMS = problems(6)
KNOBS: dict[str, Any] = {
    "policy": "beam",
    "n": 8,
    "keep": 2,
    "max_steps": 8,
    "max_step_tokens": 64,
    "generator": "simulated",
    "verifier": MODEL,
    "seed": 5,
}
FLUSH_STEPS_MAX = 256  # of one flush window here: more than both engines sample in it
WAIT_S = 120.0

OLD_CLIENT = f"""
import sys
from ramify.client import Client
with Client(sys.argv[1]) as client:
    job = client.submit({PROBLEMS!r}, **{KNOBS!r})
    last = [event for event in client.watch(job.job_id)][-1]
    assert last.state == 3, last
    assert len(list(client.results(job.job_id))) == last.progress.problems_done == {len(PROBLEMS)}
    assert client.tree(job.job_id, 0).nodes
    assert job.job_id in [each.job_id for each in client.jobs()]
    print(job.job_id)
"""


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The release before this one."""
    return previous(tmp_path_factory.mktemp("previous"))


@pytest.fixture
def system(store_url: str, tmp_path: Path, before: Release) -> Iterator[Roles]:
    """A whole system of the release before, on a store that it has made."""
    with roles(tmp_path, store_url) as found:
        replace(found, "verifier", before)
        replace(found, "gateway", before)
        for shard in ("shard:0", "shard:1"):
            replace(found, shard, before)
        until(lambda: {*held(found)} == {"shard:0@before", "shard:1@before"})
        yield found


def replace(system: Roles, role: str, release: Release) -> None:
    """Have a part be of a release: in order, as Kubernetes does with a pod that has nobody beside it."""
    if role in system.running:
        system.stop(role)
    if role == "gateway":
        system.serve(role, release, "--store", system.store_url)
        until(lambda: answers(system.addresses["gateway"]))
    elif role == "verifier":
        system.serve(role, release, "--model", f"{MODEL}=simulated")
    else:  # those of this release are of another Ray cluster, as in an upgrade of a RayService
        system.work(role, release, f"green/{role}@after" if release is NEW else f"{role}@before", ENGINE)


def answers(address: str) -> bool:
    """Whether a client of this process, whose clients share connections, has found a gateway that was away."""
    with contextlib.suppress(Unavailable), Client(address) as client:
        next(client.jobs(), None)
        return True
    return False


async def migrate(url: str) -> Migration:
    """As `ramify migrate` does."""
    database = Database(url)
    try:
        return await database.migrate()
    finally:
        await database.close()


def held(system: Roles) -> set[str]:
    """Who holds slots; nothing as long as any has no owner."""
    found = owners(system.store_url)
    return {*found.values()} if len(found) == SLOTS and all(found.values()) else set()


@dataclass(slots=True)
class Watched:
    """A job, and what its watcher is told from its beginning to its end."""

    address: str
    job: job_pb2.Job
    events: list[job_pb2.JobEvent] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        with Client(self.address, reconnect_timeout_s=WAIT_S) as client:
            for event in client.watch(self.job.job_id):
                self.events.append(event)

    def end(self) -> None:
        """Wait for its end; its history has no gap, no repetition and no step back."""
        self.thread.join(WAIT_S)
        assert self.events
        assert self.events[-1].state == job_pb2.JOB_STATE_DONE
        cursors = [event.cursor for event in self.events]
        assert cursors == [*range(cursors[0], cursors[0] + len(cursors))]
        steps = [event.progress.steps for event in self.events]
        assert steps == sorted(steps)


def submitted(system: Roles, name: str, asked: Sequence[str] = PROBLEMS) -> Watched:
    """A job that has begun: steps of it are committed, and more are to come."""
    with Client(system.addresses["gateway"]) as client:
        job = client.submit(asked, **KNOBS, name=name)
        watched = Watched(system.addresses["gateway"], job)
        until(lambda: watched.events and client.job(job.job_id).progress.steps)
    return watched


# The order that docs/operate/upgrade.md tells, and the one that is furthest from it: any two parts may differ by one release.
TOLD = ("migrate", "gateway", "verifier", "shard:0", "shard:1")
OTHER = ("migrate", "shard:0", "shard:1", "verifier", "gateway")


@pytest.mark.parametrize(
    ("store_url", "order"),
    [("postgresql", TOLD), pytest.param("sqlite", OTHER, marks=pytest.mark.faults)],
    indirect=["store_url"],
)
def test_every_role_is_replaced_while_jobs_run(system: Roles, before: Release, order: tuple[str, ...]) -> None:
    watched = []
    for role in order:
        watched.append(submitted(system, f"while {role} is replaced"))
        if role == "migrate":
            assert asyncio.run(migrate(system.store_url)) == Migration("0005", newest())
        else:
            replace(system, role, NEW)
        if role == "shard:0":
            until(lambda: held(system) == {"green/shard:0@after", "shard:1@before"})
    watched.append(submitted(system, "after all"))
    for each in watched:
        each.end()
    with Client(system.addresses["gateway"]) as client:
        came_to = [outcome(client, client.job(each.job.job_id)) for each in watched]
        old = before.run("-c", OLD_CLIENT, system.addresses["gateway"]).strip()
        came_to.append(outcome(client, client.job(old)))
        steps = sum(job.progress.steps for job in client.jobs())
    assert [each == came_to[-2] for each in came_to] == [True] * len(came_to), "as if nothing had been replaced"
    for shard in ("shard:0", "shard:1"):
        system.stop(shard)
    assert set(owners(system.store_url).values()) == {""}, "who drains gives all slots back"
    assert system.committed == steps
    moved = 2 * (QUEUE_FACTOR * SLOTS_AN_ENGINE + FLUSH_STEPS_MAX)  # both shards handed over all that they had
    print(f"{system.committed} steps, of which {system.sampled - system.committed} were paid for twice")
    assert 0 <= system.sampled - system.committed <= moved
