"""`ramify bench shell`: what is charged to whom, and that its figures add up."""

import asyncio
import time
from pathlib import Path

import pytest

from ramify.cli.bench._meter import Meter
from ramify.cli.bench.shell import ARCHIVE, ARROW, CORE, MEANING, STORE, UPKEEP, figures_of, measure

WORK_NS = 20_000_000
CLOCK_NS = 5_000_000  # what the looks at the clock may take, on a busy machine


def work(times: int = 1) -> None:
    until = time.thread_time_ns() + times * WORK_NS
    while time.thread_time_ns() < until:
        pass


def test_a_part_is_not_charged_for_what_another_does_in_its_name() -> None:
    began_ns = time.thread_time_ns()
    meter = Meter("rest")

    def outer() -> None:
        work()
        meter.call("inner", lambda: work(3))
        work()

    meter.call("outer", outer)
    spent, passed_ns = meter.spent_ns, time.thread_time_ns() - began_ns
    assert 2 * WORK_NS <= spent["outer"] < 2 * WORK_NS + CLOCK_NS
    assert 3 * WORK_NS <= spent["inner"] < 3 * WORK_NS + CLOCK_NS
    assert spent["rest"] < CLOCK_NS
    assert passed_ns - CLOCK_NS < sum(spent.values()) <= passed_ns


def test_who_fails_is_done() -> None:
    meter = Meter("rest")
    with pytest.raises(ZeroDivisionError):
        meter.call("part", lambda: 1 / 0)
    before = meter.spent_ns
    work()
    assert (meter.spent_ns - before)["rest"] >= WORK_NS
    assert meter.spent_ns["part"] == before["part"]


async def test_tasks_are_charged_by_their_names_whatever_becomes_of_them() -> None:
    meter = Meter("rest")

    async def works() -> int:
        work()
        await asyncio.sleep(0)
        work()
        return 7

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("told")

    async def waits() -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    meter.charge_tasks(loop, {each.__qualname__: each.__name__ for each in (works, fails, waits)})
    try:
        waiting = asyncio.create_task(waits())
        assert await asyncio.create_task(works()) == 7
        with pytest.raises(ValueError, match="told"):
            await asyncio.create_task(fails())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        loop.set_task_factory(None)
    assert 2 * WORK_NS <= meter.spent_ns["works"] < 2 * WORK_NS + CLOCK_NS
    assert 0 < meter.spent_ns["fails"] < CLOCK_NS
    assert 0 < meter.spent_ns["waits"] < CLOCK_NS


def test_the_figures_add_up(tmp_path: Path) -> None:
    began_ns = time.process_time_ns()
    first, last, switch_ns = asyncio.run(measure(tmp_path, chains=1024, batch=16, seconds=1.0))
    passed_ns = time.process_time_ns() - began_ns
    figures = figures_of(first, last)
    by_part, steps = figures["by_part"], figures["steps"]
    assert by_part.keys() == MEANING.keys()
    now_and_then = {UPKEEP, ARCHIVE, ARROW}  # a beat comes every few seconds
    assert all(us > 0 for part, us in by_part.items() if part not in now_and_then), by_part
    assert figures["core_us_per_step"] == pytest.approx(by_part[CORE], abs=0.01)
    assert figures["store_us_per_step"] == pytest.approx(sum(by_part[part] for part in STORE), abs=0.01)
    told_us = figures["shell_us_per_step"] + figures["core_us_per_step"] + figures["stand_ins_us_per_step"]
    assert told_us * steps * 1000 == pytest.approx(last.process_ns - first.process_ns, rel=0.02)
    assert last.process_ns - first.process_ns < passed_ns
    assert 12 < figures["steps_per_call"] <= 16, "calls are full"
    assert 8 < figures["steps_per_turn"] <= 18, "and a turn has one of them"
    assert steps > 1000
    assert 0 < switch_ns < CLOCK_NS
