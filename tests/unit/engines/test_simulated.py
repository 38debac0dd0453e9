"""What only the simulated engine does: time passes as its parameters say."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.scheduler.errors import EngineError
from tests.unit.engines.helpers import STEP, Job, collect, search


class Clock:
    """Time that passes only when somebody waits for it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        await asyncio.sleep(0)


def timed(clock: Clock, **options: Any) -> SimulatedEngine:
    steady: dict[str, Any] = {
        "slots": 4,
        "token_ms": 10.0,
        "token_extra_ms": 1.0,
        "prefill_tokens_per_s": 1000.0,
        "step_tokens_min": 10,
        "step_tokens_max": 10,
        "end_probability": 0.0,
    }
    return SimulatedEngine(SimulatedParams(**(steady | options)), clock.sleep)


def jobs(rows: int, length: int = 100) -> list[Job]:
    return [Job((65,) * length, seed) for seed in range(rows)]


@pytest.mark.parametrize(
    ("rows", "expected_s"),
    [
        (1, 0.1 + 10 * 0.010),  # a prefill of 100 tokens, then ten tokens
        (4, 0.1 + 10 * 0.013),  # three neighbours cost 3 ms a token
        (8, 0.1 + 20 * 0.013),  # two waves, the second from the same prefix
        (5, 0.1 + 10 * 0.013 + 10 * 0.010),
    ],
)
async def test_time_follows_the_load(rows: int, expected_s: float) -> None:
    clock = Clock()
    engine = timed(clock)
    await collect(engine, jobs(rows))
    assert clock.now_s == pytest.approx(expected_s)
    assert engine.stats().prefix_misses == 1


async def test_slots_are_busy_for_as_long_as_they_are_used() -> None:
    clock = Clock()
    engine = timed(clock)
    await collect(engine, jobs(8))
    assert engine.stats().slot_busy_s == pytest.approx(4 * clock.now_s)


async def test_a_chain_that_was_made_here_needs_no_prefill() -> None:
    clock = Clock()
    engine = timed(clock)
    row = (await collect(engine, jobs(1)))[0]
    begin_s = clock.now_s
    await collect(engine, [Job(jobs(1)[0].chain + row.tokens, 7)])
    assert clock.now_s - begin_s == pytest.approx(10 * 0.010)
    assert (engine.stats().prefix_hits, engine.stats().tokens_prefilled) == (1, 100)


async def test_a_prefix_that_was_dropped_is_prefilled_again() -> None:
    engine = timed(Clock(), prefix_tokens_max=150)
    row = (await collect(engine, jobs(1)))[0]
    await collect(engine, jobs(1))
    assert (row.finish, engine.stats().prefix_misses) == (Finish.STEP, 2)


async def test_output_does_not_depend_on_time() -> None:
    rows = await search(timed(Clock()), depth=3)
    assert rows == await search(timed(Clock(), time_scale=0), depth=3)
    assert rows == await search(timed(Clock(), slots=1, token_ms=1.0, prefill_tokens_per_s=5.0), depth=3)


async def test_a_scale_of_nought_waits_for_nothing() -> None:
    clock = Clock()
    await collect(timed(clock, time_scale=0), jobs(100))
    assert clock.now_s == 0


async def test_chains_end_as_often_as_asked_and_steps_are_as_long() -> None:
    engine = SimulatedEngine(SimulatedParams(time_scale=0, end_probability=0.25))
    unbounded = replace(STEP, max_step_tokens=64)
    rows = await collect(engine, [replace(job, params=unbounded) for job in jobs(4000)])
    assert np.mean([row.finish == Finish.END for row in rows]) == pytest.approx(0.25, abs=0.02)
    lengths = [len(row.tokens) for row in rows if row.finish == Finish.STEP]
    assert (min(lengths), max(lengths)) == (16, 48)
    assert len({row.text for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"prefill_tokens_per_s": 0.0},
        {"time_scale": -1.0},
        {"step_tokens_min": 9, "step_tokens_max": 8},
        {"end_probability": 1.5},
    ],
)
def test_parameters_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        SimulatedParams(**options)


async def test_a_chain_that_holds_a_text_crashes_the_engine_for_game_days() -> None:
    crashes: list[str] = []
    engine = SimulatedEngine(SimulatedParams(crash_on="poison", time_scale=0), crash=lambda: crashes.append("crash"))
    await collect(engine, [Job(tuple(text.encode()), 1) for text in ("a poi", "son of", "poiso\nn")])
    assert crashes == [], "it must be in one chain"
    await collect(engine, [Job(tuple(b"an innocent"), 1), Job(tuple(b"a poisoned one"), 2)])
    assert crashes == ["crash"]
