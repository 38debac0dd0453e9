"""SIGKILL of one part in the middle of a job; shards that come and go, and stop in order."""

from collections import Counter

import pytest

from ramify.scheduler.actors.config import DRAIN_S
from ramify.scheduler.actors.lanes import QUEUE_FACTOR
from ramify.scheduler.actors.shard_actor import CUT_S
from ramify.scheduler.actors.supervisor import LEAVE_S
from ramify.scheduler.slots import SLOTS
from ramify.store.leases import shard_of
from ramify.v1 import job_pb2
from tests.faults.conftest import LONG_LEASE_MS, Place
from tests.faults.runs import POISONED, PROBLEMS, owners, problems, running
from tests.faults.system import SLOTS_AN_ENGINE, System, end
from tests.waiting import until

pytestmark = pytest.mark.parametrize(
    "place", ["sqlite", pytest.param("postgresql", marks=pytest.mark.faults)], indirect=True, scope="module"
)

LONG = 3  # times as many problems


def test_guarantee_06_a_shard_is_killed(place: Place, system: System) -> None:
    with running(system, place.steps) as run:
        run.until(0.3)
        victim = system.process("shard:0")
        run.harm("0")
        end(victim)
        assert run.end() == place.expected
    # Ray starts its successor at once; on a machine that is busy, the other shard may be there before.
    said = {"shard:0 took over 32 slots from its predecessor", "shard:1 took over 32 slots from shard:0, whose lease had ended"}
    assert said & {*run.notices(job_pb2.NOTICE_KIND_TAKEOVER)}, run.told
    assert 0 <= run.paid_again <= run.bound(1)
    run.report("a shard is killed")


def test_guarantee_06_a_shard_is_killed_and_does_not_come_back(place: Place, system: System) -> None:
    """The other shard takes over when its lease has ended."""
    with running(system, place.steps) as run:
        run.until(0.3)
        run.harm("1")
        system.call("forsake", actor="ramify:shard:1")
        assert run.end() == place.expected
    assert "shard:0 took over 32 slots from shard:1, whose lease had ended" in run.notices(job_pb2.NOTICE_KIND_TAKEOVER), run.told
    assert 0 <= run.paid_again <= run.bound(1)
    run.report("a shard is killed and does not come back")
    system.call("scale", shards=1)
    system.call("scale", shards=2)


def test_guarantee_06_the_supervisor_is_killed_and_then_a_shard(place: Place, system: System) -> None:
    """What it has started goes on without it; it comes back, and looks after all that as before."""
    with running(system, place.steps) as run:
        run.until(0.2)
        victim, other = system.process("supervisor"), system.process("shard:0")
        run.harm()
        end(victim)
        run.until(0.4)
        run.harm("0")
        end(other)
        assert run.end() == place.expected
    system.until_well()
    assert 0 <= run.paid_again <= run.bound(1)
    run.report("the supervisor is killed, and then a shard")


def test_guarantee_07_an_engine_is_killed(place: Place, system: System) -> None:
    with running(system, place.steps) as run:
        run.until(0.3)
        victim = system.process("engine:0")
        run.harm()
        end(victim)
        assert run.end() == place.expected
    assert 0 < run.events[-1].progress.retries <= QUEUE_FACTOR * SLOTS_AN_ENGINE * system.setup.shards
    assert run.paid_again <= run.bound(0)
    run.report("an engine is killed")


def test_guarantee_07_the_verifier_is_killed(place: Place, system: System) -> None:
    with running(system, place.steps) as run:
        run.until(0.3)
        victim = system.process("verifier")
        run.harm()
        end(victim)
        assert run.end() == place.expected
    assert 0 <= run.paid_again <= run.bound(0)
    run.report("the verifier is killed")


def test_guarantee_09_the_gateway_is_killed(place: Place, system: System) -> None:
    with running(system, place.steps) as run:
        run.until(0.3)
        victim = system.process("gateway")
        run.harm()
        end(victim)
        assert run.end() == place.expected
    assert 0 <= run.paid_again <= run.bound(0)
    run.report("the gateway is killed")


@pytest.mark.faults  # tests/e2e/test_bad_input.py does it on one node
def test_guarantee_07_a_problem_that_kills_every_engine_is_set_aside(place: Place, system: System) -> None:
    with running(system, place.steps, problems(poisoned=True)) as run:
        found = run.end()
    assert found.without(POISONED) == place.expected.without(POISONED)
    result = job_pb2.Result.FromString(found.results[POISONED])
    assert result.outcome == job_pb2.OUTCOME_FAILED
    assert "lost 5 times" in result.message
    assert any(f"problem {POISONED}" in text for text in run.notices(job_pb2.NOTICE_KIND_SET_ASIDE))
    run.report("a problem kills every engine")


@pytest.mark.faults  # tests/e2e/test_durability.py does it as a user would
def test_guarantee_06_everything_is_stopped_in_order_and_started_again(place: Place, system: System) -> None:
    """A drain ends within the time that is stated, and gives all slots back: no lease has to end."""
    with running(system, place.steps) as run:
        run.until(0.3)
        run.harm()
        told = system.stop()
        run.look(told["stats"])
        assert told["drained"]
        assert told["drain_s"] < DRAIN_S + CUT_S + LEAVE_S
        assert {*owners(place.store_url).values()} == {""}
        run.system = place.start(lease_ms=LONG_LEASE_MS)
        assert run.end() == place.expected
    assert run.events[-1].progress.takeovers == 0, run.told
    assert 0 <= run.paid_again <= run.bound(2)
    run.report("everything is stopped in order", drain_s=round(told["drain_s"], 2))


@pytest.mark.faults  # tests/upgrade/test_rolling.py replaces each shard by another one
def test_guarantee_09_a_shard_comes_and_another_one_goes(place: Place, patient: System) -> None:
    """Slots move; nothing is taken over, and nothing is restarted. The job is long: it has to outlast a shard's start."""
    with running(patient, LONG * place.steps, problems(LONG * PROBLEMS)) as run:
        run.until(0.05)
        run.harm()
        patient.call("scale", shards=3)
        until(lambda: shared(place, 3))
        run.until(0.4)
        patient.call("scale", shards=2)
        until(lambda: shared(place, 2))
        assert run.end().first(PROBLEMS) == place.expected.first(PROBLEMS)
    assert run.notices(job_pb2.NOTICE_KIND_MOVE), run.told
    assert not run.notices(job_pb2.NOTICE_KIND_TAKEOVER), run.told
    assert 0 <= run.paid_again <= run.bound(2)
    run.report("a shard comes and one goes")


def shared(place: Place, shards: int) -> bool:
    """Whether so many shards hold all slots, each its share."""
    held = Counter(shard_of(owner) for owner in owners(place.store_url).values())
    return held.keys() == {f"shard:{index}" for index in range(shards)} and min(held.values()) >= SLOTS // shards
