"""Tokens and text: what a step's tokens say, and how a delimiter is seen among tokens."""

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_CONTEXT_TOKENS = 4  # left of a step, so that a tokenizer that treats the start of a text otherwise sees none


def step_text(tokenizer: Tokenizer, chain: NDArray[np.int32], start: int, *, special: bool = False) -> bytes:
    """What a step says.

    Args:
        tokenizer: of the chain.
        chain: `[n]` token ids: prompt and all steps, this one last.
        start: where the step begins.
        special: whether special tokens are shown.

    Returns:
        UTF-8 of `chain[start:]`; bytes that are no whole character come as U+FFFD.
    """
    begin = max(0, start - _CONTEXT_TOKENS)
    before: str = tokenizer.decode(chain[begin:start].tolist(), skip_special_tokens=not special)
    whole: str = tokenizer.decode(chain[begin:].tolist(), skip_special_tokens=not special)
    if not whole.startswith(before):  # the step completes a character that the chain began
        whole, before = tokenizer.decode(chain[start:].tolist(), skip_special_tokens=not special), ""
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
