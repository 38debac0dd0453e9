"""What the vllm engine does with a real vLLM."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from ramify.scheduler.engines.base import Engine, Finish
from ramify.scheduler.engines.onnx import OnnxEngine, OnnxParams
from ramify.scheduler.engines.onnx_model import OnnxModel
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.engines.vllm import VllmEngine
from ramify.scheduler.errors import EngineError
from tests.unit.engines.helpers import MODEL, PROBLEMS, STEP, Job, Row, batch_of, collect, encode
from tests.vllm.conftest import BLOCK, SLOTS, SPEC

Make = Callable[..., VllmEngine]

GREEDY = replace(STEP, temperature=0.0)
ENDLESS = replace(STEP, delimiter=None, max_step_tokens=60)
DEPTH = 8
PUZZLES = (MODEL.parent / "heldout.txt").read_text().splitlines()[::4]


async def chains(engine: Engine, puzzles: list[str]) -> list[list[Row]]:
    """The greedy steps of each puzzle, up to its end."""
    steps: list[list[Row]] = [[] for _ in puzzles]
    going = {at: encode(engine, puzzle + "\n") for at, puzzle in enumerate(puzzles)}
    for _ in range(DEPTH):
        rows = await collect(engine, [Job(chain, at, GREEDY) for at, chain in going.items()])
        for (at, chain), row in zip([*going.items()], rows, strict=True):
            steps[at].append(row)
            going[at] = chain + row.tokens
            if row.finish not in (Finish.STEP, Finish.STEP_CUT):
                del going[at]
    return steps


async def test_greedy_steps_are_those_of_the_onnx_engine(make: Make) -> None:
    onnx = OnnxEngine(MODEL, OnnxParams())
    ours, theirs = await chains(make(), PUZZLES), await chains(onnx, PUZZLES)
    await onnx.close()
    assert len(ours) == 50
    for mine, other in zip(ours, theirs, strict=True):
        assert [row._replace(logprob_bits=b"") for row in mine] == [row._replace(logprob_bits=b"") for row in other]
        for row, twin in zip(mine, other, strict=True):
            assert logprob(row) == pytest.approx(logprob(twin), abs=1e-4)


async def test_a_logprob_is_of_the_distribution_that_was_sampled_from(make: Make) -> None:
    engine, temperature, top_p = make(), 1.7, 0.8
    params = replace(STEP, temperature=temperature, top_p=top_p, max_step_tokens=1)
    chain = encode(engine, "3 4 7 12>24\n")
    rows = await collect(engine, [Job(chain, seed, params) for seed in range(200)])
    onnx = OnnxModel(MODEL / "model.onnx", {}, 1)
    logits, past = np.zeros((2, 0), np.float32), [np.zeros((2, onnx.heads, 0, onnx.head_dim), np.float32)] * onnx.caches
    for at, token in enumerate(chain):
        logits, new = onnx.run(np.full(2, token), np.full(2, at), past)
        past = [np.concatenate([held, each[:, :, None]], axis=2) for held, each in zip(past, new, strict=True)]
    mass = np.exp(logits[0].astype(np.float64) / temperature)
    mass /= mass.sum()
    order = np.argsort(-mass)
    kept = order[: int(np.searchsorted(np.cumsum(mass[order]), top_p)) + 1]
    assert 1 < len(kept) < len(mass)
    seen = {row.tokens[0] for row in rows}
    assert seen <= set(kept.tolist())
    for row in rows:
        assert math.exp(logprob(row)) == pytest.approx(mass[row.tokens[0]] / mass[kept].sum(), rel=1e-3)


async def test_a_step_ends_with_a_delimiter_of_several_tokens(make: Make) -> None:
    engine = make()
    chain = encode(engine, "3 4 7 12>24\n")
    whole = await collect(engine, [Job(chain, seed) for seed in range(12)])
    for seed, row in enumerate(whole):
        text = row.text.decode()
        if len(text) < 6:
            continue
        delimiter = text[3:6]
        end = text.index(delimiter) + len(delimiter)  # a character is a token here
        short = (await collect(engine, [Job(chain, seed, replace(STEP, delimiter=delimiter))]))[0]
        assert short.finish == Finish.STEP
        assert (short.text.decode(), short.tokens, short.cost) == (text[:end], row.tokens[:end], end)


async def test_a_delimiter_that_never_comes_cuts_the_step(make: Make) -> None:
    params = replace(GREEDY, delimiter="no such thing", max_step_tokens=5)
    engine = make()
    (row,) = await collect(engine, [Job(encode(engine, "3 4 7 12>24\n"), 0, params)])
    assert (row.finish, len(row.tokens)) == (Finish.STEP_CUT, 5)


async def test_rows_of_a_group_share_their_prefix(make: Make) -> None:
    engine = make()
    chain = (encode(engine, PROBLEMS[0]) * 20)[: 5 * BLOCK + 7]
    short = replace(STEP, max_step_tokens=2)
    await collect(engine, [Job(chain, seed, short) for seed in range(SLOTS)])
    cold = engine.stats()
    assert (cold.prefix_hits, cold.prefix_misses) == (0, 1)
    assert cold.tokens_prefilled <= len(chain) + (SLOTS - 1) * (len(chain) - 4 * BLOCK)  # all but the first found most of it
    await collect(engine, [Job(chain, seed, short) for seed in range(SLOTS)])
    warm = engine.stats()
    assert (warm.prefix_hits, warm.prefix_misses) == (1, 1)
    assert warm.tokens_prefilled - cold.tokens_prefilled == SLOTS * 7
    assert warm.rows_sampled == 2 * SLOTS
    assert warm.slot_busy_s > cold.slot_busy_s > 0


async def test_rows_that_nobody_wants_are_aborted(make: Make, llm: Any) -> None:
    engine = make()
    chain = encode(engine, PROBLEMS[0])
    doomed = engine.generate(batch_of([Job(chain, 0), *(Job(chain, seed, ENDLESS) for seed in range(200))]))
    await anext(doomed)
    await doomed.aclose()
    await collect(engine, [Job(chain, 1)])
    assert llm.get_num_unfinished_requests() == 0
    stats = engine.stats()
    assert (stats.rows_running, stats.rows_waiting) == (0, 0)
    assert stats.rows_sampled < 100


async def test_older_calls_go_first(make: Make) -> None:
    engine = make()
    chain, left = encode(engine, PROBLEMS[0]), 5 * SLOTS

    async def older() -> None:
        nonlocal left
        async for results in engine.generate(batch_of([Job(chain, seed, ENDLESS) for seed in range(left)])):
            left -= len(results.row)

    reader = asyncio.create_task(older())
    await asyncio.sleep(0)
    younger = engine.generate(batch_of([Job(chain, seed, ENDLESS) for seed in range(SLOTS)]))
    await anext(younger)
    assert left <= SLOTS
    await younger.aclose()
    await reader
    priorities = [priority for _, priority in engine._llm.requests]
    assert priorities == sorted(priorities)
    assert len(set(priorities)) == 2
    assert len({name for name, _ in engine._llm.requests}) == len(priorities)


@pytest.mark.parametrize(("limit", "value"), [("max_num_queued_reqs", 3), ("max_num_queued_tokens", 40)])
async def test_what_vllm_does_not_admit_waits(
    make: Make, llm: Any, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.scheduler_config, limit, value)
    engine = make()
    jobs = [Job(encode(engine, problem), seed) for problem in PROBLEMS for seed in range(8)]
    rows = await collect(engine, jobs)
    assert {row.finish for row in rows} <= {Finish.STEP, Finish.STEP_CUT, Finish.END}


async def test_a_row_that_vllm_refuses_is_its_own_fault(make: Make) -> None:
    engine = make()
    chain = encode(engine, PROBLEMS[0])
    batch = batch_of([Job(chain, 0), Job(chain, 1, replace(STEP, temperature=7.0))])
    found = [results async for results in engine.generate(batch)]
    finish = {int(row): results.finish[at] for results in found for at, row in enumerate(results.row)}
    assert finish[0] != Finish.ERROR
    assert finish[1] == Finish.ERROR
    assert any("temperature" in results.message for results in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("gpu_memory_utilisation=0.5", "did you mean gpu_memory_utilization"),
        ("slots=0", "a bound is too low"),
        ("max_model_len=many", "max_model_len"),
        ("dtype=float3", "dtype"),
        ("logprobs_mode=raw_logits", "logprobs_mode can't be set"),
        ("max_model_len=100000", "can't load"),
    ],
)
def test_wrong_options_are_explained(options: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_engine(f"vllm:{MODEL}?{options}")


def test_a_model_that_is_not_there_is_explained() -> None:
    with pytest.raises(EngineError, match="can't load /nowhere"):
        load_engine("vllm:/nowhere")


async def test_an_engine_whose_process_died_says_so() -> None:
    before = set(psutil.Process().children(recursive=True))
    engine = await asyncio.to_thread(load_engine, SPEC)  # without an event loop
    started = set(psutil.Process().children(recursive=True)) - before
    try:
        chain = encode(engine, PROBLEMS[0])
        assert len(await collect(engine, [Job(chain, 0)])) == 1
        reader = engine.generate(batch_of([Job(chain, 0), *(Job(chain, seed, ENDLESS) for seed in range(200))]))
        await anext(reader)
        for process in started:
            process.kill()
        with pytest.raises(EngineError, match="can't go on"):
            async for _ in reader:
                pass
        with pytest.raises(EngineError, match="can't go on"):
            await collect(engine, [])
    finally:
        await engine.close()


def logprob(row: Row) -> float:
    return float(np.frombuffer(row.logprob_bits, np.float32)[0])


async def test_the_chat_template_is_the_tokenizers(make: Make, llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info = make().info
    assert (info.chat_template, info.bos_token, info.eos_token) == ("", "<bos>", "<eos>")
    for template, wanted in (("{{ messages }}", "{{ messages }}"), ({"default": "d", "tool_use": "t"}, "d")):
        monkeypatch.setattr(llm.get_tokenizer(), "chat_template", template)
        assert make().info.chat_template == wanted
