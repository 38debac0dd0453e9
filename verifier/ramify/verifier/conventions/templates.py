"""Chat templates with holes: rendered once, then filled with chains' texts, which never pass through the template's program."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np

from ramify.chat import ChatError, ChatFormat, render_chat
from ramify.verifier.conventions.vocabulary import Tokens, Vocabulary, shared
from ramify.verifier.errors import StartupError

_HOLE = re.compile(r"\{(problem|solution|step|sign)\}")

# A hole while the template is rendered: characters without a meaning of their own, in white space that shows what is stripped.
_SPACE = "\u2003"
_LEFT, _RIGHT = "\n" * 9 + _SPACE, _SPACE + "\n" * 9
_MARKED = re.compile("\ue000([a-z]+)\ue001")


class Hole(NamedTuple):
    """Where a text goes, and what the template strips of it there: characters as `str.strip` takes them."""

    name: str
    left: str | None = ""
    right: str | None = ""


Item: TypeAlias = int | str | Hole
"""A part of a text with holes: a mark's token, a text of the model's own, or a hole."""


def chat_items(vocabulary: Vocabulary, chat: ChatFormat, messages: Sequence[tuple[str, str]], prompt: bool = False) -> list[Item]:
    """A conversation as the model's chat template has it.

    Args:
        vocabulary: The model's.
        chat: The model's.
        messages: Roles, and what they say, with holes as in "{problem}".
        prompt: Whether the model is to speak next.

    Raises:
        StartupError: there is no template, it fails, or it leaves something out.
    """
    if not chat.chat_template:
        raise StartupError("the model has no chat template (in tokenizer_config.json or chat_template.jinja)")
    marked = [(role, _HOLE.sub(f"{_LEFT}\ue000\\1\ue001{_RIGHT}", said)) for role, said in messages]
    try:
        text = render_chat(chat, [{"role": role, "content": said} for role, said in marked], prompt=prompt)
    except ChatError as error:
        raise StartupError(f"the model's chat template fails: {error}") from error
    if _MARKED.findall(text) != [name for _, said in messages for name in _HOLE.findall(said)]:
        raise StartupError("the model's chat template leaves a message out, or changes their order")
    items: list[Item] = []
    between = _MARKED.split(text)
    for name, before, after in zip(between[1::2], between[::2], between[2::2], strict=False):
        left, right = _stripped(before.endswith, _LEFT), _stripped(after.startswith, _RIGHT)
        items += [*vocabulary.split(_bare(before)), Hole(name, left, right)]
    return [*items, *vocabulary.split(_bare(between[-1]))]


def plain_items(vocabulary: Vocabulary, text: str) -> list[Item]:
    """A text with holes, as in "{problem}", where no chat template is to be used."""
    between = _HOLE.split(text)
    parts = (vocabulary.split(each) if index % 2 == 0 else [Hole(each)] for index, each in enumerate(between))
    return [*vocabulary.before.tolist(), *chain.from_iterable(parts)]


def fill(vocabulary: Vocabulary, items: Sequence[Item], texts: Mapping[str, str]) -> Tokens:
    """The tokens of a text with its holes filled. What is between two marks is one text to the tokenizer.

    Args:
        vocabulary: The model's.
        items: From the start of a text, or a mark.
        texts: For the holes, by name.

    Raises:
        UnknownText: the vocabulary lacks a character.
    """
    parts: list[Tokens] = []
    run = ""
    read: Callable[[str], Tokens] = vocabulary.text
    for item in (*items, None):
        if isinstance(item, str):
            run += item
        elif isinstance(item, Hole):
            run += texts[item.name].lstrip(item.left).rstrip(item.right)
        else:
            if run:
                parts.append(read(run))
            if item is not None:
                parts.append(np.array([item], np.int32))
            run, read = "", vocabulary.inside
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def fill_apart(
    vocabulary: Vocabulary, items: Sequence[Item], texts: Mapping[str, str], less: Mapping[str, str]
) -> tuple[Tokens, int]:
    """As `fill`, and how many of the tokens are there also with less text in the last hole, and nothing behind.

    Args:
        vocabulary: The model's.
        items: As for `fill`.
        texts: As for `fill`.
        less: As `texts`, but what one of them begins with in place of it.

    Raises:
        UnknownText: the vocabulary lacks a character.
    """
    last = max(index for index, item in enumerate(items) if isinstance(item, Hole))
    whole = fill(vocabulary, items, texts)
    return whole, shared(fill(vocabulary, items[: last + 1], less), whole)


def next_token(vocabulary: Vocabulary, items: Sequence[Item], texts: Mapping[str, str], word: str) -> int:
    """The token of a word where a text ends.

    Raises:
        StartupError: it has several, or changes those before it.
    """
    tokens, longer = fill(vocabulary, items, texts), fill(vocabulary, [*items, word], texts)
    if len(longer) != len(tokens) + 1 or shared(tokens, longer) < len(tokens):
        raise StartupError(f"{word!r} is no token of its own where the model is to say it")
    return int(longer[-1])


def _stripped(has: Callable[[str], bool], padding: str) -> str | None:
    """What a template strips of a text at one end, by what is left there of its padding."""
    return "" if has(padding) else "\n" if has(_SPACE) else None


def _bare(text: str) -> str:
    """What is between two holes, without their padding."""
    return text.removeprefix(_RIGHT).removeprefix(_SPACE).removesuffix(_LEFT).removesuffix(_SPACE)
