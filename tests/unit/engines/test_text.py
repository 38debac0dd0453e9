"""Delimiters among tokens: which are one token, and what a step says."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

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


def test_a_character_in_two_steps_belongs_to_the_one_that_completes_it(tokenizer: Tokenizer) -> None:
    chain = np.array(tokenizer.encode("né").ids, np.int32)
    assert step_text(tokenizer, chain[:2], 1).decode() == ""
    assert step_text(tokenizer, chain, 2).decode() == "é"
    assert step_text(tokenizer, chain[:2], 1, ended=True).decode() == "\ufffd", "nothing will complete it"


def single_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same texts as Llama's tokenizers spell them where they have no word: `<0xE9>`."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "c": 4, ".": 5, **{f"<0x{byte:02X}>": 6 + byte for byte in range(256)}}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


TEXT = st.text(st.sampled_from(["a", "b", " ", ".", "c", "é", "ß", "€", "你", "好", "🙂", "👩"]), min_size=1, max_size=40)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, prompt=TEXT, data=st.data())
def test_the_texts_of_steps_cut_anywhere_are_the_text_of_all_tokens(
    tokenizer: Tokenizer, kind: str, text: str, prompt: str, data: st.DataObject
) -> None:
    made = tokenizer if kind == "byte level" else single_bytes(tokenizer)
    prompted = made.encode(prompt).ids
    chain = np.array([*prompted, *made.encode(text).ids], np.int32)
    cuts = data.draw(st.sets(st.integers(len(prompted), len(chain))))
    bounds = sorted({len(prompted), *cuts, len(chain)})
    texts = [step_text(made, chain[:end], start, ended=end == len(chain)).decode() for start, end in itertools.pairwise(bounds)]
    assert "".join(texts) == text
    assert not any("\ufffd" in each for each in texts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(broken=st.lists(st.integers(0, 255), min_size=2, max_size=30), data=st.data())
def test_bytes_that_are_no_characters_are_told_as_the_whole_tells_them(
    tokenizer: Tokenizer, broken: list[int], data: st.DataObject
) -> None:
    chain = np.array([tokenizer.token_to_id("a"), *broken], np.int32)
    start = data.draw(st.integers(1, len(chain) - 1))
    texts = [step_text(tokenizer, chain[:start], 1), step_text(tokenizer, chain, start, ended=True)]
    assert "a" + b"".join(texts).decode() == tokenizer.decode(chain.tolist())


def test_a_long_run_of_bytes_that_are_no_characters_costs_no_more_than_reading_it(tokenizer: Tokenizer) -> None:
    made = single_bytes(tokenizer)
    chain = np.array([2, *[6 + 0xFF] * 20_000], np.int32)
    assert len(step_text(made, chain, 10_000, ended=True).decode()) == 20_000
