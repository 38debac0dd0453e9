"""Tokens and text: what a step's tokens say, and how a delimiter is seen among tokens."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

UNKNOWN = "\ufffd"  # what bytes decode to that are no character, or not yet
_CHARACTER_TOKENS = 4  # of single bytes: as many as UTF-8 has at most
_CONTEXT_TOKENS = 4  # left of a step, so that a tokenizer that treats the start of a text otherwise sees none


@lru_cache(maxsize=8)
def tokenizer_of(tokenizer_json: str) -> Tokenizer:
    """A tokenizer from its JSON, without its padding and truncation; large ones take a second, the first time."""
    made: Tokenizer = Tokenizer.from_str(tokenizer_json)
    made.no_padding()
    made.no_truncation()
    return made


def encode(tokenizer_json: str, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """The tokens of each of some texts: special tokens are known where they stand, and none is added.

    Args:
        tokenizer_json: see `ModelInfo`; empty: one token a byte.
        texts: any.
    """
    if not tokenizer_json:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
    found = tokenizer_of(tokenizer_json).encode_batch(list(texts), add_special_tokens=False)
    return [np.array(each.ids, np.int32) for each in found]


def step_text(tokenizer: Tokenizer, chain: NDArray[np.int32], start: int, *, special: bool = False, ended: bool = False) -> bytes:
    """What a step says. The texts of a chain's steps, one after the other, are what all of its tokens say.

    A character that the step only begins is left to the step that completes it; where the chain ends there, it comes as U+FFFD.

    Args:
        tokenizer: of the chain.
        chain: `[n]` token ids: prompt and all steps, this one last.
        start: where the step begins.
        special: whether special tokens are shown.
        ended: whether the chain ends with the step.

    Returns:
        UTF-8 of `chain[start:]`; bytes that are no whole character come as U+FFFD.
    """

    def decode(begin: int, end: int) -> str:
        text: str = tokenizer.decode(chain[begin:end].tolist(), skip_special_tokens=not special)
        return text

    def told(begin: int, end: int) -> str:
        """Without the character that the last tokens only begin; some decoders spoil those before it too, up to its end."""
        text = decode(begin, end)
        if not text.endswith(UNKNOWN):
            return text
        return max((decode(begin, end - cut).rstrip(UNKNOWN) for cut in range(min(_CHARACTER_TOKENS, end - begin))), key=len)

    width = _CONTEXT_TOKENS
    while not (before := told(begin := max(0, start - width), start)) and begin > 0 and decode(begin, start):
        width *= 2  # those tokens are of one character, and say nothing without its beginning
    whole = decode(begin, len(chain)) if ended else told(begin, len(chain))
    return whole[len(before) :].encode()


def is_special(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is one special token, which decoding leaves out unless it is asked for."""
    return any(token.special and token.content == text for token in tokenizer.get_added_tokens_decoder().values())


def only_token(tokenizer: Tokenizer, text: str) -> int | None:
    r"""The token that stands wherever a text does, if one does.

    That `"\n\n"` is a token says little: a step may end with the token `".\n\n"` instead, or with two of `"\n"`. So it is an
    added token, or the only one of all tokens that holds the first character of the text.
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) != 1 or tokenizer.decode(ids, skip_special_tokens=False) != text:
        return None
    token = int(ids[0])
    if token in tokenizer.get_added_tokens_decoder():
        return token
    if not text[0].isascii():  # it may be spelled in tokens of single bytes too
        return None
    said = tokenizer.decode_batch([[each] for each in range(tokenizer.get_vocab_size())], skip_special_tokens=False)
    return token if [each for each, text_of in enumerate(said) if text[0] in text_of] == [token] else None
