"""What an engine does when its server fails: it tries again, gives one row up, or takes the server for lost until it is back."""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from aiohttp import web

from ramify.scheduler.actors.config import EngineConfig
from ramify.scheduler.actors.engine_actor import NO_STEPS, EngineActor
from ramify.scheduler.engines import openai_client
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.circuit import Circuit, State
from ramify.scheduler.engines.openai import OpenAIEngine
from ramify.scheduler.errors import EngineAway
from tests.unit.engines.completions_server import CompletionsServer, Fault, answer, cut_off, error, hang
from tests.unit.engines.helpers import Job, batch_of, collect, encode
from tests.unit.engines.openai_helpers import engine_at, jobs_of, until

FAULTS: dict[str, Fault] = {
    "500": error(500, "out of memory"),
    "502": answer("<html>bad gateway</html>"),
    "503 that says when": error(503, "starting", Retry_After="0.01"),
    "429": error(429, "slow down"),
    "cut off": cut_off,
    "no JSON": answer("<html>"),
    "half of a JSON": answer('{"choices": [{"text": "1'),
    "JSON of something else": answer("[1, 2]"),
    "no choices": answer('{"choices": []}'),
    "text of another type": answer('{"choices": [{"text": 5, "finish_reason": "stop"}]}'),
    "aborted": answer('{"choices": [{"text": "1", "finish_reason": "abort"}]}'),
    "no reason": answer('{"choices": [{"text": "1"}]}'),
}
BAD_SEED = 13


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with CompletionsServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "WAIT_S", 0.01)


