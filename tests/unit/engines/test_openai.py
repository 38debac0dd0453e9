import asyncio
import logging
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.openai import OpenAIEngine
from ramify.scheduler.engines.openai_params import OpenAIParams
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.errors import EngineAway, EngineError
from tests.unit.engines.completions_server import CompletionsServer, answer, error, hang
from tests.unit.engines.helpers import STEP, Job, batch_of, collect, encode, search
from tests.unit.engines.openai_helpers import character_tokenizer, engine_at, jobs_of, saved, until

KEY = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with CompletionsServer() as server:
        yield server


async def test_a_request_is_one_row_with_its_own_seed(server: CompletionsServer) -> None:
    async with engine_at(server, slots=1, extra_body='{"top_k": -1}') as engine:
        jobs = [replace(job, params=replace(STEP, temperature=0.5, top_p=0.9)) for job in jobs_of(engine, rows=3)]
        await collect(engine, jobs)
    assert [(body["prompt"].encode(), body["seed"]) for body in server.bodies] == [(bytes(job.chain), job.seed) for job in jobs]
    for body in server.bodies:
        assert (body["n"], body["temperature"], body["top_p"], body["top_k"]) == (1, 0.5, 0.9, -1)
        assert (body["max_tokens"], body["stop"], body["include_stop_str_in_output"]) == (40, ["\n"], True)


async def test_seeds_fit_signed_64_bits(server: CompletionsServer) -> None:
    async with engine_at(server) as engine:
        await collect(engine, [Job(encode(engine, "1\n"), 2**64 - 1)])
    assert server.bodies[0]["seed"] == 2**63 - 1


@pytest.mark.parametrize("slots", [1, 3])
async def test_requests_are_bounded_by_slots(server: CompletionsServer, slots: int) -> None:
    server.delay_s = 0.005
    async with engine_at(server, slots=slots) as engine:
        jobs = jobs_of(engine)
        await asyncio.gather(collect(engine, jobs), collect(engine, jobs))
        assert server.open_max == slots
        assert engine.stats().slot_busy_s > 0


async def test_rows_that_come_later_take_free_slots(server: CompletionsServer) -> None:
    server.faults.append(hang)
    async with engine_at(server, slots=2) as engine:
        jobs = jobs_of(engine)
        stuck = asyncio.create_task(collect(engine, jobs[:1]))
        await until(lambda: server.open == 1)
        assert len(await collect(engine, jobs[1:])) == len(jobs) - 1
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)


async def test_an_iterator_closed_early_aborts_its_requests(server: CompletionsServer) -> None:
    server.fault = hang
    async with engine_at(server, slots=4) as engine:
        reader = asyncio.create_task(collect(engine, jobs_of(engine)))
        await until(lambda: server.open == 4)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await until(lambda: server.aborted == 4)
        assert len(server.bodies) == 4


async def test_closing_an_engine_aborts_its_requests(server: CompletionsServer) -> None:
    server.fault = hang
    async with engine_at(server, slots=4) as engine:
        reader = asyncio.create_task(collect(engine, jobs_of(engine)))
        await until(lambda: server.open == 4)
    with pytest.raises(EngineError, match="closed"):
        await reader
    await until(lambda: server.aborted == 4)


async def test_tokens_are_sent_where_they_are_taken(server: CompletionsServer, tmp_path: Path) -> None:
    async with engine_at(server, tokenizer=saved(character_tokenizer(), tmp_path), slots=1) as engine:
        jobs = jobs_of(engine)
        rows = await collect(engine, jobs)
        assert engine.info.tokenizer_json
        assert all(encode(engine, row.text.decode()) == row.tokens for row in rows)
    assert [tuple(body["prompt"]) for body in server.bodies] == [job.chain for job in jobs]


