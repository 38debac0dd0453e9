"""What is said of a vLLM engine: options as its engine arguments, its model as a `ModelInfo`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

from ramify.chat import chat_format
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.errors import EngineError
from ramify.vllm_options import VllmOptionError, engine_options

_DEFAULTS: Mapping[str, Any] = {
    "enable_prefix_caching": True,
    "scheduling_policy": "priority",  # in the order of the line, see `StepBatch`
}
_OURS = {
    "model": "it stands before the `?`",
    "logprobs_mode": "log-probabilities are those of the distribution that tokens are sampled from",
    "skip_tokenizer_init": "steps are handed out as text too",
    "runner": "steps are generated",
}
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.json", "*.model", "*.jinja", "*.tiktoken")
_COMMIT = 40  # digits


@dataclass(frozen=True, slots=True)
class VllmParams:
    """What Ramify itself has to know; every other option is an engine argument of vLLM's, by the name that it has there.

    The last four are as in `ModelInfo`. Empty, they are what `ramify.json` in the model's folder says, and what `ModelInfo` says
    where there is none.
    """

    slots: int | None = None  # sequences that run at once; None: vLLM's max_num_seqs
    waiting_rows_max: int = 65_536  # rows without a slot
    gather_ms: float = 3.0  # rows that end within this time are handed out together
    lora: str = ""  # folder or Hugging Face name of an adapter, for all that is generated
    name: str = ""
    prompt_template: str = ""
    delimiter: str = ""
    problem_format: str = ""

    def __post_init__(self) -> None:
        if (self.slots is not None and self.slots < 1) or min(self.waiting_rows_max, self.gather_ms) < 0:
            raise EngineError(f"a bound is too low: {self}")


def engine_args(model: str, params: VllmParams, options: Mapping[str, Any]) -> AsyncEngineArgs:
    """The engine arguments of vLLM; texts become what their types are, JSON where that is no text.

    Raises:
        EngineError: names an option that vLLM has not, that is not for the user to set, or whose value is wrong.
    """
    try:
        given = engine_options(options, reserved=_OURS, others=[field.name for field in fields(VllmParams)])
    except VllmOptionError as error:
        raise EngineError(f"vllm: {error}") from error
    if params.slots is not None:
        given.setdefault("max_num_seqs", params.slots)
    if params.lora:
        given.setdefault("enable_lora", True)
    if given.get("tensor_parallel_size", 1) > 1 or given.get("pipeline_parallel_size", 1) > 1:
        # In a Ray actor vLLM might pick Ray, and ask for GPUs beside those that the actor has.
        given.setdefault("distributed_executor_backend", "mp")
    try:
        return AsyncEngineArgs(**{**_DEFAULTS, **given, "model": model, "logprobs_mode": "processed_logprobs"})
    except (ValueError, TypeError, OSError) as error:
        raise EngineError(f"vLLM can't load {model} with these engine arguments: {' '.join(str(error).split())}") from error


def tokenizer_of(llm: AsyncLLM, model: str) -> Tokenizer:
    """A copy of a model's tokenizer, without its padding and truncation.

    Raises:
        EngineError: it is none of Hugging Face's fast ones, which gateways and shards need.
    """
    backend = getattr(llm.get_tokenizer(), "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise EngineError(f"vllm:{model} has no fast tokenizer (tokenizer.json), which shards need to read and write its tokens")
    copy: Tokenizer = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def model_info(llm: AsyncLLM, model: str, params: VllmParams, tokenizer: Tokenizer) -> ModelInfo:
    """What shards and gateways have to know of a model that is loaded."""
    said = {key: value for key, value in _json(Path(model) / "ramify.json").items() if isinstance(value, str)}
    said |= {key: value for key, value in asdict(params).items() if isinstance(value, str) and value}
    config, speaks = llm.model_config, llm.get_tokenizer()
    chat = chat_format(*(getattr(speaks, name, None) for name in ("chat_template", "bos_token", "eos_token")))
    return ModelInfo(
        name=said.get("name") or Path(model).name,
        revision=_revision(llm, model, params),
        backend="vllm",
        tokenizer_json=tokenizer.to_str(),
        context_tokens_max=config.max_model_len,
        slots=params.slots or llm.scheduler_config.max_num_seqs,
        **{key: said[key] for key in ("prompt_template", "delimiter", "problem_format") if key in said},
        **chat._asdict(),
    )


def _revision(llm: AsyncLLM, model: str, params: VllmParams) -> str:
    """Hash of everything that changes what is sampled: weights and tokenizer, adapter, and how the weights are held."""
    config = llm.model_config
    parts = [_content(model, config), _content(params.lora, None) if params.lora else "", str(config.dtype), config.quantization]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _content(model: str, config: Any) -> str:
    """What identifies a model's files: their hash, or the commit of a repository of Hugging Face's."""
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{getattr(getattr(config, 'hf_config', None), '_commit_hash', None) or 'unknown'}"
    if folder.parent.name == "snapshots" and len(folder.name) == _COMMIT:  # in Hugging Face's cache
        return folder.name
    content = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)} - {folder / "ramify.json"}):
        with path.open("rb") as file:
            content.update(f"{path.name}:{hashlib.file_digest(file, 'blake2b').hexdigest()};".encode())
    return content.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded
