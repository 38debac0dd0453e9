"""A model's chat template, as Hugging Face's tokenizers carry it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ramify.scheduler.errors import EngineError


class ChatFormat(NamedTuple):
    """How a model wants to be spoken to; the fields are those of `ModelInfo`."""

    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""


def chat_format(template: Any, bos_token: Any, eos_token: Any) -> ChatFormat:
    """From what `tokenizer_config.json` holds, or a tokenizer of transformers.

    Args:
        template: a text; several of them by name, as a mapping or a list of `name` and `template`, of which "default" is taken;
            None: there is none.
        bos_token: a text, a token with its `content`, or None.
        eos_token: likewise.
    """
    if isinstance(template, list):
        template = {each.get("name"): each.get("template") for each in template if isinstance(each, Mapping)}
    if isinstance(template, Mapping):
        template = template.get("default")
    return ChatFormat(template if isinstance(template, str) else "", _token(bos_token), _token(eos_token))


def read_chat(folder: Path) -> ChatFormat:
    """From a model's folder: `tokenizer_config.json`, over whose template `chat_template.jinja` goes; what is missing is empty.

    Raises:
        EngineError: a file can't be read.
    """
    try:
        config, tokens = (_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
        own = folder / "chat_template.jinja"
        template = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    except (OSError, ValueError) as error:
        raise EngineError(f"the chat template in {folder} can't be read: {error}") from error
    bos, eos = (config.get(name) or tokens.get(name) for name in ("bos_token", "eos_token"))
    return chat_format(template, bos, eos)


def _token(token: Any) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _json(path: Path) -> Mapping[str, Any]:
    loaded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path.name} is no JSON object")
    return loaded
