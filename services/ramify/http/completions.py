"""Chat completions: a request becomes a job, its results become the answer, at once or as a stream."""

import json
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ramify.client import ClientError
from ramify.client.spec import word
from ramify.http.errors import HttpError, of_client
from ramify.http.requests import ChatRequest, read_chat_request
from ramify.http.runs import GRACE_S, Run, Runs, unless_gone, with_pauses
from ramify.http.settings import HttpSettings
from ramify.v1 import job_pb2

log = logging.getLogger(__name__)

PAUSE_S = 10.0  # after which a stream says that it is there
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Completions:
    """The endpoint."""

    def __init__(self, settings: HttpSettings, runs: Runs) -> None:
        self._settings, self._runs = settings, runs

    async def create(self, request: Request) -> Response:
        """Answer `POST /v1/chat/completions`. Raises `HttpError`, `ClientError`."""
        wanted = await read_chat_request(request)
        spec = wanted.spec(self._settings)
        if not wanted.stream:
            return await unless_gone(request, self._whole(request, wanted, spec), self._settings.timeout_s + GRACE_S)
        stream = self._stream(request, wanted, spec)
        first = await anext(stream)  # what is wrong is told by the status, while there is none

        async def all_of_it() -> AsyncGenerator[str, None]:
            yield first
            async for each in stream:
                yield each

        return StreamingResponse(all_of_it(), media_type="text/event-stream", headers=STREAM_HEADERS)

    async def _whole(self, request: Request, wanted: ChatRequest, spec: job_pb2.JobSpec) -> Response:
        async with self._runs.of(request, [wanted.problem] * wanted.n, spec) as run:
            async for _ in run.events():
                pass
            results = await run.results()
        for result in results:
            _check(result)
        if len(results) < wanted.n:
            raise HttpError(422, f"job {run.job.job_id} was cancelled", "invalid_request_error", "cancelled")
        choices = [
            {
                "index": result.problem_index,
                "message": {"role": "assistant", "content": "\n".join(result.steps)},
                "finish_reason": finish_reason(result),
                "ramify": about(run.job, result),
            }
            for result in results
        ]
        return JSONResponse({**_head(run.job, "chat.completion"), "choices": choices, "usage": usage(run.progress)})

    async def _stream(self, request: Request, wanted: ChatRequest, spec: job_pb2.JobSpec) -> AsyncGenerator[str, None]:
        """Server-sent events. Raises `ClientError` before the first of them only."""
        async with self._runs.of(request, [wanted.problem] * wanted.n, spec) as run:
            head = _head(run.job, "chat.completion.chunk")
            for index in range(wanted.n):
                yield _event({**head, "choices": [_delta(index, {"role": "assistant", "content": ""})]})
            try:
                async for each in self._growing(run, head, wanted.n):
                    yield each
            except HttpError as error:
                yield _event(error.body)
            except ClientError as error:
                yield _event(of_client(error).body)
            else:
                if wanted.stream_options and wanted.stream_options.include_usage:
                    yield _event({**head, "choices": [], "usage": usage(run.progress)})
            yield "data: [DONE]\n\n"

    async def _growing(self, run: Run, head: dict[str, Any], answers: int) -> AsyncGenerator[str, None]:
        told = 0  # results, as far as there is none missing before
        async for event in with_pauses(run.events(), PAUSE_S):
            if event is None:
                yield ": the search goes on\n\n"
                continue
            progress = event.progress
            yield f": {progress.steps} steps, {progress.tokens} tokens, {progress.problems_done} of {answers} answers\n\n"
            if progress.problems_done <= told:
                continue
            for result in (await run.results())[told:]:
                if result.problem_index != told:
                    break
                for line in _told(run.job, head, result):
                    yield line
                told += 1
        if told < answers:
            raise HttpError(422, f"job {run.job.job_id} was cancelled", "invalid_request_error", "cancelled")


def _told(job: job_pb2.Job, head: dict[str, Any], result: job_pb2.Result) -> Sequence[str]:
    """The events that bring a result, a step at a time."""
    _check(result)
    index = result.problem_index
    steps = [step if number == 0 else f"\n{step}" for number, step in enumerate(result.steps)]
    end = {**_delta(index, {}, finish_reason(result)), "ramify": about(job, result)}
    deltas = [*(_delta(index, {"content": step}) for step in steps), end]
    return [_event({**head, "choices": [delta]}) for delta in deltas]


def _check(result: job_pb2.Result) -> None:
    if result.outcome == job_pb2.OUTCOME_FAILED:
        raise HttpError(422, f"there is no answer: {result.message}", "invalid_request_error", "no_answer")


def finish_reason(result: job_pb2.Result) -> str:
    """Why the search ended, in OpenAI's words."""
    return "length" if result.outcome == job_pb2.OUTCOME_BUDGET else "stop"


def about(job: job_pb2.Job, result: job_pb2.Result) -> dict[str, Any]:
    """What OpenAI's API has no word for."""
    return {
        "job": job.job_id,
        "tree": f"/jobs/{job.job_id}/problems/{result.problem_index}",
        "answer": result.answer,
        "score": result.score if result.HasField("score") else None,
        "verdict": word(job_pb2.Verdict.DESCRIPTOR, result.verdict) or None,
        "steps": result.step_count,
        "tokens": result.tokens,
    }


def usage(progress: job_pb2.Progress) -> dict[str, int]:
    """What was sampled, in all chains. Prompts are not counted: nobody here knows the model's tokens."""
    return {"prompt_tokens": 0, "completion_tokens": progress.tokens, "total_tokens": progress.tokens}


def _head(job: job_pb2.Job, kind: str) -> dict[str, Any]:
    model = job.spec.generator or ", ".join(each.model for each in job.spec.generators)
    created_s = job.create_time.seconds or int(time.time())
    return {"id": f"chatcmpl-{job.job_id}", "object": kind, "created": created_s, "model": model}


def _delta(index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
