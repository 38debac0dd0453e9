"""What is said of an onnx engine: its options, and what the folder of its model holds."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.chat import ChatFormat
from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.engines.chat import read_chat
from ramify.scheduler.errors import EngineError

EXPORT = "optimum-cli export onnx --model MODEL --task text-generation-with-past FOLDER"
PREFILL_TOKENS = 256
DELIMITER = "\n\n"

_FILES = ("model.onnx", "onnx/model.onnx", "decoder_model_merged.onnx", "onnx/decoder_model_merged.onnx")
_SAID = ("name", "prompt_template", "delimiter", "problem_format")


@dataclass(frozen=True, slots=True)
class OnnxParams:
    """How much an `OnnxEngine` may use, and what is said of its model.

    The last four are as in `ModelInfo`. Empty, they are what `ramify.json` in the model's folder says, and where there is none:
    the folder's name, the problem itself, an empty line and any text.
    """

    file: str = ""  # the model within its folder; empty: the first of _FILES that is there
    slots: int = 64  # sequences that run at once
    threads: int = 1  # of ONNX Runtime within an operator
    prefill_tokens: int = 0  # of prompts in one call; 1: exact, as `OnnxEngine` says; 0: as ramify.json says, else PREFILL_TOKENS
    context_tokens_max: int = 0  # longest chain; 0: as config.json says
    cache_bytes_max: int = 1 << 30  # keys and values of chains that may go on
    waiting_rows_max: int = 65_536  # rows without a slot
    turn_tokens: int = 4  # tokens a slot between two deliveries: more of them, larger groups and later ones
    name: str = ""
    prompt_template: str = ""
    delimiter: str = ""
    problem_format: str = ""

    def __post_init__(self) -> None:
        bounds = self.cache_bytes_max, self.waiting_rows_max, self.prefill_tokens, self.context_tokens_max
        if min(self.slots, self.threads, self.turn_tokens) < 1 or min(bounds) < 0:
            raise EngineError(f"a bound is too low: {self}")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's files, and what they say of it."""

    file: Path  # the graph
    config: Mapping[str, Any]  # config.json, of its text model where it has others
    tokenizer: Tokenizer
    eos: NDArray[np.int64]  # ids that end a chain
    prefill_tokens: int  # 1 or more
    info: ModelInfo


def read_folder(folder: Path, params: OnnxParams) -> ModelFolder:
    """Read what surrounds a model, as repositories on the Hugging Face hub have it.

    That is `config.json`, `tokenizer.json`, the graph (with its weights inside or beside it), `generation_config.json` for the
    tokens that end a chain, a chat template; and `ramify.json`, which may hold `name`, `prompt_template`, `delimiter`,
    `problem_format` and `prefill_tokens`.

    Raises:
        EngineError: a file is missing or can't be read, or does not say what it has to.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise EngineError(f"the model folder {folder} lacks {name}")
    file, chat = _graph(folder, params.file), read_chat(folder)
    whole, ramify = _json(folder / "config.json"), _json(folder / "ramify.json")
    config = whole.get("text_config", whole)
    tokenizer = _tokenizer(folder / "tokenizer.json")
    said = {name: ramify[name] for name in _SAID if name in ramify}
    said |= {name: value for name in _SAID if (value := getattr(params, name))}
    return ModelFolder(
        file=file,
        config=config,
        tokenizer=tokenizer,
        eos=_eos(folder, config, tokenizer, chat),
        prefill_tokens=params.prefill_tokens or int(ramify.get("prefill_tokens", PREFILL_TOKENS)),
        info=ModelInfo(
            revision=_revision(folder, file, chat),
            backend="onnx",
            tokenizer_json=tokenizer.to_str(),
            context_tokens_max=_context(folder, config, params.context_tokens_max),
            slots=params.slots,
            **{"name": _name(folder.resolve()), "delimiter": DELIMITER, **said},
            **chat._asdict(),
        ),
    )


def _name(folder: Path) -> str:
    """A folder's name; in the hub's cache, `models--OWNER--NAME/snapshots/COMMIT`, the model's."""
    return folder.parents[1].name.split("--")[-1] if folder.parent.name == "snapshots" else folder.name


def _graph(folder: Path, file: str) -> Path:
    for name in (file,) if file else _FILES:
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx"))) or "none"
    raise EngineError(f"the model folder {folder} lacks {file or 'model.onnx'}; it has {there} (choose with file=...)")


def _tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"{path} is no tokenizer in the format of Hugging Face tokenizers: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _eos(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatFormat) -> NDArray[np.int64]:
    found = _json(folder / "generation_config.json").get("eos_token_id")
    if found is None:
        found = config.get("eos_token_id")
    if found is None and chat.eos_token:
        found = tokenizer.token_to_id(chat.eos_token)
    if found is None:
        raise EngineError(f"{folder}: neither generation_config.json nor config.json has an eos_token_id")
    return np.atleast_1d(np.array(found, np.int64))


def _context(folder: Path, config: Mapping[str, Any], wanted: int) -> int:
    longest = config.get("max_position_embeddings") or config.get("n_positions") or wanted
    if not longest:
        raise EngineError(f"{folder / 'config.json'} has no max_position_embeddings: add context_tokens_max=TOKENS")
    if wanted > longest:
        raise EngineError(f"context_tokens_max={wanted} is more than the {longest} tokens that {folder / 'config.json'} says")
    return int(wanted or longest)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise EngineError(f"{path} is no JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise EngineError(f"{path} holds no JSON object")
    return loaded


def _revision(folder: Path, file: Path, chat: ChatFormat) -> str:
    """Hash of everything that changes what is sampled: weights (also those beside the graph), tokenizer, ends, chat template."""
    content = hashlib.blake2b(digest_size=16)
    around = (folder / name for name in ("config.json", "tokenizer.json", "generation_config.json"))
    for path in sorted({*around, *file.parent.glob(f"{file.name}*")}, key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "blake2b").hexdigest()
            content.update(f"{path.relative_to(folder).as_posix()}:{digest};".encode())
    if chat.chat_template:
        content.update(json.dumps(chat).encode())
    return content.hexdigest()
