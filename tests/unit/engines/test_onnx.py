"""What only the ONNX engine does: keys and values are kept, exactly, and the model is run as it was exported."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.onnx import OnnxEngine, OnnxParams
from ramify.scheduler.engines.onnx_decoder import PAST_MULTIPLE
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.errors import EngineError
from tests.unit.engines.helpers import MODEL, PROBLEMS, STEP, Job, batch_of, collect, encode, needs_model, rows_of, search

pytestmark = needs_model

Make = Callable[..., OnnxEngine]

GREEDY = replace(STEP, temperature=0.0)
ENDLESS = replace(GREEDY, delimiter=None, max_step_tokens=80)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made(**options: Any) -> OnnxEngine:
            engine = OnnxEngine(MODEL, OnnxParams(**options))
            stack.push_async_callback(engine.close)
            return engine

        yield made


async def test_a_kept_prefix_gives_the_bits_of_a_prefill(make: Make) -> None:
    kept, fresh = make(), make()
    chain = encode(kept, PROBLEMS[0])
    first = (await collect(kept, [Job(chain, 1)]))[0]
    jobs = [Job(chain + first.tokens, seed) for seed in range(8)]
    assert await collect(kept, jobs) == await collect(fresh, jobs)
    assert (kept.stats().prefix_hits, kept.stats().prefix_misses) == (1, 1)
    assert (fresh.stats().prefix_hits, fresh.stats().prefix_misses) == (0, 1)
    assert kept.stats().tokens_prefilled == len(chain) - 1


async def test_rows_and_calls_share_a_prefill(make: Make) -> None:
    engine = make()
    jobs = [Job(encode(engine, PROBLEMS[0]), seed) for seed in range(8)]
    await asyncio.gather(collect(engine, jobs), collect(engine, jobs))
    stats = engine.stats()
    assert stats.tokens_prefilled == len(jobs[0].chain) - 1
    assert (stats.prefix_hits, stats.prefix_misses) == (1, 1)


async def test_a_prefill_that_nobody_waits_for_is_given_up(make: Make) -> None:
    engine = make(slots=2, turn_tokens=1)
    long = encode(engine, PROBLEMS[0]) * 15
    first, second = (engine.generate(batch_of([Job(long[at:], 1)])) for at in (0, 1))
    readers = [asyncio.ensure_future(anext(each)) for each in (first, second)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await collect(engine, [Job(long[:12], 1)])
    assert engine.stats().rows_running == 0
    assert engine.stats().tokens_prefilled < 100


@pytest.mark.parametrize("cache_bytes_max", [0, 100_000, 400_000])
async def test_eviction_changes_nothing_and_the_cache_is_bounded(make: Make, cache_bytes_max: int) -> None:
    roomy, tight = make(), make(cache_bytes_max=cache_bytes_max)
    assert await search(tight, depth=4) == await search(roomy, depth=4)
    assert tight.stats().prefix_misses > roomy.stats().prefix_misses
    assert tight.cache_bytes <= cache_bytes_max < roomy.cache_bytes


async def test_a_step_across_paddings_equals_two_steps_after_a_restart(make: Make) -> None:
    one, two = make(), make()
    chain = encode(one, "12 34 56 78|90\n")
    whole = (await collect(one, [Job(chain, 0, ENDLESS)]))[0].tokens
    split = PAST_MULTIPLE - len(chain) + 3
    assert len(whole) > split  # it ends beyond a multiple of the padding, and so does its first part
    half = tuple(whole[:split])
    rest = await collect(two, [Job(chain + half, 0, ENDLESS)])
    assert half + rest[0].tokens[: len(whole) - split] == whole


async def test_greedy_equals_a_full_recomputation(make: Make) -> None:
    engine = make()
    chains = [encode(engine, problem) for problem in PROBLEMS]
    rows = await collect(engine, [Job(chain, at, GREEDY) for at, chain in enumerate(chains)])
    session = onnxruntime.InferenceSession(str(MODEL / "model.onnx"), providers=["CPUExecutionProvider"])
    for chain, row in zip(chains, rows, strict=True):
        known, logprob = list(chain), 0.0
        for token in row.tokens:
            feeds: dict[str, Any] = {
                each.name: np.zeros((1, 4, 0, 32), np.float32) for each in session.get_inputs() if each.name.startswith("past")
            }
            feeds["input_ids"] = np.array([known], np.int64)
            feeds["position_ids"] = np.arange(len(known))[None]
            feeds["attention_mask"] = np.ones((1, len(known)), np.int64)
            logits = np.asarray(session.run(["logits"], feeds)[0])[0, -1].astype(np.float64)
            assert token == logits.argmax()
            logprob += float(logits.max() - np.logaddexp.reduce(logits))
            known.append(token)
        assert np.frombuffer(row.logprob_bits, np.float32)[0] == pytest.approx(logprob, abs=1e-4)


async def test_greedy_ignores_seeds_and_nucleus(make: Make) -> None:
    engine = make()
    chain = encode(engine, PROBLEMS[0])
    jobs = [Job(chain, seed, replace(GREEDY, top_p=top_p)) for top_p in (0.5, 1.0) for seed in range(4)]
    assert len(set(await collect(engine, jobs))) == 1


async def test_logits_without_a_maximum_fail_their_row_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    jobs = [Job(encode(engine, problem), at) for at, problem in enumerate(PROBLEMS)]
    long = Job(encode(engine, PROBLEMS[0]) * 9, 1)
    expected = await collect(make(), jobs)
    run, struck = engine._model.run, len(long.chain) - 1  # where the other rows never come

    def poisoned(tokens: Any, positions: Any, past: Any) -> Any:
        logits, present = run(tokens, positions, past)
        logits[positions >= struck] = np.nan
        return logits, present

    monkeypatch.setattr(engine._model, "run", poisoned)
    messages = set()
    async for results in engine.generate(batch_of([*jobs, long])):
        for at, row in rows_of(results).items():
            assert row == expected[at] if at < len(jobs) else row.finish == Finish.ERROR
        messages.add(results.message)
    assert any("finite" in message for message in messages)


async def test_a_fault_of_the_runtime_fails_all_calls(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._model, "run", broken)
    with pytest.raises(EngineError, match="out of memory"):
        await collect(engine, [Job(encode(engine, PROBLEMS[0]), 0)])
    with pytest.raises(EngineError, match="out of memory"):
        await collect(engine, [])


async def test_the_model_is_described(make: Make) -> None:
    info = make().info
    assert (info.backend, info.slots, info.context_tokens_max) == ("onnx", 64, 256)
    assert info.revision == make().info.revision


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.onnx"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    for each in ("config.json", "tokenizer.json", "model.onnx"):
        if each != name:
            shutil.copy(MODEL / each, tmp_path / each)
    with pytest.raises(EngineError, match=name):
        OnnxEngine(tmp_path)


def test_what_surrounds_the_model_is_read(tmp_path: Path) -> None:
    for path in MODEL.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / path.name)
    (tmp_path / "ramify.json").write_text('{"name": "twenty", "prompt_template": "{problem}|24\\n"}')
    info = OnnxEngine(tmp_path).info
    assert (info.name, info.prompt_template, info.delimiter) == ("twenty", "{problem}|24\n", "\n\n")
    before = info.revision
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    assert OnnxEngine(tmp_path).info.revision != before


@pytest.mark.parametrize("option", ["slots", "threads", "turn_tokens", "cache_bytes_max", "prefill_tokens", "context_tokens_max"])
def test_bounds_are_checked(option: str) -> None:
    with pytest.raises(EngineError):
        load_engine(f"onnx:{MODEL}?{option}=-1")
