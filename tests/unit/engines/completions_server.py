"""A server with OpenAI's completions API on this machine, in a thread of its own, that misbehaves when it is told to."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from aiohttp import web

from ramify.scheduler.engines.base import Finish, StepBatch, StepParams
from ramify.scheduler.engines.simulated import SimulatedParams, draw

Body = dict[str, Any]
Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


def error(status: int, message: str, **headers: str) -> Fault:
    """Answers as vLLM does when something is wrong."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"error": {"message": message, "type": "BadRequestError", "code": status}}
        return web.json_response(body, status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


def answer(text: str) -> Fault:
    """Answers 200 with a text for a body."""

    async def answered(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    return answered


async def cut_off(request: web.Request) -> web.StreamResponse:
    """Closes the connection in the middle of a body."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"text": "1 +')
    assert request.transport is not None
    request.transport.abort()
    return response


async def hang(request: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError("an event that nobody sets was set")


@dataclass
class CompletionsServer:
    """See the module; `with CompletionsServer() as server: ... server.url`. What it says is drawn as `SimulatedEngine` does.

    Attributes:
        model: its name.
        context_tokens_max: a token is a byte of a text, or an id.
        takes_tokens: whether prompts may be token ids.
        takes_extensions: whether fields beyond OpenAI's API are let pass.
        lists_models: whether there is /models.
        says_reason: whether answers have vLLM's stop_reason.
        key: that requests must have; empty: none.
        faults: what to do instead with the next completions, one each.
        fault: what to do instead with all others.
        models_fault: what to do when asked for models.
        reply: a choice for a body, instead of a drawn one.
        delay_s: before an answer.
        cached_tokens: told of each prompt, if any.
        bodies: of all completions that were asked for.
        aborted: answers that nobody waited for.
    """

    model: str = "drawn"
    context_tokens_max: int = 256
    takes_tokens: bool = True
    takes_extensions: bool = True
    lists_models: bool = True
    says_reason: bool = True
    key: str = ""
    faults: deque[Fault] = field(default_factory=deque)
    fault: Fault | None = None
    models_fault: Fault | None = None
    reply: Callable[[Body], Body] | None = None
    delay_s: float = 0.0
    cached_tokens: int | None = None
    bodies: list[Body] = field(default_factory=list)
    aborted: int = 0
    open: int = 0
    open_max: int = 0
    url: str = ""

    def __enter__(self) -> Self:
        started, self._stop = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="completions-server")
        self._thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _serve(self, started: threading.Event) -> None:
        async def serve() -> None:
            app = web.Application()
            app.router.add_get("/v1/models", self._models)
            app.router.add_post("/v1/completions", self._completions)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}/v1"
            started.set()
            await self._stop.wait()
            await runner.cleanup()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve())

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if refused := await self._refused(request):
            return refused
        if not self.lists_models:
            raise web.HTTPNotFound
        if self.models_fault is not None:
            return await self.models_fault(request)
        entry = {"id": self.model, "object": "model", "created": 1, "owned_by": "tests", "max_model_len": self.context_tokens_max}
        return web.json_response({"object": "list", "data": [entry]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        if refused := await self._refused(request):
            return refused
        body = json.loads(await request.read())
        self.bodies.append(body)
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            fault = self.faults.popleft() if self.faults else self.fault
            return await (fault(request) if fault is not None else self._complete(request, body))
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.open -= 1

    async def _refused(self, request: web.Request) -> web.StreamResponse | None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return await error(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")(request)
        return None

    async def _complete(self, request: web.Request, body: Body) -> web.StreamResponse:
        prompt = body["prompt"]
        if body["model"] != self.model:
            return await error(404, f"The model `{body['model']}` does not exist.")(request)
        if isinstance(prompt, list) and not self.takes_tokens:
            return await error(400, "prompt must be a string")(request)
        if not self.takes_extensions and {"return_token_ids", "include_stop_str_in_output"} & body.keys():
            return await error(422, "Extra inputs are not permitted")(request)
        length = len(prompt if isinstance(prompt, list) else prompt.encode())
        if length + body["max_tokens"] > self.context_tokens_max:
            told = f"This model's maximum context length is {self.context_tokens_max} tokens, you asked for more"
            return await error(400, told)(request)
        await asyncio.sleep(self.delay_s)
        choice = self.reply(body) if self.reply is not None else self._draw(body)
        usage: Body = {"prompt_tokens": length, "completion_tokens": choice.pop("completion_tokens", 1)}
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return web.json_response({"object": "text_completion", "model": self.model, "choices": [choice], "usage": usage})

    def _draw(self, body: Body) -> Body:
        prompt = body["prompt"] if isinstance(body["prompt"], list) else list(body["prompt"].encode())
        stop = body.get("stop", [None])[0]
        batch = StepBatch(
            tokens=np.array(prompt, np.int32),
            offsets=np.array([0, len(prompt)], np.int64),
            params=(StepParams(body["temperature"], body["top_p"], body["max_tokens"], stop),),
            group_params=np.zeros(1, np.int32),
            group=np.zeros(1, np.int32),
            code=np.zeros(1, np.float64),
            seed=np.array([body["seed"]], np.uint64),
        )
        drawn = draw(batch, SimulatedParams(context_tokens_max=self.context_tokens_max))
        text, finish = drawn.text.tobytes().decode(), Finish(int(drawn.finish[0]))
        if not body.get("include_stop_str_in_output") and finish is Finish.STEP:
            text = text.removesuffix(stop)
        count = int(drawn.token_count[0])
        choice: Body = {
            "index": 0,
            "text": text,
            "finish_reason": "stop" if finish in (Finish.STEP, Finish.END) else "length",
            "logprobs": {"token_logprobs": [float(drawn.logprob[0]) / max(count, 1)] * count},
            "completion_tokens": int(drawn.token_cost[0]),
        }
        if self.says_reason:
            choice["stop_reason"] = stop if finish is Finish.STEP else None
        return choice
