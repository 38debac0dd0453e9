"""The `openai` engine against a real `vllm serve` of the tiny generator."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.openai import OpenAIEngine
from ramify.scheduler.engines.openai_params import OpenAIParams
from ramify.scheduler.errors import EngineAway
from tests.unit.engines.helpers import MODEL, PROBLEMS, STEP, Job, batch_of, collect, encode, search
from tests.unit.engines.openai_helpers import jobs_of

GREEDY = replace(STEP, temperature=0.0)


def engine_on(url: str, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(url, OpenAIParams(**{"tokenizer": str(MODEL), **options}))


async def until_idle(url: str) -> None:
    end_s = time.monotonic() + 30
    async with httpx.AsyncClient() as client:
        while True:
            metrics = (await client.get(f"{url.removesuffix('/v1')}/metrics")).text
            open_rows = [
                line
                for line in metrics.splitlines()
                if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
            ]
            assert open_rows
            if all(float(line.rsplit(" ", 1)[1]) == 0 for line in open_rows):
                return
            assert time.monotonic() < end_s, open_rows
            await asyncio.sleep(0.05)


async def test_the_server_describes_its_model(vllm_server: str) -> None:
    engine = engine_on(vllm_server)
    assert (engine.info.name, engine.info.context_tokens_max, engine.info.backend) == ("tiny24", 256, "openai")
    await engine.close()
    with pytest.raises(EngineAway, match="it has tiny24"):
        engine_on(vllm_server, model="other")


async def test_rows_are_well_formed(vllm_server: str) -> None:
    engine = engine_on(vllm_server)
    rows = await search(engine, depth=6)
    assert {Finish.STEP, Finish.END} <= {row.finish for row in rows}
    for row in rows:
        assert row.cost == len(row.tokens) + (row.finish == Finish.END)
        assert encode(engine, row.text.decode()) == row.tokens
        assert row.text.endswith(b"\n") == (row.finish == Finish.STEP)
        assert np.frombuffer(row.logprob_bits, np.float32)[0] <= 0
    assert engine.stats().rows_sampled == len(rows)
    await engine.close()


@pytest.mark.parametrize("form", [{"prompt": "tokens"}, {"prompt": "text"}, {"extensions": "no"}])
async def test_greedy_steps_are_those_of_the_onnx_engine(vllm_server: str, form: dict[str, str]) -> None:
    from ramify.scheduler.engines.onnx import OnnxEngine

    onnx, engine = OnnxEngine(MODEL), engine_on(vllm_server, **form)
    chains = [encode(engine, problem) for problem in PROBLEMS]
    for _ in range(3):
        jobs = [Job(chain, at, GREEDY) for at, chain in enumerate(chains)]
        ours, theirs = await collect(engine, jobs), await collect(onnx, jobs)
        assert [(row.finish, row.tokens, row.cost, row.text) for row in ours] == [
            (row.finish, row.tokens, row.cost, row.text) for row in theirs
        ]
        chains = [chain + row.tokens for chain, row in zip(chains, ours, strict=True) if row.finish == Finish.STEP]
    await asyncio.gather(engine.close(), onnx.close())


async def test_a_row_comes_again_by_its_seed(vllm_server: str) -> None:
    engine = engine_on(vllm_server)
    jobs = [Job(encode(engine, PROBLEMS[0]), seed) for seed in range(16)]
    rows = await collect(engine, jobs)
    assert len({row.tokens for row in rows}) > 1
    again = [(await collect(engine, [job]))[0] for job in jobs]
    same = sum(row.tokens == other.tokens for row, other in zip(rows, again, strict=True))
    assert same >= 15  # a batch of another size may round otherwise
    await engine.close()


async def test_a_full_context_cuts_the_chain(vllm_server: str) -> None:
    engine = engine_on(vllm_server)
    full = (encode(engine, PROBLEMS[0]) * 256)[:256]
    longest = replace(STEP, delimiter=None, max_step_tokens=256)
    rows = await collect(engine, [Job(full, 1), Job(full[:-3], 2, longest)])
    assert (rows[0].finish, rows[0].tokens, rows[0].cost) == (Finish.CONTEXT, (), 0)
    assert rows[1].finish == Finish.END or (rows[1].finish == Finish.CONTEXT and len(rows[1].tokens) == 3)
    await engine.close()
    unaware = engine_on(vllm_server, context_tokens_max=4096)
    (row,) = await collect(unaware, [Job(full + full, 1)])
    assert (row.finish, row.tokens) == (Finish.CONTEXT, ())
    await unaware.close()


async def test_steps_are_cut_and_the_server_refuses_a_row_alone(vllm_server: str) -> None:
    engine = engine_on(vllm_server)
    jobs = jobs_of(engine, rows=2)
    jobs[1] = replace(jobs[1], params=replace(STEP, max_step_tokens=3))
    jobs[3] = replace(jobs[3], params=replace(STEP, temperature=50.0))  # vLLM's end at 2
    rows = await collect(engine, jobs)
    assert len(rows[1].tokens) <= 3
    assert [row.finish == Finish.ERROR for row in rows] == [at == 3 for at in range(len(jobs))]
    await engine.close()


async def test_closing_an_iterator_aborts_at_the_server(vllm_server: str) -> None:
    engine = engine_on(vllm_server, slots=16)
    longest = replace(STEP, delimiter=None, max_step_tokens=200)
    rows = engine.generate(batch_of([Job(encode(engine, PROBLEMS[0]), seed, longest) for seed in range(64)]))
    await anext(rows)
    await rows.aclose()
    await until_idle(vllm_server)
    assert len(await collect(engine, jobs_of(engine, rows=1))) == len(PROBLEMS)
    await engine.close()
