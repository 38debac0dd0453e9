"""What answers of different servers mean, and that tokens and text of a chain stay one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.openai_client import Completion
from ramify.scheduler.engines.openai_steps import LOGPROB_MIN, Codec, Step, UnknownEnd, read_step
from tests.unit.engines.helpers import STEP

CORPUS = [
    "the answer is 12.\n\nso 3 * 4 = 12 and 12 * 2 = 24.\n",
    " 1 + 2 = 3\n",
    "naïve café\n\n\nso the",
    "12 24 the so answer",
] * 9
EOS = "<eos>"


def byte_level() -> Tokenizer:
    """As Qwen's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2's: a text that begins is put after a space."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOS, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[byte_level, metaspace, None], ids=["byte level", "metaspace", "bytes"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    if request.param is None:
        return Codec(None)
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    request.param().save(str(folder / "tokenizer.json"))
    return Codec(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    byte_level().save(str(folder / "tokenizer.json"))
    return Codec(folder / "tokenizer.json")


def chain_of(codec: Codec, text: str) -> Any:
    if codec.tokenizer is None:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return np.array(codec.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def said(codec: Codec, chain: Any) -> str:
    return str(codec.prompt(chain, as_tokens=False))


TEXTS = st.text(alphabet="the answr is12+*=.\n é", min_size=1, max_size=20)


@given(before=TEXTS, text=TEXTS)
def test_a_text_in_tokens_anew_says_the_same_in_its_chain(codec: Codec, before: str, text: str) -> None:
    chain = chain_of(codec, before)
    tokens, step = codec.step(chain, text, None)
    assert tokens.dtype == np.int32
    assert step.decode() == text
    assert said(codec, np.concatenate([chain, tokens])) == said(codec, chain) + text


@given(before=TEXTS, text=TEXTS, more=st.integers(0, 4))
def test_sampled_tokens_are_kept_with_all_that_they_say(codec: Codec, before: str, text: str, more: int) -> None:
    chain = chain_of(codec, before)
    sampled, _ = codec.step(chain, text, None)
    shown = text[: len(text) - more]
    tokens, step = codec.step(chain, shown, sampled.tolist())
    if codec.tokenizer is not None:
        assert (tokens.tolist(), step.decode()) == (sampled.tolist(), text)
    else:
        assert (bytes(tokens.tolist()), step) == (shown.encode(), shown.encode())


def test_sampled_tokens_are_kept_though_another_spelling_is_usual(qwen: Codec) -> None:
    letters = [chain_of(qwen, letter)[0] for letter in "the"]
    assert len(chain_of(qwen, "the")) < 3
    tokens, step = qwen.step(chain_of(qwen, "so "), "the", letters)
    assert (tokens.tolist(), step) == (letters, b"the")


def test_a_delimiter_within_a_token_takes_all_of_it(qwen: Codec) -> None:
    ids = chain_of(qwen, "12.\n\n").tolist()
    assert qwen.tokenizer is not None
    assert qwen.tokenizer.decode(ids[-1:]).endswith("\n\n")
    step = read(qwen, text="12.\n", finish_reason="stop", stop_reason="\n", token_ids=ids)
    assert (step.finish, step.tokens.tolist(), step.text) == (Finish.STEP, ids, b"12.\n\n")


@pytest.mark.parametrize("other", ["out of the vocabulary", "of another text"])
def test_tokens_that_do_not_fit_are_not_believed(qwen: Codec, other: str) -> None:
    ids = [qwen.vocabulary] if other == "out of the vocabulary" else chain_of(qwen, "answer").tolist()
    tokens, step = qwen.step(chain_of(qwen, "so "), "the", ids)
    assert (tokens.tolist(), step) == (chain_of(qwen, "the").tolist(), b"the")


def read(codec: Codec, delimiter: str | None = "\n", room: int = 1000, usage: Any = None, **choice: Any) -> Step:
    params = STEP if delimiter == "\n" else type(STEP)(STEP.temperature, STEP.top_p, STEP.max_step_tokens, delimiter)
    answer = Completion.model_validate({"choices": [choice], "usage": usage})
    return read_step(codec, chain_of(codec, "so "), params, room, answer)


BY_DELIMITER: dict[str, dict[str, Any]] = {
    "vLLM": {"text": "1 + 2\n", "finish_reason": "stop", "stop_reason": "\n"},
    "vLLM without extensions": {"text": "1 + 2", "finish_reason": "stop", "stop_reason": "\n"},
    "SGLang": {"text": "1 + 2", "finish_reason": "stop", "matched_stop": "\n"},
    "TGI": {"text": "1 + 2\n", "finish_reason": "stop_sequence"},
    "OpenAI": {"text": "1 + 2", "finish_reason": "stop"},
    "a proxy that knows of stop_reason alone": {"text": "1 + 2\n", "finish_reason": "stop", "stop_reason": None},
}
BY_END: dict[str, dict[str, Any]] = {
    "vLLM": {"text": "1 + 2", "finish_reason": "stop", "stop_reason": None},
    "vLLM by another token": {"text": "1 + 2", "finish_reason": "stop", "stop_reason": 7},
    "SGLang": {"text": "1 + 2", "finish_reason": "stop", "matched_stop": 0},
    "TGI": {"text": "1 + 2", "finish_reason": "eos_token"},
}


@pytest.mark.parametrize("server", BY_DELIMITER)
def test_a_step_ends_with_its_delimiter(codec: Codec, server: str) -> None:
    step = read(codec, **BY_DELIMITER[server])
    assert (step.finish, step.text, step.cost) == (Finish.STEP, b"1 + 2\n", len(step.tokens))
    assert said(codec, np.concatenate([chain_of(codec, "so "), step.tokens])) == "so 1 + 2\n"


@pytest.mark.parametrize("server", BY_END)
def test_a_chain_ends(codec: Codec, server: str) -> None:
    step = read(codec, **BY_END[server])
    assert (step.finish, step.text, step.cost) == (Finish.END, b"1 + 2", len(step.tokens) + 1)


@pytest.mark.parametrize("stop_reason", [None, 0])
def test_the_token_that_ends_a_chain_is_paid_for_and_not_kept(qwen: Codec, stop_reason: int | None) -> None:
    ids = [*chain_of(qwen, "1 + 2").tolist(), 0]  # 0 is <eos>
    usage = {"prompt_tokens": 3, "completion_tokens": len(ids)}
    step = read(qwen, text="1 + 2", finish_reason="stop", stop_reason=stop_reason, token_ids=ids, usage=usage)
    assert (step.tokens.tolist(), step.cost) == (ids[:-1], len(ids))


def test_without_a_delimiter_what_stops_is_the_end(codec: Codec) -> None:
    assert read(codec, None, text="1\n", finish_reason="stop").finish is Finish.END


def test_what_is_too_long_is_cut(codec: Codec) -> None:
    cut: dict[str, Any] = {"text": "1 + 2", "finish_reason": "length", "stop_reason": None}
    assert read(codec, **cut).finish is Finish.STEP_CUT
    assert read(codec, room=41, **cut).finish is Finish.STEP_CUT
    assert read(codec, room=40, **cut).finish is Finish.CONTEXT


def test_an_end_of_another_kind_is_an_error(codec: Codec) -> None:
    with pytest.raises(UnknownEnd, match="content_filter"):
        read(codec, text="", finish_reason="content_filter")


@pytest.mark.parametrize(
    ("told", "logprob"),
    [
        (None, 0.0),
        ({}, 0.0),
        ({"token_logprobs": None}, 0.0),
        ({"token_logprobs": [-0.5, None, -1.0]}, -1.5),
        ({"token_logprobs": [-0.5, 1e-9 + 0.5]}, 0.0),
        ({"token_logprobs": [-0.5, float("-inf")]}, LOGPROB_MIN),
        ({"token_logprobs": [float("nan")]}, LOGPROB_MIN),
    ],
)
def test_a_logprob_is_a_sum_and_finite(qwen: Codec, told: Any, logprob: float) -> None:
    assert read(qwen, text="1\n", finish_reason="stop", logprobs=told).logprob == logprob


def test_text_that_is_no_unicode_does_no_harm(codec: Codec) -> None:
    step = read(codec, text="1 \ud83d\n", finish_reason="stop")
    assert step.text.decode() == "1 ?\n"