async def test_a_server_that_takes_no_tokens_is_sent_text_for_good(server: CompletionsServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": saved(character_tokenizer(), tmp_path), "slots": 1}
    async with engine_at(server, **options) as engine:
        expected = await search(engine, depth=2)
    server.bodies.clear()
    server.takes_tokens = False
    async with engine_at(server, **options) as engine:
        assert await search(engine, depth=2) == expected
    assert [isinstance(body["prompt"], list) for body in server.bodies[:2]] == [True, False]
    assert all(isinstance(body["prompt"], str) for body in server.bodies[1:])


async def test_a_server_that_takes_no_extensions_is_sent_none_for_good(server: CompletionsServer, tmp_path: Path) -> None:
    async with engine_at(server, slots=1) as engine:
        expected = await search(engine, depth=2)
    server.bodies.clear()
    server.takes_extensions = server.takes_tokens = False
    async with engine_at(server, slots=1) as engine:
        assert await search(engine, depth=2) == expected
    assert ["include_stop_str_in_output" in body for body in server.bodies[:3]] == [True, False, False]


async def test_a_form_that_was_asked_for_is_kept_to(server: CompletionsServer, tmp_path: Path) -> None:
    server.takes_tokens = False
    async with engine_at(server, tokenizer=saved(character_tokenizer(), tmp_path), prompt="tokens", extensions="no") as engine:
        rows = await collect(engine, jobs_of(engine, rows=1))
    assert {row.finish for row in rows} == {Finish.ERROR}
    assert not any("return_token_ids" in body for body in server.bodies)


async def test_a_chain_ends_also_where_the_server_does_not_say_why_it_stopped(server: CompletionsServer) -> None:
    server.says_reason = False
    said = iter(["1 + 1 = 2", "", "2"])
    server.reply = lambda body: {"text": next(said), "finish_reason": "stop"}
    async with engine_at(server, slots=1, extensions="no") as engine:
        rows = [(await collect(engine, [Job(encode(engine, "1 1\n"), seed)]))[0] for seed in range(2)]
        whole = await collect(engine, [Job(encode(engine, "1 1\n"), 1, replace(STEP, delimiter=None))])
    assert [(row.finish, row.text) for row in rows + whole] == [
        (Finish.STEP, b"1 + 1 = 2\n"),
        (Finish.END, b""),
        (Finish.END, b"2"),
    ]


async def test_a_chain_that_the_server_finds_too_long_is_cut(server: CompletionsServer) -> None:
    async with engine_at(server, context_tokens_max=1000) as engine:
        rows = await collect(engine, [Job(encode(engine, "1" * 300), 1), Job(encode(engine, "1\n"), 2)])
    assert (rows[0].finish, rows[0].tokens, rows[0].cost) == (Finish.CONTEXT, (), 0)
    assert rows[1].finish in (Finish.STEP, Finish.END)


async def test_prefixes_are_counted_where_the_server_tells(server: CompletionsServer) -> None:
    async with engine_at(server) as engine:
        jobs = jobs_of(engine, rows=2)
        await collect(engine, jobs)
        assert (engine.stats().prefix_hits, engine.stats().prefix_misses) == (0, 0)
        server.cached_tokens = 12
        await collect(engine, jobs)  # prompts of 11 to 14 tokens
        assert (engine.stats().prefix_hits, engine.stats().prefix_misses) == (5, 0)
        before = engine.stats().tokens_prefilled
        server.cached_tokens = 0
        await collect(engine, jobs)
        stats = engine.stats()
        assert (stats.prefix_hits, stats.prefix_misses) == (5, 5)
        assert stats.tokens_prefilled == before + sum(len(job.chain) for job in jobs)
        assert stats.rows_sampled == 3 * len(jobs)


async def test_the_key_is_sent_and_shown_nowhere(
    server: CompletionsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = KEY
    with pytest.raises(EngineAway, match=r"401 .*THE_KEY"):
        OpenAIEngine(server.url, OpenAIParams(api_key_env="THE_KEY"))
    monkeypatch.setenv("THE_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        async with engine_at(server, api_key_env="THE_KEY") as engine:
            jobs = jobs_of(engine)
            await collect(engine, jobs)
            shown = [repr(engine), repr(engine.params), repr(engine.info), repr(vars(engine))]
            server.key = "another"
            with pytest.raises(EngineAway, match=r"Bearer \*\*\*") as refused:
                await collect(engine, jobs)
    assert not [text for text in [*shown, str(refused.value), repr(refused.value), caplog.text] if KEY in text]


async def test_what_the_server_says_makes_the_model(server: CompletionsServer) -> None:
    async with engine_at(server, name="mine", prompt_template="{problem}\n", delimiter="\n\n", slots=3) as engine:
        info = engine.info
    assert (info.name, info.backend, info.context_tokens_max, info.slots) == ("mine", "openai", 256, 3)
    assert (info.prompt_template, info.delimiter, info.tokenizer_json) == ("{problem}\n", "\n\n", "")
    async with engine_at(server, model="drawn") as engine:
        assert engine.info.name == "drawn"
        assert engine.info.revision == info.revision
    server.context_tokens_max = 512
    async with engine_at(server) as engine:
        assert engine.info.revision != info.revision
    async with engine_at(server, revision="weights-7") as engine:
        assert engine.info.revision == "weights-7"


async def test_a_model_that_is_not_there_is_told_with_those_that_are(server: CompletionsServer) -> None:
    with pytest.raises(EngineAway, match="has no model other; it has drawn"):
        OpenAIEngine(server.url, OpenAIParams(model="other"))


async def test_a_server_that_lists_no_models_must_be_described(server: CompletionsServer) -> None:
    server.lists_models = False
    with pytest.raises(EngineError, match="add model=NAME"):
        OpenAIEngine(server.url)
    with pytest.raises(EngineError, match="add context_tokens_max"):
        OpenAIEngine(server.url, OpenAIParams(model="drawn"))
    async with engine_at(server, model="drawn", context_tokens_max=256) as engine:
        assert len(await collect(engine, jobs_of(engine))) == 30


async def test_it_is_loaded_by_name(server: CompletionsServer) -> None:
    engine = load_engine(f"openai:{server.url}?model=drawn&slots=3&delimiter=%0A%0A&timeout_s=2.5")
    assert isinstance(engine, OpenAIEngine)
    assert (engine.params.slots, engine.params.delimiter, engine.params.timeout_s) == (3, "\n\n", 2.5)
    await engine.close()
    same = load_engine({"engine": "openai", "url": server.url, "slots": 3, "delimiter": "\n\n"})
    assert same.info == engine.info
    await same.close()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("openai:", "no engine is meant"),
        ("openai:host:8000", "is no URL of an OpenAI server"),
        ("openai:http://me:password@host/v1", "environment variable"),
        ("openai:http://host/v1?slot=3", "has no option slot .did you mean slots"),
        ("openai:http://host/v1?slots=0", "too low"),
        ("openai:http://host/v1?timeout_s=0", "not positive"),
        ("openai:http://host/v1?prompt=tokens", "needs the model's tokenizer"),
        ("openai:http://host/v1?prompt=words", "prompt"),
        ("openai:http://host/v1?extra_body=%5B1%5D", "not an object"),
        ("openai:http://host/v1?extra_body=top_k", "no JSON"),
        ("openai:http://host/v1?tokenizer=/nowhere", "no tokenizer"),
        ("openai:http://127.0.0.1:9/v1", "can't be reached"),
    ],
)
def test_what_is_wrong_is_told(spec: str, told: str) -> None:
    with pytest.raises(EngineError, match=told) as refused:
        load_engine(spec)
    assert "password@" not in str(refused.value)


async def test_a_malformed_list_of_models_is_told(server: CompletionsServer) -> None:
    server.models_fault = answer("<html>")
    with pytest.raises(EngineAway, match="does not list models as OpenAI does"):
        OpenAIEngine(server.url)
    server.models_fault = error(500, "it burns")
    with pytest.raises(EngineAway, match="500: it burns"):
        OpenAIEngine(server.url)


async def test_logprobs_may_be_lacking(server: CompletionsServer) -> None:
    server.reply = lambda body: {"text": "1\n", "finish_reason": "stop", "logprobs": None}
    async with engine_at(server) as engine:
        (row,) = await collect(engine, [Job(encode(engine, "1\n"), 1)])
    assert np.frombuffer(row.logprob_bits, np.float32)[0] == 0


async def test_an_empty_batch_sends_nothing(server: CompletionsServer) -> None:
    async with engine_at(server) as engine:
        assert [part async for part in engine.generate(batch_of([]))] == []
    assert not server.bodies


def test_every_option_is_told() -> None:
    manual = (
        (Path(__file__).parents[3] / "docs" / "engines.md").read_text(encoding="utf-8").split("## OpenAI-compatible servers")[1]
    )
    assert not [option.name for option in fields(OpenAIParams) if f"`{option.name}`" not in manual.split("In a URL-like text")[0]]
