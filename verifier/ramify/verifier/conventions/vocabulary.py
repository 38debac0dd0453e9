"""A tokenizer as conventions use it: strangers' text on the one hand, a model's own marks on the other."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer

from ramify.verifier.errors import InvalidRequestError, StartupError

Tokens: TypeAlias = NDArray[np.int32]

# Pieces of text (problems and steps) whose tokens are kept: a growing chain is sent again with each new step.
PIECES_KEPT = 1 << 16

# A character that nothing is merged with. What puts a space before the first word of a text puts it before this one.
_APART = "\x01"


class UnknownText(InvalidRequestError):
    """The vocabulary lacks a character of a text."""


class Vocabulary:
    """See the module. What it gives is shared: not to be written to.

    Args:
        tokenizer: Of the model; used by nothing else.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown = self._id(unknown) if unknown else -1
        marks = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self._marks = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or r"(?!)")
        self.before, self.behind = self._frame()
        self._context = _APART if self._prepends_once(marks) else ""
        self.text = lru_cache(PIECES_KEPT)(self._text)
        self.after = lru_cache(PIECES_KEPT)(self._after)

    def _text(self, text: str) -> Tokens:
        """The tokens of a text by itself, what looks like a mark read as the characters that it is. Raises `UnknownText`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self._unknown in encoding.ids:
            raise UnknownText(self._lacking(text, encoding))
        return np.array(encoding.ids, np.int32)

    def _after(self, context: str, text: str) -> Tokens:
        """The tokens of a text as it follows another, which it leaves as it is. Raises `UnknownText`.

        Raises:
            StartupError: it does not.
        """
        tokens, whole = self.text(context), self._text(context + text)
        if shared(tokens, whole) < len(tokens):
            raise StartupError(f"the tokenizer joins {context!r} with what follows")
        return whole[len(tokens) :]

    def inside(self, text: str) -> Tokens:
        """The tokens of a text right after a mark. Raises `UnknownText`."""
        return self.after(self._context, text) if self._context else self.text(text)

    def mark(self, text: str) -> int:
        """The token that is never part of a text from now on. Raises `StartupError`."""
        found = self._id(text)
        if found < 0:
            raise StartupError(f"the tokenizer has no '{text}'")
        if text in {token.content for token in self._tokenizer.get_added_tokens_decoder().values() if not token.special}:
            self._tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        return found

    def word(self, text: str) -> int:
        """The only token of a text by itself. Raises `StartupError`."""
        tokens = self._own(text)
        if len(tokens) != 1:
            raise StartupError(f"{text!r} is {len(tokens)} tokens of the tokenizer, not one")
        return int(tokens[0])

    def separator(self, text: str) -> Tokens:
        """The tokens of what ends a step: at least one. Raises `StartupError`."""
        tokens = self._own(text)
        if not len(tokens):
            raise StartupError("the separator is empty: it is where a score is read")
        return tokens

    def split(self, text: str) -> list[int | str]:
        """A text of the model's own: its marks as tokens, and what is between them."""
        found: list[int | str] = []
        at = 0
        for match in self._marks.finditer(text):
            if match.start() > at:
                found.append(text[at : match.start()])
            found.append(self._id(match.group()))
            at = match.end()
        return [*found, text[at:]] if at < len(text) else found

    def lacking(self, problem: str, steps: Sequence[str]) -> str:
        """Which part of a chain has a character that the vocabulary lacks."""
        for index, text in enumerate((problem, *steps)):
            try:
                self.text(text)
            except UnknownText as error:
                return f"{f'step {index}' if index else 'the problem'} has {error}"
        return "the model's vocabulary lacks a part of it"

    def _id(self, token: str) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        return -1 if found is None else found

    def _own(self, text: str) -> Tokens:
        try:
            return self.text(text)
        except UnknownText as error:
            raise StartupError(f"the tokenizer is of another model: there is {error}") from error

    def _lacking(self, text: str, encoding: Encoding) -> str:
        start, end = encoding.offsets[encoding.ids.index(self._unknown)]
        return f"{text[start:end]!r} at character {start + 1}, which the model's vocabulary lacks"

    def _frame(self) -> tuple[Tokens, Tokens]:
        """What the tokenizer itself puts before and after a text."""
        encoding = self._tokenizer.encode("\n")
        ids, added = np.array(encoding.ids, np.int32), np.array(encoding.special_tokens_mask, np.bool_)
        own = np.flatnonzero(~added)
        return (ids[: own[0]], ids[own[-1] + 1 :]) if len(own) else (ids, ids[:0])

    def _prepends_once(self, marks: Sequence[str]) -> bool:
        """Whether a text has other tokens after a mark than alone."""
        if not marks:
            return False
        alone = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._tokenizer.encode_special_tokens = False
        after = self._tokenizer.encode(f"{marks[0]}a", add_special_tokens=False).ids[1:]
        self._tokenizer.encode_special_tokens = True
        return bool(after != alone)


def shared(a: Tokens, b: Tokens) -> int:
    """How many tokens two texts begin with alike."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
