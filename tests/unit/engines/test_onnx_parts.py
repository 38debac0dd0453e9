"""The parts that the ONNX engine is made of: rows of keys and values, the tree of prefixes, delimiters."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.scheduler.engines.kv_rows import KvRows
from ramify.scheduler.engines.onnx_lanes import Delimiter
from ramify.scheduler.engines.onnx_prefixes import PrefixTree
from ramify.scheduler.engines.sampling import sample
from tests.unit.engines.onnx_models import EOS, make_tokenizer

BYTES = 8  # of the keys and values that stand for a token below


def kv_of(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """`[1, 1, n, 2]`: what a token has follows from all tokens up to it."""
    sums = np.cumsum(tokens * np.arange(1, len(tokens) + 1)).astype(np.float32)
    return np.stack([sums, -sums], axis=1)[None, None]


def chain_of(text: str) -> NDArray[np.int32]:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def holds(tree: PrefixTree, text: str) -> int:
    """How many tokens of a chain a tree holds; what it holds is right."""
    chain = chain_of(text)
    held, parts = tree.match(chain)
    kv = np.concatenate([np.zeros((1, 1, 0, 2), np.float32), *parts], axis=2)
    assert (kv == kv_of(chain)[:, :, :held]).all()
    return held


def keep(tree: PrefixTree, text: str) -> None:
    tree.insert(chain_of(text), kv_of(chain_of(text)))


def test_the_longest_beginning_is_found_wherever_chains_part() -> None:
    tree = PrefixTree(1 << 20)
    for text in ("problem step one", "problem step two", "problem", "problem step on"):
        keep(tree, text)
    assert holds(tree, "problem step one and more") == len("problem step one")
    assert holds(tree, "problem step t") == len("problem step t")
    assert holds(tree, "problems") == len("problem")
    assert holds(tree, "another") == holds(tree, "") == 0
    assert tree.bytes == BYTES * len("problem step one" + "two")


def test_what_was_used_least_recently_goes_first_and_children_before_parents() -> None:
    tree = PrefixTree(BYTES * 12)
    for text in ("abcd", "abcdefgh", "abcdxyz"):
        keep(tree, text)
    assert holds(tree, "abcdxyz") == 7  # and not the one that came last, but the one used last, stays
    assert holds(tree, "abcdefgh") == 8
    keep(tree, "12")
    assert [holds(tree, text) for text in ("12", "abcdefgh", "abcdxyz")] == [2, 8, 4]
    keep(tree, "123456789012")
    assert [holds(tree, text) for text in ("123456789012", "abcdefgh")] == [12, 0]
    keep(tree, "a chain that is too long by itself")
    assert [holds(tree, text) for text in ("123456789012", "a")] == [12, 0]


@given(st.lists(st.tuples(st.booleans(), st.text("ab", max_size=8)), max_size=40), st.integers(0, 20))
def test_a_tree_is_a_set_of_beginnings(calls: list[tuple[bool, str]], tokens_max: int) -> None:
    bounded, roomy = PrefixTree(BYTES * tokens_max), PrefixTree(1 << 20)
    beginnings = {""}
    for is_insert, text in calls:
        if is_insert:
            keep(bounded, text)
            keep(roomy, text)
            beginnings |= {text[:end] for end in range(len(text) + 1)}
            assert holds(bounded, text) == (len(text) if len(text) <= tokens_max else holds(bounded, text))
        assert holds(roomy, text) == max(end for end in range(len(text) + 1) if text[:end] in beginnings)
        assert holds(bounded, text) <= holds(roomy, text)
        assert bounded.bytes <= bounded.bytes_max
        assert roomy.bytes == BYTES * (len(beginnings) - 1)


def test_rows_keep_their_keys_and_values_as_room_comes_and_goes() -> None:
    rng = np.random.default_rng(7)
    rows = KvRows(caches=8, heads=4, past=64, head_dim=128)
    held: dict[int, Any] = {}

    def room() -> Any:
        return rows.inputs(2)[0].base

    for lane in range(40):
        kv = rng.random((8, 4, 1 + lane, 128), np.float32)
        rows.add(lane, [kv[:, :, : lane // 2], kv[:, :, lane // 2 :]])
        held[lane] = kv
    new = rng.random((8, 40, 4, 128), np.float32)
    rows.write(np.arange(40), np.arange(1, 41), list(new))
    for lane in range(40):
        held[lane] = np.concatenate([held[lane], new[:, lane, :, None]], axis=2)
    full_bytes = room().nbytes
    while rows.count:
        for row, lane in enumerate(rows.lane.tolist()):
            assert (rows.held(row, 2 + lane) == held[lane]).all()
            assert not rows.inputs(rows.count)[0][row, :, 2 + lane :].any()
        rows.remove(np.sort(rng.choice(rows.count, min(rows.count, 7), replace=False)))
    assert room().nbytes <= full_bytes / 4
    rows.add(1, [held[1]])
    assert not rows.inputs(1)[0][0, :, 3:].any()


def test_a_nucleus_of_a_large_vocabulary_is_the_smallest_set_of_its_mass() -> None:
    rng = np.random.default_rng(11)
    logits = (rng.normal(size=(40, 9000)) * rng.choice([0.1, 2, 8], (40, 1))).astype(np.float32)
    top_p, code = rng.uniform(0.05, 0.999, 40), rng.random(40)
    token, logprob, _ = sample(logits, code, np.ones(40), top_p)
    for row in range(40):
        probability = np.exp(logits[row].astype(np.float64))
        probability /= probability.sum()
        order = np.argsort(-probability, kind="stable")
        size = 1 + int(np.searchsorted(np.cumsum(probability[order]), top_p[row]))
        inside = np.sort(order[:size])
        mass = np.cumsum(probability[inside])
        drawn = inside[np.searchsorted(mass, code[row] * mass[-1], side="right")]
        assert token[row] == drawn
        assert logprob[row] == pytest.approx(np.log(probability[drawn] / mass[-1]))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.mark.parametrize(
    ("text", "delimiter", "ends"),
    [
        ("one.\n\ntwo", "\n\n", "one.\n\n"),  # one token says the delimiter, and more
        ("one\n\ntwo", "\n\n", "one\n\n"),
        ("one\n \n\n\n", "\n\n", "one\n \n\n"),
        ("one two", "two", "one two"),
        ("é è", "è", "é è"),  # its first byte is a token of its own
        (f"one{EOS} two", EOS, f"one{EOS}"),
        ("one", "#", None),
        ("one", None, None),
    ],
)
def test_a_delimiter_is_seen_where_it_is_complete(
    tokenizer: Tokenizer, text: str, delimiter: str | None, ends: str | None
) -> None:
    start = chain_of("ab\n")
    chain = np.concatenate([start, np.array(tokenizer.encode(text).ids, np.int32)])
    seen = Delimiter.find(tokenizer, delimiter)
    for end in range(len(start) + 1, len(chain) + 1):
        known = chain[:end]
        if seen.completed(known, len(start)) if seen.in_text else known[-1] == seen.token:
            assert seen.step(known, len(start), ended=False).decode() == ends
            return
    assert ends is None
