"""What a shard counts and tells, without Ray, which takes what is told and passes it on to nobody."""

from typing import Any

import numpy as np
import pytest
from ray.util.metrics import Counter, Gauge

from ramify.scheduler.actors.lanes import Queued
from ramify.scheduler.actors.meters import TIMES_MAX, Meters
from ramify.scheduler.actors.metrics import NIL, OTHERS, TENANTS_MAX, ShardMetrics
from ramify.scheduler.actors.status import ShellStatus
from ramify.store.tenants import Standing, Tenant
from tests.unit.actors.desk import SLOTS, Desk, nodes, settled, steps


def status(tenants: int) -> ShellStatus:
    """A shell that works for so many tenants, of which later ones have spent more."""
    names = [f"tenant {number}" for number in range(tenants)]
    given: dict[str, Any] = dict.fromkeys(ShellStatus.__dataclass_fields__, 0)
    given |= {"state": "working", "waits": (), "lanes": (), "queued": {names[0]: Queued(3, 7.0)}}
    given["tenant_trees"] = dict.fromkeys(names, 1)
    given["tenants"] = {name: Standing(Tenant(name, tokens_per_day_max=9), 0, number) for number, name in enumerate(names)}
    return ShellStatus(**given)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    """The last that was told of each gauge, and the sum of each counter, by name and tags."""
    found: dict[tuple[str, ...], float] = {}

    def key(metric: Any, tags: dict[str, str]) -> tuple[str, ...]:
        return metric.info["name"].removeprefix("ramify_"), *(value for name, value in tags.items() if name != "shard")

    def inc(self: Counter, value: float = 1.0, tags: Any = None) -> None:
        assert value > 0, "Ray counts no zeros"
        found[key(self, tags)] = found.get(key(self, tags), 0) + value

    monkeypatch.setattr(Gauge, "set", lambda self, value, tags: found.update({key(self, tags): value}))
    monkeypatch.setattr(Counter, "inc", inc)
    return found


def test_so_many_tenants_are_told_of_by_name_and_keep_it(told: dict[tuple[str, ...], float]) -> None:
    metrics, meters = ShardMetrics(0), Meters()
    meters.count("tenant_tokens", 5, "tenant 0")
    metrics.tell(status(TENANTS_MAX + 10), meters, {})
    named = {tags[0] for name, *tags in told if name == "tenant_trees"}
    assert len(named) == TENANTS_MAX + 1
    assert {"tenant 0", "tenant 209", OTHERS} <= named, "who is counted first, and those who spend most"
    assert told["tenant_trees", OTHERS] == 10
    assert told["tenant_tokens_today", OTHERS] == sum(range(1, 11))
    assert ("tenant_tokens_per_day_max", OTHERS) not in told, "the sum of what others may says nothing"
    assert (told["queue_age_seconds",], told["tenant_queued_steps", "tenant 0"]) == (7.0, 3)
    meters.count("tenant_tokens", 5, "tenant 0")
    meters.count("tenant_tokens", 2, "tenant 1")
    metrics.tell(status(1), meters, {})
    assert (told["tenant_tokens", "tenant 0"], told["tenant_tokens", OTHERS]) == (10, 2)


def test_counters_begin_at_nothing(told: dict[tuple[str, ...], float]) -> None:
    metrics, meters = ShardMetrics(0), Meters()
    assert told["takeovers",] == NIL
    for slots in (0, 3):
        meters.count("takeovers", slots)
        metrics.tell(None, meters, {})
    assert told["takeovers",] == 3, "with what nothing is told as it is no more than nothing"
    assert told["shard_working",] == 0


def test_what_nobody_takes_stays_bounded() -> None:
    meters = Meters()
    for number in range(TIMES_MAX + 5):
        meters.took("commit_seconds", number)
    (times,) = meters.take_times().values()
    assert times == [*range(5, TIMES_MAX + 5)]
    assert meters.take_times() == {}


async def test_a_queue_is_as_old_as_what_waits_longest() -> None:
    desk = Desk()
    assert desk.dispatcher.queued() == {}
    long = steps(0, 3 * SLOTS)
    await desk.send(long)
    (tenant,) = desk.dispatcher.queued()
    desk.now_s += 10
    await desk.send(steps(1, 2))
    assert desk.dispatcher.queued()[tenant] == Queued(SLOTS + 2, 10.0)
    desk.calls[0].answer(*range(SLOTS - 1))
    await settled()
    await desk.send()
    assert len(desk.sent) == 3 * SLOTS - 1, "all but one are sent"
    desk.now_s += 1
    assert desk.dispatcher.queued()[tenant] == Queued(3, 11.0), "the one has waited since the first look"
    assert np.isin(desk.sent, nodes(long)).all()
    await desk.dispatcher.close()
