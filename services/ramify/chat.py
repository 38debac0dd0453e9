"""A model's chat template, as Hugging Face's tokenizers carry it, and as transformers renders it."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

REASON_CHARS_MAX = 300  # of what a template says


class ChatError(ValueError):
    """A chat template can't be read, or fails. The message says why."""


class ChatFormat(NamedTuple):
    """How a model wants to be spoken to."""

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
        ChatError: a file can't be read.
    """
    try:
        config, tokens = (_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
        own = folder / "chat_template.jinja"
        template = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    except (OSError, ValueError) as error:
        raise ChatError(f"the chat template in {folder} can't be read: {error}") from error
    bos, eos = (config.get(name) or tokens.get(name) for name in ("bos_token", "eos_token"))
    return chat_format(template, bos, eos)


def render_chat(chat: ChatFormat, messages: Sequence[Mapping[str, str]], *, prompt: bool = True, **given: Any) -> str:
    """A conversation as `apply_chat_template` of transformers writes it.

    Args:
        chat: Has a template.
        messages: `role` and `content` of each.
        prompt: Whether it ends where the model is to speak.
        given: What else the template may use.

    Raises:
        ChatError: the template fails; the message is what it says.
    """
    template = compiled(chat.chat_template)
    try:
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=prompt,
            bos_token=chat.bos_token,
            eos_token=chat.eos_token,
            **given,
        )
    except Exception as error:  # a template is a program, and not ours
        raise ChatError(_reason(error)) from error


@lru_cache(maxsize=64)
def compiled(chat_template: str) -> Template:
    """A chat template in the dialect of transformers. Raises `ChatError`."""
    try:
        return _ENVIRONMENT.from_string(chat_template)
    except Exception as error:  # likewise
        raise ChatError(_reason(error)) from error


class _Generation(Extension):
    """The tag `{% generation %}`, by which templates mark for training what the model has said; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    """What templates call to say that messages are not for them."""
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Without the escapes for HTML that jinja2's own has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


_ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
_ENVIRONMENT.filters["tojson"] = _to_json
_ENVIRONMENT.globals["raise_exception"] = _refuse


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:REASON_CHARS_MAX] or type(error).__name__


def _token(token: Any) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def _json(path: Path) -> Mapping[str, Any]:
    loaded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path.name} is no JSON object")
    return loaded
