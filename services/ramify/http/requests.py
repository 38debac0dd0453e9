"""What a chat completion asks for, and the job that it becomes."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from ramify.client import InvalidRequest, job_spec
from ramify.client.spec import SEARCH_KNOBS, unknown_knob
from ramify.http.errors import HttpError, bad_request
from ramify.http.settings import Effort, HttpSettings
from ramify.v1 import job_pb2

BODY_BYTES_MAX = 4 << 20
MESSAGES_MAX = 256
CHOICES_MAX = 8
STEP_TOKENS_MAX = 256  # of a step, as jobs have it that say nothing else
NAME = "chat"  # of the jobs


class Wanted(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Wanted):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Wanted):
    """A message."""

    role: Literal["system", "developer", "user"]
    content: str | list[TextPart]
    name: str | None = None  # is not used

    @property
    def text(self) -> str:
        """All that it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Wanted):
    """What a stream brings besides."""

    include_usage: bool = False
    include_obfuscation: bool = False  # is not used


class ChatRequest(Wanted):
    """OpenAI's parameters as far as they mean something here, and some of our own."""

    model: str = ""  # empty: the only one that there is
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    effort: Effort | None = None
    reasoning_effort: Effort | None = None  # the same under OpenAI's name
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] = 1  # answers, each of a search of its own
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # the same under its older name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    search: dict[str, Any] = Field(default_factory=dict)  # ours: knobs, see docs/knobs.md
    verifier: str = ""  # ours: which one, where there are several
    checker: str | None = None  # ours: says whether an answer is right
    reference: str = ""  # ours: the right answer, for the checker
    priority: int = 0  # ours: see `JobSpec.priority`
    # What changes nothing, or may only say what holds anyway.
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    store: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @property
    def problem(self) -> job_pb2.Problem:
        """What is to be solved."""
        text = "\n\n".join(message.text for message in self.messages if message.role == "user")
        return job_pb2.Problem(text=text, reference=self.reference)

    def spec(self, settings: HttpSettings) -> job_pb2.JobSpec:
        """What to do with it. Raises `ClientError`."""
        fields = {**settings.knobs(self.effort or self.reasoning_effort or settings.effort), **self._knobs()}
        system = "\n\n".join(message.text for message in self.messages if message.role != "user")
        checker = settings.checker if self.checker is None else self.checker
        texts = {"generator": self.model, "verifier": self.verifier, "checker": checker, "system": system}
        fields |= {name: value for name, value in texts.items() if value}
        if (tokens := self.max_completion_tokens or self.max_tokens) is not None:
            fields["tokens_per_problem_max"] = tokens * int(fields.get("n", 1))
            fields.setdefault("max_step_tokens", min(tokens, STEP_TOKENS_MAX))
        return job_spec(**fields, name=NAME, seconds_max=round(settings.timeout_s), priority=self.priority)

    def _knobs(self) -> dict[str, Any]:
        for name in self.search:
            if name not in SEARCH_KNOBS:
                raise InvalidRequest(f"search: {unknown_knob(name, [*SEARCH_KNOBS])}")
        given: Mapping[str, Any] = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {**self.search, **{name: value for name, value in given.items() if value is not None}}


async def read_chat_request(request: Request) -> ChatRequest:
    """What the body asks for. Raises `HttpError`."""
    # The type itself: one that merely names it is sent by any page of the web, with the key that a browser keeps for ours.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "send the request as application/json", "invalid_request_error")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise HttpError(413, f"the request has more than {BODY_BYTES_MAX} bytes", "invalid_request_error")
    try:
        found = ChatRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        raise _refused(error) from error
    if not any(message.role == "user" and message.text.strip() for message in found.messages):
        raise bad_request("messages: none of the user's says anything", "messages")
    return found


def _refused(error: ValidationError) -> HttpError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return bad_request(f"the body is no JSON: {first.get('ctx', {}).get('error', '')}")
    if first["type"] == "extra_forbidden":
        return bad_request(f"{where} is not supported: leave it out", where, "unsupported_parameter")
    if where.startswith("messages.") and where.endswith(".role"):
        told = "a search answers one problem: put what was said before into the user's message"
        return bad_request(f"{where} is {first['input']!r:.40}; {told}", where, "unsupported_value")
    if first["type"] == "literal_error":
        expected = first.get("ctx", {}).get("expected", "")
        return bad_request(
            f"{where} is {json.dumps(first['input'], default=str):.60}, and may only be {expected}", where, "unsupported_value"
        )
    return bad_request(f"{where}: {first['msg'].lower()}", where, "invalid_value")
