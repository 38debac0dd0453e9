"""Graphs as they are exported: whatever their inputs are, a row's numbers are those of one pass, the same bits in any company."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ramify.verifier.backends.onnx import OnnxReader
from ramify.verifier.backends.onnx_plan import PIECE_TOKENS
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Head, Labels, Pair, Row, Value
from tests.unit.engines.onnx_models import LAYOUTS as ENGINES
from tests.unit.engines.onnx_models import Decoder, Layout, make_tokenizer

HEAD = Pair(7, 50)
LAYOUTS = ENGINES | {"in a folder of its own": Layout(file="onnx/model.onnx")}
# Parts of rows: of lengths around those that padding goes to, and long ones.
PARTS = [np.random.default_rng(count).integers(3, 250, count).astype(np.int32) for count in (1, 2, 7, 8, 9, 25, 33, 64)]


def write_prm(folder: Path, layout: Layout, outputs: int = 0, spoil: Callable[[Decoder], object] | None = None) -> Path:
    """A folder with a model of random weights that gives so many numbers for a token: 0 means the vocabulary's."""
    tokenizer = make_tokenizer()
    decoder = Decoder(layout, tokenizer.get_vocab_size())
    vocabulary = decoder.vocabulary
    if outputs:
        decoder.weights["head"], decoder.vocabulary = decoder.weights["head"][:, :outputs], outputs
    if spoil:
        spoil(decoder)
    file = folder / layout.file
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = {"save_as_external_data": True, "location": f"{file.name}_data", "size_threshold": 1024} if layout.external else {}
    onnx.save(decoder.build(), file, **beside)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": vocabulary, "max_position_embeddings": layout.context, "sliding_window": layout.window or None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prm(tmp_path_factory.mktemp("prm"), LAYOUTS["today"])


def row_of(parts: tuple[int, ...], reads: str = "ends") -> Row:
    """The row of some of `PARTS`; `reads` is "ends" of all parts, "last" or "all" tokens."""
    ends = np.cumsum([len(PARTS[part]) for part in parts]).astype(np.int32)
    wanted = {"ends": ends - 1, "last": ends[-1:] - 1, "all": np.arange(ends[-1], dtype=np.int32)}
    return Row(np.concatenate([PARTS[part] for part in parts]), wanted[reads], ends)


def pass_of(layout: Layout, tokens: NDArray[np.int32], head: Head, vocabulary: int) -> NDArray[np.float64]:
    """The log-odds of all tokens in one pass of the plainest graph."""
    session = plain(Layout(half=layout.half, window=layout.window, context=layout.context), vocabulary)
    feeds: dict[str, Any] = {"input_ids": tokens[None].astype(np.int64), "attention_mask": np.ones((1, len(tokens)), np.int64)}
    feeds["position_ids"] = np.arange(len(tokens))[None]
    for each in session.get_inputs():
        if each.name.startswith("past"):
            feeds[each.name] = np.zeros((1, layout.kv_heads, 0, layout.head_dim), layout.real)
    logits = session.run(["logits"], feeds)[0][0].astype(np.float64)
    odds: NDArray[np.float64] = logits[:, 0] if isinstance(head, Value) else logits[:, head.good] - logits[:, head.bad]
    return odds


@cache
def plain(layout: Layout, vocabulary: int) -> Any:
    built = Decoder(layout, vocabulary).build()
    return onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])


