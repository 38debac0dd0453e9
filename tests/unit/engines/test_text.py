"""Delimiters among tokens: which are one token, and what a step says."""

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ramify.scheduler.engines.text import is_special, only_token, step_text
from tests.unit.engines.helpers import MODEL, needs_model


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Bytes, and some merges of them, as the tokenizers of large models have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (".", "ĊĊ"), ("a", "b")]
    words = [*alphabet, *(left + right for left, right in merges)]
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<step>", special=True)])
    made.add_tokens([AddedToken("<think>", special=False)])
    return made


@pytest.mark.parametrize("text", ["\n\n", "\n", "a", "ab", ".", "there", "é"])
def test_a_token_beside_others_of_the_same_text_is_not_enough(tokenizer: Tokenizer, text: str) -> None:
    assert only_token(tokenizer, text) is None


@pytest.mark.parametrize("text", ["#", "<step>", "<think>"])
def test_a_token_that_alone_says_a_text_is_found(tokenizer: Tokenizer, text: str) -> None:
    token = only_token(tokenizer, text)
    assert token is not None
    assert tokenizer.decode([token], skip_special_tokens=False) == text


@needs_model
def test_the_tiny_model_ends_steps_with_one_token() -> None:
    tiny = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert only_token(tiny, "\n") == tiny.token_to_id("\n")
    assert only_token(tiny, "what it has no token for") is None


def test_special_tokens_are_told_apart(tokenizer: Tokenizer) -> None:
    assert [is_special(tokenizer, text) for text in ("<step>", "<think>", "#")] == [True, False, False]


def test_a_step_shows_special_tokens_where_they_end_it(tokenizer: Tokenizer) -> None:
    chain = np.array(tokenizer.encode("a # b<step>").ids, np.int32)
    assert step_text(tokenizer, chain, 2) == b"# b"
    assert step_text(tokenizer, chain, 2, special=True) == b"# b<step>"


def test_a_character_in_two_steps_is_cut(tokenizer: Tokenizer) -> None:
    chain = np.array(tokenizer.encode("né").ids, np.int32)
    assert step_text(tokenizer, chain[:2], 1).decode() == "\ufffd"
    assert step_text(tokenizer, chain, 2).decode() == "\ufffd"