def only_for_the_bad_seed(server: CompletionsServer, fault: Fault) -> Fault:
    async def some(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await (fault(request) if body["seed"] == BAD_SEED else server._complete(request, body))

    return some


def once_others_were_served(server: CompletionsServer, fault: Fault) -> Fault:
    """The first answer waits until eight more requests have come, so that most of them are answered."""
    first = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        if not first.is_set():
            first.set()
            before = len(server.bodies)
            await until(lambda: len(server.bodies) >= before + 8)
        return await fault(request)

    return late


async def ask(engine: OpenAIEngine) -> None:
    """What a dispatcher does to see whether an engine is there."""
    async for _ in engine.generate(NO_STEPS):
        raise AssertionError("an empty batch yields nothing")


@pytest.mark.parametrize("name", FAULTS)
async def test_what_fails_once_is_tried_again(server: CompletionsServer, name: str) -> None:
    async with engine_at(server) as engine:
        jobs = jobs_of(engine)
        expected = await collect(engine, jobs)
        server.bodies.clear()
        server.faults.extend([FAULTS[name]] * 3)
        assert await collect(engine, jobs) == expected
        assert len(server.bodies) == len(jobs) + 3


async def test_what_hangs_is_tried_again(server: CompletionsServer) -> None:
    async with engine_at(server, timeout_s=1) as engine:
        jobs = jobs_of(engine, rows=1)
        expected = await collect(engine, jobs)
        server.faults.append(hang)
        assert await collect(engine, jobs) == expected
        await until(lambda: server.aborted >= 1)


async def test_a_slow_server_is_waited_for(server: CompletionsServer) -> None:
    async with engine_at(server) as engine:
        jobs = jobs_of(engine, rows=1)
        expected = await collect(engine, jobs)
        server.delay_s = 0.2
        assert await collect(engine, jobs) == expected
        assert len(server.bodies) == 2 * len(jobs)


async def test_a_server_is_left_alone_as_long_as_it_asks_for(server: CompletionsServer) -> None:
    server.faults.append(error(429, "slow down", Retry_After="0.3"))
    async with engine_at(server, slots=1) as engine:
        start_s = time.monotonic()
        await collect(engine, jobs_of(engine))
        assert time.monotonic() - start_s >= 0.3


def test_retry_after_is_a_number_or_a_date() -> None:
    def asked_s(text: str) -> float | None:
        return openai_client._retry_after_s(httpx.Response(429, headers={"Retry-After": text}))

    assert asked_s("7") == 7
    assert asked_s("0.5") == 0.5
    in_a_minute = asked_s(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert asked_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [asked_s(text) for text in ("", "soon", "nan", "-1")] == [None] * 4


@pytest.mark.parametrize("name", ["500", "cut off", "no choices"])
async def test_a_row_that_always_fails_is_given_up_alone(server: CompletionsServer, name: str) -> None:
    async with engine_at(server, attempts_max=3, slots=4) as engine:
        chain = encode(engine, "1 2 3 4\n")
        jobs = [Job(chain, seed) for seed in range(60)]
        expected = await collect(engine, jobs)
        server.bodies.clear()
        server.fault = only_for_the_bad_seed(server, once_others_were_served(server, FAULTS[name]))
        rows = await collect(engine, jobs)
    assert rows[BAD_SEED].finish == Finish.ERROR
    assert (rows[BAD_SEED].tokens, rows[BAD_SEED].cost) == ((), 0)
    assert [rows[at] for at in range(60) if at != BAD_SEED] == [expected[at] for at in range(60) if at != BAD_SEED]
    assert [body["seed"] for body in server.bodies].count(BAD_SEED) == 3


async def test_a_row_that_is_refused_is_given_up_at_once_with_the_reason(server: CompletionsServer) -> None:
    async with engine_at(server) as engine:
        jobs = [Job(encode(engine, "1 2 3 4\n"), seed) for seed in range(20)]
        await collect(engine, jobs)
        server.bodies.clear()
        server.fault = only_for_the_bad_seed(server, error(400, "an unlucky number"))
        messages = set()
        async for results in engine.generate(batch_of(jobs)):
            messages |= {results.message} if (results.finish == Finish.ERROR).any() else set()
    assert [message.endswith("an unlucky number") for message in messages] == [True]
    assert len(server.bodies) == len(jobs)


@pytest.mark.parametrize(
    "told",
    [
        "This model's maximum context length is 256 tokens. However, your prompt contains 300 input tokens",  # vLLM
        "The decoder prompt (length 256) is longer than the maximum model length of 256.",  # vLLM, further inside
        "The input (300 tokens) is longer than the model's context length (256 tokens).",  # SGLang
        "the request exceeds the available context size. try increasing the context size",  # llama.cpp
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 256. Given: 300",  # TGI
    ],
)
async def test_too_long_is_told_from_refused(server: CompletionsServer, told: str) -> None:
    server.faults.extend([error(400, told), error(422, "temperature must be at most 2")])
    async with engine_at(server, slots=1, extensions="no") as engine:
        rows = await collect(engine, [Job(encode(engine, "1\n"), seed) for seed in range(3)])
    assert [row.finish for row in rows[:2]] == [Finish.CONTEXT, Finish.ERROR]
    assert rows[2].finish in (Finish.STEP, Finish.END)


async def test_a_server_that_refuses_all_rows_refuses_rows(server: CompletionsServer) -> None:
    server.fault = error(400, "no")
    async with engine_at(server) as engine:
        assert {row.finish for row in await collect(engine, jobs_of(engine))} == {Finish.ERROR}


@pytest.mark.parametrize("fault", [error(500, "it burns"), cut_off, answer("{}")])
async def test_a_server_that_only_fails_is_away_for_all(server: CompletionsServer, fault: Fault) -> None:
    async with engine_at(server, open_s=60, failures_max=8) as engine:
        jobs = jobs_of(engine)
        server.fault = fault
        outcomes = await asyncio.gather(*(collect(engine, jobs) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineAway] * 3
        stats = engine.stats()
        assert (stats.rows_running, stats.rows_waiting) == (0, 0)
        await until(lambda: server.open == 0)
        server.bodies.clear()
        for _ in range(2):
            with pytest.raises(EngineAway, match="left alone for"):
                await collect(engine, jobs)
            with pytest.raises(EngineAway, match="left alone for"):
                await ask(engine)
        assert not server.bodies


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_server_that_turns_us_away_is_away_at_once(server: CompletionsServer, status: int) -> None:
    async with engine_at(server, slots=1) as engine:
        server.fault = error(status, "not you")
        with pytest.raises(EngineAway, match=f"{status}.*not you"):
            await collect(engine, jobs_of(engine))
        assert len(server.bodies) == 1


async def test_a_server_that_stays_overloaded_is_away(server: CompletionsServer) -> None:
    async with engine_at(server, attempts_max=2) as engine:
        server.fault = only_for_the_bad_seed(server, FAULTS["429"])
        with pytest.raises(EngineAway, match="slow down"):
            await collect(engine, [Job(encode(engine, "1\n"), seed) for seed in range(20)])


async def test_a_wait_longer_than_all_patience_is_not_begun(server: CompletionsServer) -> None:
    async with engine_at(server, retry_s=5, open_s=0.01) as engine:
        server.fault = error(429, "tomorrow", Retry_After="86400")
        async with asyncio.timeout(5):
            with pytest.raises(EngineAway, match="tomorrow"):
                await collect(engine, jobs_of(engine, rows=1))
        await until(lambda: engine._client.circuit.state is State.HALF_OPEN)
        with pytest.raises(EngineAway, match="asks us to wait"):
            await ask(engine)


async def test_a_server_that_was_away_is_tried_with_one_row_and_then_trusted(server: CompletionsServer) -> None:
    async with engine_at(server, open_s=0.05, failures_max=4, slots=8) as engine:
        jobs = jobs_of(engine)
        expected = await collect(engine, jobs)
        server.fault = server.models_fault = error(500, "it burns")
        with pytest.raises(EngineAway):
            await collect(engine, jobs)
        await until(lambda: engine._client.circuit.state is State.HALF_OPEN)
        with pytest.raises(EngineAway, match="it burns"):
            await ask(engine)
        server.models_fault = None
        await until(lambda: engine._client.circuit.state is State.HALF_OPEN)
        await ask(engine)
        server.bodies.clear()
        with pytest.raises(EngineAway):
            await collect(engine, jobs)
        assert len(server.bodies) == 1
        server.fault = None
        await until(lambda: engine._client.circuit.state is State.HALF_OPEN)
        assert await collect(engine, jobs) == expected


async def test_a_server_that_is_gone_is_away(server: CompletionsServer) -> None:
    with CompletionsServer() as gone:
        engine = OpenAIEngine(gone.url)
    with pytest.raises(EngineAway, match="ConnectError"):
        await collect(engine, jobs_of(engine))
    await engine.close()


async def test_an_engine_process_waits_for_its_server(server: CompletionsServer) -> None:
    """The process stays, and is an engine as soon as there is a server."""
    server.models_fault = error(503, "loading")
    actor = EngineActor.__ray_metadata__.modified_class(EngineConfig("local:0", f"openai:{server.url}?open_s=0.01"))  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(EngineAway, match="loading"):
            await actor.describe()
    server.models_fault = None
    assert (await actor.describe()).name == "drawn"
    engine = actor._engine
    server.fault = server.models_fault = error(503, "loading")
    with pytest.raises(EngineAway):
        await collect(engine, jobs_of(engine))
    with pytest.raises(EngineAway):
        await actor.describe()
    server.fault = server.models_fault = None
    await until(lambda: engine._client.circuit.state is State.HALF_OPEN)
    assert (await actor.describe()).name == "drawn"
    assert actor._engine is engine
    await engine.close()


class TestCircuit:
    def test_it_opens_after_failures_in_a_row(self) -> None:
        circuit = Circuit(3, 10, lambda: 0.0)
        for _ in range(5):
            circuit.failed()
            circuit.failed()
            circuit.succeeded()
        assert (circuit.state, circuit.limit(64), circuit.successes) == (State.CLOSED, 64, 5)
        for _ in range(3):
            circuit.failed()
        assert (circuit.state, circuit.limit(64), circuit.retry_after_s) == (State.OPEN, 0, 10)

    def test_half_open_one_request_decides(self) -> None:
        now_s = [0.0]
        circuit = Circuit(3, 10, lambda: now_s[0])
        circuit.open()
        now_s[0] = 9.9
        assert circuit.state is State.OPEN
        now_s[0] = 10.0
        assert (circuit.state, circuit.limit(64), circuit.retry_after_s) == (State.HALF_OPEN, 1, 0)
        circuit.failed()
        assert (circuit.state, circuit.retry_after_s) == (State.OPEN, 10)
        now_s[0] = 20.0
        circuit.succeeded()
        assert (circuit.state, circuit.limit(64)) == (State.CLOSED, 64)
        circuit.failed()
        assert (circuit.state, circuit.retry_after_s) == (State.CLOSED, 0)