def bits(found: list[NDArray[np.float64]]) -> list[bytes]:
    return [each.tobytes() for each in found]


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_say_what_the_weights_do(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    reader = OnnxReader(write_prm(tmp_path, layout), HEAD)
    rows = [row_of(parts, "all") for parts in ((5, 3, 0, 4), (5, 3, 1), (2,), (7, 6, 4, 5, 7), (5, 3, 0, 4))]
    tolerance = 0.2 if layout.half else 1e-4  # of logits of tens
    for _ in range(2):
        for row, odds in zip(rows, reader.read(rows), strict=True):
            wanted = pass_of(layout, row.tokens, HEAD, make_tokenizer().get_vocab_size())
            np.testing.assert_allclose(odds, wanted, atol=tolerance)
    assert bits(reader.read(rows)) == [bits(OnnxReader(tmp_path, HEAD, cache_bytes_max=0).read([row]))[0] for row in rows]
    tokens = 3 * sum(len(row.tokens) for row in rows)
    assert reader.tokens_read + reader.tokens_cached == tokens
    assert (reader.segments > 0) == (not layout.merged)


@pytest.mark.parametrize(
    ("outputs", "head"),
    [(2, Labels()), (2, Labels(0, 1)), (1, Value()), (0, Pair(3, 4))],
    ids=["labels", "turned", "value", "pair"],
)
def test_all_heads(tmp_path: Path, outputs: int, head: Head) -> None:
    reader = OnnxReader(write_prm(tmp_path, Layout(), outputs), head)
    row = row_of((5, 3, 0, 4))
    wanted = pass_of(Layout(), row.tokens, head, make_tokenizer().get_vocab_size())[row.reads]
    np.testing.assert_allclose(reader.read([row])[0], wanted, atol=1e-4)


@given(st.data())
def test_bits_do_not_depend_on_company_order_or_cache(folder: Path, data: st.DataObject) -> None:
    """With small parts, so that rows have much in common."""
    some = st.lists(st.integers(0, len(PARTS) - 1), min_size=1, max_size=5).map(tuple)
    chain = some.filter(lambda parts: sum(len(PARTS[part]) for part in parts) <= Layout().context)
    asked = st.tuples(chain, st.sampled_from(["ends", "last", "all"]))
    calls = data.draw(st.lists(st.lists(asked, min_size=1, max_size=9), min_size=1, max_size=4))
    bytes_max = data.draw(st.sampled_from([0, 10_000, 30_000, 100_000, 1 << 30]))
    reader = shared_reader(folder, bytes_max)
    if data.draw(st.booleans()):
        reader.close()
    for call in calls:
        assert bits(reader.read([row_of(*each) for each in call])) == [alone(folder, *each) for each in call]
        assert reader.cache_bytes <= bytes_max
        held = {id(segment) for segment in reader._cache}
        assert reader.cache_bytes == sum(segment.nbytes for segment in reader._cache)
        assert all(segment.parent is None or id(segment.parent) in held for segment in reader._cache)


@cache
def shared_reader(folder: Path, bytes_max: int) -> OnnxReader:
    return OnnxReader(folder, HEAD, cache_bytes_max=bytes_max)


@cache
def alone(folder: Path, parts: tuple[int, ...], reads: str) -> bytes:
    """The bits of a row by itself, when nothing is known."""
    return bits(shared_reader(folder, 0).read([row_of(parts, reads)]))[0]


def test_one_token_where_the_context_ends(folder: Path) -> None:
    """There is no room for padding, and products of one row may have kernels of their own."""
    asked = [((*parts, 1, 1, 0, 0), "ends") for parts in ((7, 7, 7, 6, 5), (7, 7, 7, 5, 6), (7, 7, 6, 7, 5))]
    reader = shared_reader(folder, 0)
    assert {len(row_of(*each).tokens) for each in asked} == {reader.context_tokens_max}
    assert bits(reader.read([row_of(*each) for each in asked])) == [alone(folder, *each) for each in asked]


def test_only_what_is_new_is_computed(folder: Path) -> None:
    reader = OnnxReader(folder, HEAD)
    reader.read([row_of((5,)), row_of((5, 4)), row_of((5, 4))])
    assert (reader.tokens_read, reader.tokens_cached) == (25 + 9, 25 + 25 + 9)
    assert reader.segments == 2
    reader.read([row_of((5, 4, 6, 3), "last")])
    assert reader.tokens_read == 25 + 9 + 33 + 8
    reader.read([row_of((5, 4, 6)), row_of((5, 4, 6, 3))])  # known, numbers and all
    assert reader.tokens_read == 25 + 9 + 33 + 8
    reader.read([row_of((5, 4, 6), "all")])  # but within parts it keeps none
    assert reader.tokens_read == 2 * (25 + 9 + 33) + 8
    assert reader.segments == 4
    reader.close()
    assert (reader.segments, reader.cache_bytes) == (0, 0)


def test_what_was_used_last_is_kept(folder: Path) -> None:
    one = OnnxReader(folder, HEAD)
    one.read([row_of((5, 4))])
    reader = OnnxReader(folder, HEAD, cache_bytes_max=one.cache_bytes + 1)
    for parts in ((5, 4), (6,), (5,)):  # the last of 5 and 4 goes first: what follows nothing else
        reader.read([row_of(parts)])
    assert reader.tokens_read == 25 + 9 + 33 + 25
    reader.read([row_of((5,))])
    assert reader.tokens_read == 25 + 9 + 33 + 25


def test_a_long_part_is_computed_in_pieces(tmp_path: Path) -> None:
    layout = Layout(context=3 * PIECE_TOKENS)
    reader = OnnxReader(write_prm(tmp_path, layout), HEAD)
    tokens = np.random.default_rng(1).integers(3, 250, layout.context).astype(np.int32)
    ends = np.array([2 * PIECE_TOKENS + 10, len(tokens)], np.int32)
    row = Row(tokens, ends - 1, ends)
    wanted = pass_of(layout, tokens, HEAD, make_tokenizer().get_vocab_size())[row.reads]
    np.testing.assert_allclose(reader.read([row])[0], wanted, atol=1e-4)
    assert reader.segments == 4


def test_numbers_that_are_none_come_as_they_are_and_harm_no_other(tmp_path: Path) -> None:
    def spoil(decoder: Decoder) -> None:
        decoder.weights["embed"][5] = np.nan

    reader = OnnxReader(write_prm(tmp_path, Layout(), spoil=spoil), HEAD)
    bad = Row(np.array([9, 5, 9, 9], np.int32), np.array([0, 1, 3], np.int32), np.array([1, 3, 4], np.int32))
    good = Row(np.array([9, 6, 9, 9], np.int32), np.array([0, 1, 3], np.int32), np.array([1, 3, 4], np.int32))
    longer = row_of((5, 4, 3))
    first, found, spoiled, *_ = reader.read([good, longer, bad])
    assert np.isfinite(first).all()
    assert np.isfinite(found).all()
    assert np.isnan(spoiled).tolist() == [False, True, True]
    assert bits(reader.read([bad, good])) == bits([spoiled, first])


def refused(folder: Path, head: Head = HEAD) -> str:
    with pytest.raises(StartupError) as caught:
        OnnxReader(folder, head)
    return str(caught.value)


def test_outputs_that_do_not_fit_the_head(folder: Path, tmp_path: Path) -> None:
    count = make_tokenizer().get_vocab_size()
    gives = f"model.onnx gives {count} numbers for a token; this convention needs"
    assert f"{gives} one number, a reward" in refused(folder, Value())
    assert f"{gives} logits of a few labels, 1 and 0 among them" in refused(folder, Labels())
    assert f"{gives} logits of its vocabulary, of the tokens 7 and {count} among them" in refused(folder, Pair(7, count))
    write_prm(tmp_path, Layout(), 1)
    assert "model.onnx gives 1 numbers for a token; this convention needs logits of a few" in refused(tmp_path, Labels())


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    assert "lacks config.json, tokenizer.json" in refused(tmp_path)
    write_prm(tmp_path, Layout())
    (tmp_path / "config.json").write_text("{}")
    assert "config.json lacks max_position_embeddings" in refused(tmp_path)
    (tmp_path / "model.onnx").unlink()
    assert "lacks model.onnx" in refused(tmp_path)


def test_graphs_of_another_layout(tmp_path: Path) -> None:
    write_prm(tmp_path, Layout())
    model = onnx.load(tmp_path / "model.onnx")
    changes: dict[str, Callable[[onnx.ModelProto], object]] = {
        "lacks the output present.1.value": lambda graph: graph.graph.output.pop(),
        "the input token_type_ids is none that": lambda graph: graph.graph.input.append(
            onnx.helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, ["batch", "new"])
        ),
        "axis 2 of the input past_key_values.1.value is always 8": lambda graph: setattr(
            graph.graph.input[-1].type.tensor_type.shape.dim[2], "dim_value", 8
        ),
        "which is not supported": lambda graph: setattr(
            graph.graph.input[0].type.tensor_type, "elem_type", onnx.TensorProto.UINT8
        ),
    }
    for message, change in changes.items():
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        change(changed)
        onnx.save(changed, tmp_path / "model.onnx")
        told = refused(tmp_path)
        assert message in told or "can't load" in told, told


def test_the_revision_is_of_all_that_bears_on_a_number(tmp_path: Path) -> None:
    layout = replace(Layout(), external=True)
    before = OnnxReader(write_prm(tmp_path, layout), HEAD).revision
    assert OnnxReader(tmp_path, Pair(3, 4)).revision == before
    (tmp_path / "note.txt").write_text("of no weight")
    assert OnnxReader(tmp_path, HEAD).revision == before
    weights = tmp_path / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert OnnxReader(tmp_path, HEAD).revision != before
