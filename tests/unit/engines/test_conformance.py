"""What every engine must do. An engine that passes can stand behind a shard."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.engines import openai as openai_module
from ramify.scheduler.engines.base import Engine, Finish, StepBatch
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams
from ramify.scheduler.errors import EngineError
from tests.unit.engines.completions_server import CompletionsServer
from tests.unit.engines.helpers import MODEL, PROBLEMS, STEP, Job, batch_of, collect, encode, needs_model, search

Make = Callable[..., Engine]


def make_onnx(**options: Any) -> Engine:
    from ramify.scheduler.engines.onnx import OnnxEngine, OnnxParams

    return OnnxEngine(MODEL, OnnxParams(**options))


def make_chunked(**options: Any) -> Engine:
    return make_onnx(prefill_tokens=16, **options)


def make_instant(**options: Any) -> Engine:
    return SimulatedEngine(SimulatedParams(time_scale=0, context_tokens_max=256, **options))


def make_timed(**options: Any) -> Engine:
    async def skip(delay_s: float) -> None:
        await asyncio.sleep(0)

    return SimulatedEngine(SimulatedParams(context_tokens_max=256, **options), skip)


def make_tight(**options: Any) -> Engine:
    """Has memory for one of its longest sequences, and not a block more."""
    return make_timed(kv_tokens_max=17 * 16, **options)


def make_openai(**options: Any) -> Engine:
    from ramify.scheduler.engines.openai import OpenAIEngine
    from ramify.scheduler.engines.openai_params import OpenAIParams

    return OpenAIEngine(options.pop("url"), OpenAIParams(**options))


@pytest.fixture(scope="module")
def server() -> Iterator[CompletionsServer]:
    with CompletionsServer() as server:
        yield server


@pytest.fixture(
    params=[
        pytest.param(make_onnx, marks=needs_model, id="onnx"),
        pytest.param(make_chunked, marks=needs_model, id="onnx in chunks"),
        pytest.param(make_instant, id="instant"),
        pytest.param(make_timed, id="timed"),
        pytest.param(make_tight, id="tight"),
        pytest.param(make_openai, id="openai"),
    ]
)
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    there = {"url": request.getfixturevalue("server").url} if request.param is make_openai else {}
    async with AsyncExitStack() as stack:

        def made(**options: Any) -> Engine:
            options |= there
            engine: Engine = request.param(**options)
            stack.push_async_callback(engine.close)
            return engine

        yield made


def jobs_of(engine: Engine, rows: int = 6) -> list[Job]:
    chains = [encode(engine, problem) for problem in PROBLEMS]
    return [Job(chain, 100 * at + row) for at, chain in enumerate(chains) for row in range(rows)]


async def test_rows_are_well_formed(make: Make) -> None:
    engine = make()
    rows = await collect(engine, jobs_of(engine))
    assert {row.finish for row in rows} <= {Finish.STEP, Finish.STEP_CUT, Finish.END}
    assert any(row.finish == Finish.STEP for row in rows)
    for row in rows:
        assert row.cost == len(row.tokens) + (row.finish == Finish.END)
        assert encode(engine, row.text.decode()) == row.tokens
        assert row.text.endswith(b"\n") == (row.finish == Finish.STEP)
        assert np.frombuffer(row.logprob_bits, np.float32)[0] <= 0


async def test_seeds_make_a_difference(make: Make) -> None:
    engine = make()
    rows = await collect(engine, jobs_of(engine, rows=16))
    assert len({row.tokens for row in rows[:16]}) > 1


async def test_a_row_does_not_depend_on_its_batch(make: Make) -> None:
    jobs = jobs_of(make(), rows=8)
    rows = await collect(make(), jobs)
    order = np.random.default_rng(0).permutation(len(jobs)).tolist()
    shuffled = await collect(make(), [jobs[at] for at in order])
    assert shuffled == [rows[at] for at in order]
    engine = make()
    for at in (0, 7, len(jobs) - 1):
        assert await collect(engine, [jobs[at]]) == [rows[at]]


@pytest.mark.parametrize("slots", [1, 2, 7])
async def test_a_row_does_not_depend_on_the_number_of_slots(make: Make, slots: int) -> None:
    assert await search(make(slots=slots), depth=2) == await search(make(slots=64), depth=2)


async def test_calls_share_an_engine(make: Make) -> None:
    engine = make(slots=8)
    jobs = jobs_of(engine)
    halves = jobs[:13], jobs[13:]
    rows = await asyncio.gather(*(collect(engine, half) for half in halves))
    assert rows[0] + rows[1] == await collect(make(), jobs)


async def test_rows_stand_in_line_by_priority_and_none_is_passed_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_module, "GATHER_S", 0)  # what ends within it is told by calls, and not in the order of the ends
    engine, ended = make(slots=1), list[str]()
    if isinstance(engine, SimulatedEngine) and not engine.params.time_scale:
        pytest.skip("no row waits: nothing takes time")
    jobs = jobs_of(engine, rows=1)

    async def sample(name: str, priority: list[int]) -> None:
        batch = replace(batch_of(jobs[: len(priority)]), priority=np.array(priority, np.int32))
        async for results in engine.generate(batch):
            ended.extend(f"{name}{row}" for row in results.row.tolist())

    await asyncio.gather(sample("flood", [6, 7, 8, 9]), sample("newcomer", [0, 1]), sample("late", [4]), sample("last", [0]))
    first = ended.index("newcomer0")
    assert ended[first : first + 2] == ["newcomer0", "newcomer1"]
    rest = [name for name in ended if not name.startswith("newcomer")]
    assert rest == ["flood0", "flood1", "last0", "flood2", "flood3", "late0"]


async def test_every_step_that_was_sampled_is_counted(make: Make) -> None:
    engine = make(slots=2)
    jobs = jobs_of(engine, rows=7)
    batch = batch_of(jobs)
    await collect(engine, jobs)
    assert engine.stats().rows_sampled == len(batch)
    abandoned = engine.generate(batch)
    first = await anext(abandoned)
    await abandoned.aclose()
    await collect(engine, jobs[:0])
    assert len(batch) + len(first.row) <= engine.stats().rows_sampled <= 2 * len(batch)


async def test_an_iterator_closed_early_frees_its_slots(make: Make) -> None:
    engine = make(slots=2)
    jobs = jobs_of(engine, rows=40)
    abandoned = engine.generate(batch_of(jobs))
    await anext(abandoned)
    await abandoned.aclose()
    assert await collect(engine, jobs[:3]) == await collect(make(), jobs[:3])
    stats = engine.stats()
    assert (stats.rows_running, stats.rows_waiting) == (0, 0)


async def test_a_cancelled_reader_frees_its_slots(make: Make) -> None:
    engine = make(slots=2)
    jobs = jobs_of(engine, rows=40)
    reader = asyncio.create_task(collect(engine, jobs))
    await asyncio.sleep(0)  # it has submitted
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await collect(engine, jobs[:1])
    stats = engine.stats()
    assert (stats.rows_running, stats.rows_waiting) == (0, 0)


async def test_a_step_is_cut_at_its_longest(make: Make) -> None:
    engine = make()
    jobs = jobs_of(engine)
    whole = await collect(engine, jobs)
    cut = await collect(engine, [replace(job, params=replace(STEP, max_step_tokens=3)) for job in jobs])
    assert any(row.finish == Finish.STEP_CUT for row in cut)
    for long, short in zip(whole, cut, strict=True):
        assert short.tokens == long.tokens[:3]
        if short.finish == Finish.STEP_CUT:
            assert len(short.tokens) == short.cost == 3
        else:
            assert short == long


async def test_without_a_delimiter_a_step_goes_on_to_its_longest(make: Make) -> None:
    engine = make()
    params = replace(STEP, delimiter=None, max_step_tokens=60)
    rows = await collect(engine, [replace(job, params=params) for job in jobs_of(engine)])
    assert {row.finish for row in rows} <= {Finish.STEP_CUT, Finish.END}
    assert all(len(row.tokens) == 60 for row in rows if row.finish == Finish.STEP_CUT)


async def test_chains_end(make: Make) -> None:
    rows = await search(make(), depth=6)
    assert any(row.finish == Finish.END and row.cost == len(row.tokens) + 1 for row in rows)


async def test_params_are_per_group(make: Make) -> None:
    engine = make()
    jobs = [replace(job, params=replace(STEP, max_step_tokens=1 + at)) for at, job in enumerate(jobs_of(engine, 1))]
    for at, row in enumerate(await collect(engine, jobs)):
        assert len(row.tokens) <= 1 + at


async def test_a_full_context_cuts_the_chain(make: Make) -> None:
    engine = make()
    full = engine.info.context_tokens_max
    chain = (encode(engine, PROBLEMS[0]) * full)[:full]
    longest = replace(STEP, delimiter=None, max_step_tokens=full)
    jobs = [Job(chain, 1), Job((*chain, *chain), 2), Job(chain[:-3], 3, longest), Job(chain[:-1], 4, longest)]
    rows = await collect(engine, jobs)
    for row in rows[:2]:
        assert (row.finish, row.tokens, row.cost, row.text) == (Finish.CONTEXT, (), 0, b"")
    for row, room in zip(rows[2:], (3, 1), strict=True):
        assert row.finish == Finish.END or (row.finish == Finish.CONTEXT and len(row.tokens) == room)


async def test_an_empty_batch_yields_nothing(make: Make) -> None:
    assert await collect(make(), []) == []


def with_column(name: str, value: Any) -> Callable[[StepBatch], StepBatch]:
    return lambda batch: replace(batch, **{name: value})


BAD: dict[str, Callable[[StepBatch], StepBatch]] = {
    "empty chain": lambda batch: replace(batch, offsets=np.insert(batch.offsets, 1, 0)),
    "offsets past the tokens": lambda batch: replace(batch, offsets=batch.offsets + np.arange(len(batch.offsets))),
    "no offsets": with_column("offsets", np.zeros(0, np.int64)),
    "narrow offsets": lambda batch: replace(batch, offsets=batch.offsets.astype(np.int32)),
    "matrix of tokens": lambda batch: replace(batch, tokens=batch.tokens[:, None]),
    "token outside of the vocabulary": lambda batch: replace(batch, tokens=batch.tokens + np.int32(10_000)),
    "negative token": lambda batch: replace(batch, tokens=batch.tokens - np.int32(10_000)),
    "group that is not there": lambda batch: replace(batch, group=batch.group + np.int32(1)),
    "groups out of order": lambda batch: replace(batch, group=batch.group[::-1].copy()),
    "too few codes": lambda batch: replace(batch, code=batch.code[:-1]),
    "a code of 1": lambda batch: replace(batch, code=np.ones_like(batch.code)),
    "too few seeds": lambda batch: replace(batch, seed=batch.seed[:-1]),
    "signed seeds": lambda batch: replace(batch, seed=batch.seed.astype(np.int64)),
    "params that are not there": lambda batch: replace(batch, group_params=batch.group_params + np.int32(1)),
    "params of too few groups": lambda batch: replace(batch, group_params=batch.group_params[:-1]),
    "negative temperature": with_column("params", (replace(STEP, temperature=-0.1),)),
    "no temperature": with_column("params", (replace(STEP, temperature=float("nan")),)),
    "no nucleus": with_column("params", (replace(STEP, top_p=0.0),)),
    "no tokens": with_column("params", (replace(STEP, max_step_tokens=0),)),
    "empty delimiter": with_column("params", (replace(STEP, delimiter=""),)),
    "delimiter of several tokens": with_column("params", (replace(STEP, delimiter="\n\n\n+"),)),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_malformed_batch_is_refused(make: Make, name: str) -> None:
    engine = make()
    if name == "delimiter of several tokens" and engine.info.backend in ("onnx", "openai"):
        pytest.skip("it looks for delimiters in the text")
    jobs = jobs_of(engine, rows=2)
    with pytest.raises(EngineError):
        await anext(engine.generate(BAD[name](batch_of(jobs))))
    assert len(await collect(engine, jobs)) == len(jobs)


async def test_waiting_rows_are_bounded(make: Make) -> None:
    engine = make(slots=2, waiting_rows_max=10)
    jobs = jobs_of(engine, rows=4)
    reader = asyncio.create_task(collect(engine, jobs[:12]))
    await asyncio.sleep(0)
    with pytest.raises(EngineError, match="12 rows are open"):
        await collect(engine, jobs[12:13])
    await reader
    await collect(engine, jobs[:12])


async def test_a_closed_engine_fails_open_and_later_calls(make: Make) -> None:
    engine = make(slots=2)
    jobs = jobs_of(engine)
    reader = asyncio.create_task(collect(engine, jobs))
    await asyncio.sleep(0)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await reader
    with pytest.raises(EngineError, match="closed"):
        await collect(engine, jobs)


async def test_an_engine_that_dies_fails_all_calls(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    jobs = jobs_of(engine)

    async def burn() -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(engine, "_turn", burn)
    outcomes = await asyncio.gather(collect(engine, jobs), collect(engine, jobs), return_exceptions=True)
    later = await asyncio.gather(collect(engine, jobs), return_exceptions=True)
    for outcome in (*outcomes, *later):
        assert isinstance(outcome, EngineError)
        assert isinstance(outcome.__cause__, MemoryError)
