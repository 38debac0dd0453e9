"""What stands still and wakes up, a node that is lost with all on it, the database, and everything at once."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence

import psutil
import pytest
from sqlalchemy.engine import make_url

from ramify.scheduler.slots import SLOTS
from ramify.store.leases import shard_of
from ramify.v1 import job_pb2
from tests.faults.conftest import LONG_LEASE_MS, Place
from tests.faults.runs import owners, running
from tests.faults.system import System, end, gone
from tests.waiting import until

pytestmark = pytest.mark.parametrize(
    "place", ["postgresql", pytest.param("sqlite", marks=pytest.mark.faults)], indirect=True, scope="module"
)

LOOK_S = 0.5


def test_guarantee_06_a_shard_stands_still_past_its_lease(place: Place, system: System) -> None:
    """Nothing of what it has sampled is written once it wakes up."""
    with running(system, place.steps) as run:
        run.until(0.3)
        victim = system.process("shard:0")
        owner = next(owner for owner in owners(place.store_url).values() if shard_of(owner) == "shard:0")
        run.harm("0")
        with standing_still(place, [victim]):
            until(lambda: {shard_of(owner) for owner in owners(place.store_url).values()} == {"shard:1"})
            known = run.segments_of(owner)
        assert run.end() == place.expected
    system.until_well()
    assert run.segments_of(owner) <= known
    took = [text for text in run.notices(job_pb2.NOTICE_KIND_TAKEOVER) if text.endswith("from shard:0, whose lease had ended")]
    assert sum(int(text.split()[3]) for text in took) == SLOTS // 2, "at once, or some at a time"
    assert 0 <= run.paid_again <= run.bound(1)
    run.report("a shard is paused past its lease")


def test_guarantee_06_a_node_stands_still_past_the_lease(place: Place, system: System) -> None:
    """With a shard and an engine; and goes on."""
    with running(system, place.steps) as run:
        run.until(0.3)
        node = system.node_of("shard:0")
        assert system.node_of("engine:0") == node
        run.harm("0")
        with standing_still(place, system.tree(node)):
            until(lambda: {shard_of(owner) for owner in owners(place.store_url).values()} == {"shard:1"})
        assert run.end() == place.expected
    assert 0 <= run.paid_again <= run.bound(1)
    run.report("a node is paused past the lease")


@pytest.mark.faults  # half a minute for nothing but that
def test_guarantee_06_a_node_stands_still_until_it_is_given_up(place: Place, system: System) -> None:
    """What was on it comes back elsewhere, and when it wakes up it ends itself: two of each are there for a while."""
    with running(system, place.steps) as run:
        run.until(0.3)
        node = system.node_of("shard:0")
        assert node != "head"
        victims = system.tree(node)
        run.harm()
        with standing_still(place, victims):
            until(lambda: {system.node_of("shard:0"), system.node_of("engine:0")} == {"head"})
            run.until(0.6)
        assert run.end() == place.expected
    until(lambda: all(gone(victim) for victim in victims))
    assert run.paid_again <= run.bound(1)
    run.report("a node is paused until it is given up")
    system.call("replace", node=node)
    for actor in ("shard:0", "engine:0"):  # back to where they belong
        end(system.process(actor))


def test_guarantee_06_a_node_is_killed_with_all_on_it(place: Place, system: System) -> None:
    """A shard and an engine come back on other nodes."""
    with running(system, place.steps) as run:
        run.until(0.3)
        node = system.node_of("shard:0")
        assert node != "head"
        assert system.node_of("engine:0") == node
        victims = system.tree(node)
        run.harm()
        end(*victims)
        assert run.end() == place.expected
    assert run.paid_again <= run.bound(1)
    run.report("a node is killed")
    until(lambda: {system.node_of("shard:0"), system.node_of("engine:0")} == {"head"})
    system.call("replace", node=node)


def test_guarantee_06_the_database_is_stopped_and_started(place: Place, system: System) -> None:
    server = place.server
    if server is None:
        pytest.skip("SQLite has no server")
    with running(system, place.steps) as run:
        run.until(0.3)
        run.harm()
        server.stop("immediate")
        until(lambda: all(shard["shell"]["state"] != "working" for shard in run.look()["shards"].values()))
        server.start()
        started_s = time.time()
        assert run.end() == place.expected
    assert 0 <= run.paid_again <= run.bound(0)
    run.report("the database is stopped and started", from_its_start_s=round(run.next_s(started_s), 2))


@pytest.mark.faults  # tests/e2e/test_durability.py does it as a user would, on SQLite
def test_guarantee_07_everything_is_killed(place: Place, system: System) -> None:
    """The database too. What is started takes the slots of those that were killed at once."""
    with running(system, place.steps) as run:
        run.until(0.3)
        run.harm()
        system.kill_everything()
        if place.server is not None:
            place.server.stop("immediate")
            place.server.start()
        run.system = place.start(lease_ms=LONG_LEASE_MS)
        start_s = time.time() - run.faults[0].at_s
        assert run.end() == place.expected
    assert run.paid_again <= run.bound(2)
    run.report("everything is killed", start_s=round(start_s, 2))


@contextlib.contextmanager
def standing_still(place: Place, processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Processes are stopped meanwhile, but not just while one of them holds the lock that SQLite has for all writers."""
    try:
        while True:
            for process in processes:
                process.suspend()
            if place.server is not None or writable(place.store_url):
                break
            for process in processes:
                process.resume()
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def writable(store_url: str) -> bool:
    """Whether SQLite's lock is to be had."""
    connection = sqlite3.connect(make_url(store_url).database or "", timeout=LOOK_S, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True
