"""OpenAI's chat completions over a real gateway."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ramify.http.app import make_app
from ramify.http.requests import BODY_BYTES_MAX, ChatRequest
from ramify.http.settings import EFFORTS, HttpSettings
from ramify.store.audit import Actor
from ramify.store.keys import Keys, Role
from ramify.v1 import job_pb2
from tests.unit.http.house import House, events, house, said

PATIENCE_S = 60
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages: list should have at least 1 item"),
    ({"messages": [said(" ")]}, "messages: none of the user's says anything"),
    ({"messages": [said("a"), said("b", "assistant")]}, "messages.1.role is 'assistant'; a search answers one problem"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"tools": []}, "tools is not supported: leave it out"),
    ({"presence_penalty": 1}, "presence_penalty is 1, and may only be 0"),
    ({"effort": "huge"}, "effort is \"huge\", and may only be 'minimal', 'low', 'medium' or 'high'"),
    ({"n": 9}, "n: input should be less than or equal to 8"),
    ({"search": {"nn": 3}}, "search: there is no knob nn; did you mean n?"),
    ({"search": {"n": "many"}}, "n is a whole number"),
    ({"model": "gpt"}, "gpt"),
    ({"search": {"policy": "magic"}}, "magic"),
]


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with asyncio.timeout(PATIENCE_S), house(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}") as found:
        yield found


async def test_a_question_is_answered_with_what_its_search_has_found(home: House) -> None:
    wanted = {"model": "tiny24", "seed": 7, "temperature": 0.5, "checker": "countdown", "max_completion_tokens": 100}
    response = await home.solve(lambda job: home.finish(job, tokens=40), **wanted)
    assert response.status_code == 200
    body, job = response.json(), await home.job()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one\ntwo"}
    assert (choice["finish_reason"], body["object"], body["model"]) == ("stop", "chat.completion", "tiny24")
    assert choice["ramify"]["tree"] == f"/jobs/{job.job_id}/problems/0"
    assert (choice["ramify"]["verdict"], choice["ramify"]["score"]) == ("correct", 0.75)
    assert body["usage"]["completion_tokens"] == job.progress.tokens
    search = job.spec.search
    assert (search.policy, search.n, search.max_steps, search.seed, search.temperature) == ("beam", 4, 8, 7, 0.5)
    assert (job.spec.budget.tokens_per_problem_max, search.max_step_tokens, job.spec.budget.seconds_max) == (400, 100, 600)


async def test_a_stream_tells_how_it_goes_and_then_brings_the_steps(home: House) -> None:
    async def answer(job: job_pb2.Job) -> None:
        await home.finish(job, 0, outcome=job_pb2.OUTCOME_BUDGET)
        await home.finish(job, 1, steps=["three"])

    response = await home.solve(answer, n=2, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert ": 1 steps, 5 tokens, 1 of 2 answers\n\n" in response.text
    found = events(response)
    assert found.pop()["usage"]["completion_tokens"] == 10
    choices = [event["choices"][0] for event in found]
    assert [choice["delta"].get("role") for choice in choices[:2]] == ["assistant", "assistant"]
    told = {index: [choice for choice in choices[2:] if choice["index"] == index] for index in (0, 1)}
    assert ["".join(choice["delta"].get("content", "") for choice in told[index]) for index in (0, 1)] == ["one\ntwo", "three"]
    assert [told[index][-1]["finish_reason"] for index in (0, 1)] == ["length", "stop"]


async def test_a_search_that_fails_says_why(home: House) -> None:
    def fail(job: job_pb2.Job) -> Any:
        return home.finish(job, outcome=job_pb2.OUTCOME_FAILED, steps=[], message="every chain was cut", answer_node_id=0)

    response = await home.solve(fail)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "no_answer")
    assert "every chain was cut" in response.json()["error"]["message"]
    (found,) = [event for event in events(await home.solve(fail, stream=True)) if "error" in event]
    assert found["error"]["code"] == "no_answer"


async def test_who_goes_away_ends_the_search(home: House) -> None:
    for stream in (False, True):
        asked = asyncio.create_task(home.ask(stream=stream))
        job = await home.job(job_pb2.JOB_STATE_RUNNING)
        asked.cancel()
        assert (await home.job(job_pb2.JOB_STATE_CANCELLED)).job_id == job.job_id


async def test_a_job_that_somebody_cancels_is_told(home: House) -> None:
    response = await home.solve(lambda job: home.jobs.cancel(job.job_id))
    assert (response.status_code, response.json()["error"]["code"]) == (422, "cancelled")


async def test_what_can_t_be_done_is_refused_in_openai_s_shape(home: House) -> None:
    for fields, message in REFUSED:
        response = await home.ask(**fields)
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (400, "invalid_request_error"), error
        assert message in error["message"]


async def test_a_body_is_json_and_no_larger_than_it_may_be(home: House) -> None:
    path = "/v1/chat/completions"
    assert (await home.http.post(path, content=b"{", headers={"content-type": "application/json"})).status_code == 400
    for kind in ("text/plain", "text/plain; application/json", ""):
        assert (await home.http.post(path, content=b"{}", headers={"content-type": kind})).status_code == 415
    response = await home.ask(messages=[said("x" * BODY_BYTES_MAX)])
    assert response.status_code == 413
    assert (await home.http.get(path)).status_code == 405


def test_what_was_said_becomes_a_problem_and_a_system_prompt() -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    messages = [said("Be brief.", "system"), said("A riddle."), {"role": "user", "content": parts}, said("Count.", "developer")]
    asked = ChatRequest.model_validate({"messages": messages, "reference": "3", "reasoning_effort": "low"})
    assert (asked.problem.text, asked.problem.reference) == ("A riddle.\n\nHow many?", "3")
    spec = asked.spec(HttpSettings(search={"max_steps": 5}, checker="math"))
    assert (spec.prompt.system, spec.checker) == ("Be brief.\n\nCount.", "math")
    assert (spec.search.policy, spec.search.n, spec.search.max_steps) == ("best_of_n", EFFORTS["low"]["n"], 5)


async def test_models_and_health(home: House) -> None:
    body = (await home.http.get("/v1/models")).json()
    assert [model["id"] for model in body["data"]] == ["tiny24"]
    assert [(await home.http.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]


async def test_a_key_is_handed_on_and_its_lack_is_told(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
    async with asyncio.timeout(PATIENCE_S), house(url, keys=True) as home:
        refused = await home.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
        page = await home.http.get("/jobs/a/problems/0", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["www-authenticate"][:5]) == (401, "Basic")
        keys = Keys(home.jobs.database)
        _, key = await keys.create(Actor(), "acme", Role.READ, "test")
        for headers in ({"authorization": f"Bearer {key}"}, {"authorization": basic(key)}):
            assert (await home.http.get("/v1/models", headers=headers)).status_code == 200
        home.http.headers["authorization"] = basic(key)  # which a browser would add to what a foreign page sends
        assert (await home.ask()).status_code == 401
        home.http.headers["authorization"] = f"Bearer {key}"
        denied = await home.ask()
        assert (denied.status_code, denied.json()["error"]["type"]) == (403, "permission_error")


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"me:{key}".encode()).decode()


async def test_a_gateway_that_is_away_is_told() -> None:
    app = make_app(HttpSettings(gateway="127.0.0.1:1"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ramify") as http,
    ):
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/v1/models")).json()["error"]["code"] == "unavailable"
