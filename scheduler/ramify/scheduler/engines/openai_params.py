"""How to use a completions server, and what it says of itself."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ramify.chat import ChatFormat
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.engines.chat import read_chat
from ramify.scheduler.engines.openai_client import Endpoint, Model
from ramify.scheduler.engines.openai_steps import Codec
from ramify.scheduler.errors import EngineAway, EngineError


@dataclass(frozen=True, slots=True)
class OpenAIParams:
    """How to use a server. Times are in seconds; what they bound is said in docs/engines.md."""

    model: str = ""  # as the server calls it; may be left out where it serves one
    name: str = ""  # as jobs call it; empty: as the server does
    revision: str = ""  # of the weights; empty: a hash of what the server says of itself and where it is
    tokenizer: str = ""  # tokenizer.json or its folder; empty: prompts go as text, and a token is a byte
    prompt: Literal["auto", "tokens", "text"] = "auto"
    extensions: Literal["auto", "yes", "no"] = "auto"  # whether to ask for what vLLM has beyond OpenAI's API
    priority: Literal["no", "yes"] = "no"  # whether requests have vLLM's `priority`, which it takes if it schedules by it
    context_tokens_max: int = 0  # 0: as /v1/models says
    prompt_template: str = "{problem}"
    delimiter: str = "\n"
    problem_format: str = ""
    extra_body: str = ""  # JSON of more fields for each request, e.g. {"top_k": -1}
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    slots: int = 64  # requests that are open at once
    waiting_rows_max: int = 65_536  # rows without a slot
    timeout_s: float = 120.0  # of one attempt, the wait in the server's queue included
    attempts_max: int = 5  # of one row
    retry_s: float = 300.0  # of all attempts of a row
    failures_max: int = 16  # attempts that fail in a row, of any rows: the server is away then
    open_s: float = 5.0  # time before a server that was away is tried again, with one row

    def __post_init__(self) -> None:
        if min(self.slots, self.attempts_max, self.failures_max) < 1 or min(self.waiting_rows_max, self.context_tokens_max) < 0:
            raise EngineError(f"a bound is too low: {self}")
        if min(self.timeout_s, self.retry_s, self.open_s) <= 0:
            raise EngineError(f"a time is not positive: {self}")
        if "," in self.revision:
            raise EngineError(f"revision={self.revision} holds a comma, which separates the revisions of several models")
        if self.prompt == "tokens" and not self.tokenizer:
            raise EngineError("prompt=tokens needs the model's tokenizer: add tokenizer=FOLDER, or leave prompt out")


@dataclass(frozen=True, slots=True)
class Form:
    """How to write a request."""

    as_tokens: bool
    extensions: bool


def forms(params: OpenAIParams) -> tuple[Form, ...]:
    """Ways to write a request, the best first; which of them the server takes, it shows."""
    kinds = {"auto": (True, False), "tokens": (True,), "text": (False,)}[params.prompt]
    if not params.tokenizer:
        kinds = (False,)
    asks = {"auto": (True, False), "yes": (True,), "no": (False,)}[params.extensions]
    return tuple(Form(kind, ask) for ask in asks for kind in kinds)


def describe(endpoint: Endpoint, params: OpenAIParams, codec: Codec) -> tuple[str, ModelInfo]:
    """The model as the server calls it, and what it is."""
    models = endpoint.models()
    if models is None:
        if not params.model:
            raise EngineError(f"{endpoint} does not list its models: add model=NAME")
        model = Model(id=params.model)
    else:
        model = _choose(endpoint, params, models)
    context_tokens_max = params.context_tokens_max or model.max_model_len
    if not context_tokens_max:
        raise EngineError(f"{endpoint} does not say how long the context of {model.id} is: add context_tokens_max=TOKENS")
    folder = Path(params.tokenizer) if params.tokenizer else None
    chat = read_chat(folder) if folder and folder.is_dir() else ChatFormat()
    told = [str(endpoint), model.id, model.root, model.parent, model.owned_by, model.max_model_len, codec.digest]
    told += chat if chat.chat_template else ()  # what shards read it for, they must read alike after a restart
    return model.id, ModelInfo(
        name=params.name or model.id,
        revision=params.revision or hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest(),
        backend="openai",
        tokenizer_json=codec.tokenizer_json,
        context_tokens_max=context_tokens_max,
        slots=params.slots,
        prompt_template=params.prompt_template,
        delimiter=params.delimiter,
        problem_format=params.problem_format,
        **chat._asdict(),
    )


def _choose(endpoint: Endpoint, params: OpenAIParams, models: list[Model]) -> Model:
    names = ", ".join(sorted(model.id for model in models)) or "none"
    if not params.model and len(models) > 1:
        raise EngineError(f"{endpoint} has several models: add model=NAME, one of {names}")
    for model in models:
        if params.model in ("", model.id):
            return model
    raise EngineAway(f"{endpoint} has no model {params.model or 'at all'}; it has {names}")


def json_object(text: str) -> dict[str, Any]:
    """The fields that `extra_body` adds to each request."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise EngineError(f"extra_body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise EngineError(f'extra_body is {text}, not an object as in {{"top_k": -1}}')
    return found
