"""What only the simulated engine does: time passes as its parameters say."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams, draw
from ramify.scheduler.errors import EngineError
from tests.unit.engines.helpers import STEP, Job, Row, batch_of, collect, search


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
        "context_token_ns": 0.0,
        "prefill_tokens_per_s": 1000.0,
        "step_tokens_min": 10,
        "step_tokens_max": 10,
        "end_probability": 0.0,
    }
    return SimulatedEngine(SimulatedParams(**(steady | options)), clock.sleep)


def jobs(rows: int, length: int = 97, token: int = 65) -> list[Job]:
    return [Job((token,) * length, seed) for seed in range(rows)]


@pytest.mark.parametrize(
    ("rows", "expected_s"),
    [
        (1, 0.097 + 10 * 0.010),  # a prefill of 97 tokens, then ten tokens
        (4, 0.097 + 0.003 + 10 * 0.013),  # each sibling finds six blocks of 16; three neighbours cost 3 ms a token
        (8, 0.097 + 0.007 + 20 * 0.013),  # two waves, the second from the same prefix
        (5, 0.097 + 0.004 + 10 * 0.013 + 10 * 0.010),
    ],
)
async def test_time_follows_the_load(rows: int, expected_s: float) -> None:
    clock = Clock()
    engine = timed(clock)
    await collect(engine, jobs(rows))
    assert clock.now_s == pytest.approx(expected_s)
    assert clock.now_s == pytest.approx(engine.stats().slot_busy_s / min(rows, 4), rel=0.5)
    assert (engine.stats().tokens_prefilled, engine.stats().tokens_cached) == (97 + rows - 1, 96 * (rows - 1))


async def test_a_long_context_takes_time_to_read() -> None:
    clock = Clock()
    engine = timed(clock, context_token_ns=1e5)
    await collect(engine, [*jobs(2), *jobs(1, length=33, token=66)])
    read = 10 * (2 * 97 + 33) + 3 * sum(range(10))
    assert engine.context_tokens_read == read
    assert clock.now_s == pytest.approx(0.097 + 0.001 + 0.033 + 10 * 0.012 + read * 1e-4)
    await collect(engine, jobs(1, length=33, token=67))
    assert engine.context_tokens_read == read + 10 * 33 + sum(range(10))


async def test_a_row_that_comes_while_slots_are_free_begins_with_the_next_token() -> None:
    clock, later = Clock(), list[asyncio.Task[list[Row]]]()

    async def sleep(delay_s: float) -> None:
        await clock.sleep(delay_s)
        if not later:
            later.append(asyncio.create_task(collect(engine, jobs(1, token=66))))

    engine = SimulatedEngine(timed(clock).params, sleep)
    await collect(engine, jobs(1))
    await later[0]
    together = 2 * 0.097 + 10 * 0.011
    assert together < clock.now_s < together + 4 * 0.010, "most of ten tokens"


async def test_slots_are_busy_for_as_long_as_they_are_used() -> None:
    clock = Clock()
    engine = timed(clock)
    await collect(engine, jobs(8))
    assert engine.stats().slot_busy_s == pytest.approx(4 * clock.now_s)


async def test_of_a_chain_that_was_made_here_only_the_last_block_is_computed() -> None:
    clock = Clock()
    engine = timed(clock)
    row = (await collect(engine, jobs(1)))[0]
    begin_s = clock.now_s
    await collect(engine, [Job(jobs(1)[0].chain + row.tokens, 7)])
    assert clock.now_s - begin_s == pytest.approx(0.011 + 10 * 0.010)
    stats = engine.stats()
    assert (stats.prefix_hits, stats.prefix_misses, stats.tokens_cached, stats.tokens_prefilled) == (1, 1, 96, 97 + 11)


async def test_what_chains_have_in_common_is_computed_once() -> None:
    engine = timed(Clock())
    common = tuple(range(50))
    await collect(engine, [Job((*common, *(token,) * 47), 0) for token in (70, 71)])
    stats = engine.stats()
    assert (stats.prefix_hits, stats.prefix_misses, stats.tokens_cached, stats.tokens_prefilled) == (0, 2, 48, 97 + 49)


async def test_what_is_needed_least_goes_first_and_the_end_of_a_chain_before_its_beginning() -> None:
    engine = timed(Clock(), kv_tokens_max=12 * 16, context_tokens_max=128)
    await collect(engine, jobs(1, token=65))  # seven blocks, six of them full
    await collect(engine, jobs(1, token=66))  # seven more: one of those before has to go
    await collect(engine, jobs(1, token=65))
    stats = engine.stats()
    assert (stats.prefix_misses, stats.tokens_cached) == (3, 5 * 16)


async def test_rows_wait_for_memory() -> None:
    clock, seen = Clock(), set()
    params = timed(clock, kv_tokens_max=13 * 16, context_tokens_max=128).params

    async def sleep(delay_s: float) -> None:
        seen.add((engine.stats().rows_running, engine.stats().rows_waiting))
        await clock.sleep(delay_s)

    engine = SimulatedEngine(params, sleep)
    await collect(engine, [*jobs(2, token=65), *jobs(2, token=66)])
    assert seen == {(2, 2), (2, 0)}, "six blocks and one for each row; five are left, and four slots"
    assert clock.now_s == pytest.approx(2 * (0.098 + 10 * 0.011))


async def test_rows_that_are_given_up_leave_their_memory() -> None:
    engine = timed(Clock(), kv_tokens_max=13 * 16, context_tokens_max=128)
    for token in (65, 66, 67):
        abandoned = engine.generate(batch_of([*jobs(2, token=token), *jobs(2, token=token + 10)]))
        await anext(abandoned)  # the others run or wait
        await abandoned.aclose()
    async with asyncio.timeout(10):
        rows = await collect(engine, [*jobs(1, token=68), *jobs(1, token=69)])
    assert len(rows) == 2


async def test_output_does_not_depend_on_time() -> None:
    rows = await search(timed(Clock()), depth=3)
    assert rows == await search(timed(Clock(), time_scale=0), depth=3)
    assert rows == await search(timed(Clock(), slots=1, token_ms=1.0, prefill_tokens_per_s=5.0), depth=3)
    assert rows == await search(timed(Clock(), kv_tokens_max=160, context_tokens_max=120, block_tokens=1), depth=3)


async def test_a_scale_of_nought_waits_for_nothing() -> None:
    clock = Clock()
    await collect(timed(clock, time_scale=0), jobs(100))
    assert clock.now_s == 0


async def lengths(**options: Any) -> NDArray[np.int64]:
    engine = SimulatedEngine(SimulatedParams(time_scale=0, end_probability=0.25, **options))
    unbounded = replace(STEP, max_step_tokens=1000)
    rows = await collect(engine, [replace(job, params=unbounded) for job in jobs(4000)])
    assert np.mean([row.finish == Finish.END for row in rows]) == pytest.approx(0.25, abs=0.02)
    assert len({row.text for row in rows}) == len(rows)
    return np.array([len(row.tokens) for row in rows if row.finish == Finish.STEP])


async def test_steps_are_long_tailed() -> None:
    found = await lengths(step_tokens_median=60.0, step_tokens_sigma=0.8, step_tokens_min=8, step_tokens_max=600)
    assert np.median(found) == pytest.approx(60, rel=0.05)
    assert np.quantile(found, [0.16, 0.84, 0.99]) == pytest.approx(60 * np.exp(0.8 * np.array([-0.994, 0.994, 2.326])), rel=0.12)
    assert (found.min(), found.max()) == (8, 600)


async def test_steps_may_be_of_even_lengths() -> None:
    found = await lengths(step_lengths="uniform", step_tokens_min=16, step_tokens_max=48)
    assert (found.min(), found.max()) == (16, 48)
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx([24, 32, 40], abs=1.5)


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"prefill_tokens_per_s": 0.0},
        {"time_scale": -1.0},
        {"step_tokens_min": 9, "step_tokens_max": 8},
        {"end_probability": 1.5},
        {"error_rate": -0.1},
        {"step_tokens_median": 0.0},
        {"block_tokens": 0},
        {"die_after_steps": -1},
        {"kv_tokens_max": 100, "context_tokens_max": 200},
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


async def test_steps_fail_by_their_seeds() -> None:
    sound = await search(timed(Clock()), depth=2)
    faulty = await search(timed(Clock(), error_rate=0.3), depth=1)
    assert faulty == await search(timed(Clock(), error_rate=0.3, time_scale=0), depth=1)
    failed = [at for at, row in enumerate(faulty) if row.finish == Finish.ERROR]
    assert 1 <= len(failed) < len(faulty)
    for at, row in enumerate(faulty):
        assert (row.tokens, row.cost, row.text) == ((), 0, b"") if at in failed else row == sound[at]
    full = Job((65,) * 8192, 1)
    assert (await collect(timed(Clock(), error_rate=1.0), [full]))[0].finish == Finish.CONTEXT
    assert "error_rate" in draw(batch_of(jobs(9)), SimulatedParams(error_rate=1.0)).message


async def test_a_slow_engine_takes_longer_for_all_it_does() -> None:
    clock, slow = Clock(), Clock()
    await collect(timed(clock, context_token_ns=1e5), jobs(8))
    await collect(timed(slow, context_token_ns=1e5, slow_factor=3.0), jobs(8))
    assert slow.now_s == pytest.approx(3 * clock.now_s)


async def test_an_engine_stands_still_each_time_it_has_done_so_much() -> None:
    clock, halting = Clock(), Clock()
    await collect(timed(clock), jobs(16))
    engine = timed(halting, stall_every_steps=6, stall_s=100.0)
    await collect(engine, jobs(16))
    assert halting.now_s - clock.now_s == pytest.approx(200), "after 8 and 12 steps of 16: four end at a time"
    assert engine.stats().slot_busy_s == pytest.approx(4 * clock.now_s)


async def test_an_engine_dies_once_it_has_done_so_much() -> None:
    def crash() -> None:
        raise MemoryError("it has died")

    for options in ({}, {"time_scale": 0.0}):
        engine = timed(Clock(), die_after_steps=6, **options)
        engine = SimulatedEngine(engine.params, Clock().sleep, crash)
        assert len(await collect(engine, jobs(6))) == 6
        with pytest.raises(EngineError, match="it has died"):
            await collect(engine, jobs(1))
