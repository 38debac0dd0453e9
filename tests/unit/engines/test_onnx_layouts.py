"""Models as they are exported: whatever a graph's inputs are, the engine says what the weights do, exact and in chunks."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from ramify.scheduler.engines.base import Finish, StepParams
from ramify.scheduler.engines.onnx import OnnxEngine, OnnxParams
from ramify.scheduler.engines.onnx_model import OnnxModel
from ramify.scheduler.errors import EngineError
from tests.unit.engines.helpers import Job, Row, batch_of, collect
from tests.unit.engines.onnx_models import EOS, LAYOUTS, OTHER_EOS, Decoder, Layout, make_tokenizer, write_model

GREEDY = StepParams(temperature=0.0, top_p=1.0, max_step_tokens=24, delimiter=None)
# Of lengths that end in the middle of a piece and of a padding, and some that have a beginning in common.
TEXTS = ("a", "the theory", "the theory of " * 4, "the theory of everything else " * 5, "0123456789" * 3)

Make = Callable[..., OnnxEngine]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made(layout: Layout = LAYOUTS["today"], folder: str = "model", **options: Any) -> OnnxEngine:
            engine = OnnxEngine(write_model(tmp_path / folder, layout), OnnxParams(**options))
            stack.push_async_callback(engine.close)
            return engine

        yield made


def encode(text: str) -> tuple[int, ...]:
    return tuple(make_tokenizer().encode(text).ids)


@cache
def reference(layout: Layout, chain: tuple[int, ...], tokens: int) -> tuple[tuple[int, ...], float]:
    """The likeliest tokens after a chain and their log-probability, from the plainest graph, which sees it all anew each time."""
    tokenizer = make_tokenizer()
    known, logprob, ends = list(chain), 0.0, [tokenizer.token_to_id(each) for each in (EOS, OTHER_EOS)]
    session = plain(Layout(half=layout.half, window=layout.window))
    past = [each.name for each in session.get_inputs() if each.name.startswith("past")]
    for _ in range(tokens):
        feeds: dict[str, Any] = {name: np.zeros((1, layout.kv_heads, 0, layout.head_dim), layout.real) for name in past}
        feeds["input_ids"] = np.array([known], np.int64)
        feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
        feeds["position_ids"] = np.arange(len(known))[None]
        logits = session.run(["logits"], feeds)[0][0, -1].astype(np.float64)
        if int(logits.argmax()) in ends:
            break
        logprob += float(logits.max() - np.logaddexp.reduce(logits))
        known.append(int(logits.argmax()))
    return tuple(known[len(chain) :]), logprob


@cache
def plain(layout: Layout) -> Any:
    built = Decoder(layout, make_tokenizer().get_vocab_size()).build()
    return onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])


def logprob(row: Row) -> float:
    return float(np.frombuffer(row.logprob_bits, np.float32)[0])


@pytest.mark.parametrize("prefill_tokens", [1, 16])
@pytest.mark.parametrize("name", LAYOUTS)
async def test_all_layouts_say_what_the_weights_do(make: Make, name: str, prefill_tokens: int) -> None:
    layout = LAYOUTS[name]
    engine = make(layout, prefill_tokens=prefill_tokens, slots=4)
    chains, tolerance = [encode(text) for text in TEXTS], 0.2 if layout.half else 1e-3
    for _ in range(2):  # prompts first, and then what was kept of them
        rows = await collect(engine, [Job(chain, 0, GREEDY) for chain in chains])
        for chain, row in zip(chains, rows, strict=True):
            tokens, expected = reference(layout, chain, GREEDY.max_step_tokens)
            assert row.tokens == tokens
            assert logprob(row) == pytest.approx(expected, abs=tolerance)
        chains = [chain + row.tokens for chain, row in zip(chains, rows, strict=True) if row.finish == Finish.STEP_CUT]
    assert len(chains) > 2
    stats = engine.stats()
    assert (stats.rows_running, stats.rows_waiting) == (0, 0)


@pytest.mark.parametrize(
    ("name", "padded", "in_place", "whole"),
    [
        ("today", True, False, False),
        ("no position_ids", False, False, False),
        ("a sliding window", False, False, False),
        ("merged", True, False, True),
        ("GroupQueryAttention", True, True, False),
    ],
)
def test_a_model_says_how_it_wants_its_past(tmp_path: Path, name: str, padded: bool, in_place: bool, whole: bool) -> None:
    folder = write_model(tmp_path, LAYOUTS[name])
    model = OnnxModel(folder / "model.onnx", json.loads((folder / "config.json").read_text()), 1)
    assert (model.padded, model.in_place, model.whole) == (padded, in_place, whole)
    assert (model.caches, model.heads, model.head_dim) == (4, 2, 16)


@pytest.mark.parametrize("name", ["today", "merged", "GroupQueryAttention"])
async def test_prompts_are_fed_in_pieces_and_together(make: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    engine = make(LAYOUTS[name], prefill_tokens=64)
    shapes = []
    fill = OnnxModel.fill

    def spied(model: OnnxModel, tokens: Any, past: Any) -> Any:
        shapes.append((*tokens.shape, past[0].shape[2]))
        return fill(model, tokens, past)

    monkeypatch.setattr(OnnxModel, "fill", spied)
    prompts = [encode(f"{number}: {'x' * number}") for number in range(5, 13)]
    await collect(engine, [Job(prompt, 0, GREEDY) for prompt in prompts])
    assert engine.stats().tokens_prefilled == sum(len(prompt) - 1 for prompt in prompts)
    assert sum(rows for rows, _, _ in shapes) == len(prompts)
    assert len(shapes) == 2
    assert all(rows * tokens <= 64 and past == 0 for rows, tokens, past in shapes)
    shapes.clear()
    await collect(engine, [Job(encode("y" * 151), 0, GREEDY)])
    assert shapes == ([(1, 150, 0)] if name == "merged" else [(1, 64, 0), (1, 64, 64), (1, 22, 128)])


async def test_a_prompt_in_pieces_does_not_mix_with_one_that_begins(make: Make) -> None:
    engine = make(prefill_tokens=64)
    chains = [encode("z" * 151), *(encode(f"{digit} short") for digit in range(6))]
    rows = await collect(engine, [Job(chain, 0, GREEDY) for chain in chains])
    assert [row.tokens for row in rows] == [reference(Layout(), chain, GREEDY.max_step_tokens)[0] for chain in chains]


@pytest.mark.parametrize("name", ["today", "GroupQueryAttention"])
@pytest.mark.parametrize("prefill_tokens", [1, 64])
async def test_a_chain_is_fed_from_where_it_leaves_another(make: Make, name: str, prefill_tokens: int) -> None:
    engine = make(LAYOUTS[name], prefill_tokens=prefill_tokens)
    first = await collect(engine, [Job(encode("what all have in common: one"), 0, GREEDY)])
    assert engine.stats().tokens_prefilled == len(encode("what all have in common: one")) - 1
    second = [encode(f"what all have in common: {text}") for text in ("two", "zero")]
    rows = await collect(engine, [Job(chain, 0, GREEDY) for chain in second])
    fed = len(encode("what all have in common: one")) - 1 + len("tw") + len("zer")
    assert engine.stats().tokens_prefilled == fed
    assert engine.stats().tokens_cached == sum(len(chain) - 1 for chain in second) - len("tw") - len("zer")
    assert [row.tokens for row in rows] == [reference(Layout(), chain, GREEDY.max_step_tokens)[0] for chain in second]
    assert first[0].tokens


@pytest.mark.parametrize("name", ["today", "GroupQueryAttention"])
async def test_what_prompts_have_in_common_is_fed_once_though_they_come_together(make: Make, name: str) -> None:
    engine = make(LAYOUTS[name], prefill_tokens=64)
    system = "You are asked things. " * 5
    texts = [f"{system}{number}{number} is one" for number in range(6)]
    chains = [encode(text) for text in (*texts, system)]
    rows = await collect(engine, [Job(chain, 0, GREEDY) for chain in chains])
    assert [row.tokens for row in rows] == [reference(Layout(), chain, GREEDY.max_step_tokens)[0] for chain in chains]
    common, whole = len(encode(system)), len(chains[0]) - 1
    stats = engine.stats()
    assert stats.tokens_prefilled == whole + 5 * (whole - common)
    assert stats.tokens_cached == 5 * common + common - 1


@pytest.mark.parametrize("name", ["today", "GroupQueryAttention"])
async def test_chunks_change_no_more_than_rounding(make: Make, name: str) -> None:
    exact, chunked = (make(LAYOUTS[name], prefill_tokens=tokens, slots=8) for tokens in (1, 32))
    # A code's digits are used up from the first on, so rounding matters more with every token.
    params = StepParams(temperature=1.0, top_p=0.9, max_step_tokens=2, delimiter="\n")
    jobs = [Job(encode(text), 100 * at + seed, params) for at, text in enumerate(TEXTS) for seed in range(8)]
    for one, other in zip(await collect(exact, jobs), await collect(chunked, jobs), strict=True):
        assert (one.finish, one.tokens) == (other.finish, other.tokens)
        assert logprob(one) == pytest.approx(logprob(other), abs=1e-3)


async def test_a_prefill_in_chunks_that_nobody_waits_for_is_given_up(make: Make) -> None:
    engine = make(prefill_tokens=2, slots=2, turn_tokens=1)
    calls = [engine.generate(batch_of([Job(encode(digit * 200), 0, GREEDY)])) for digit in "12"]
    readers = [asyncio.ensure_future(anext(each)) for each in calls]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await collect(engine, [Job(encode("3"), 0, GREEDY)])
    assert engine.stats().rows_running == 0
    assert engine.stats().tokens_prefilled < 100


async def test_a_step_ends_where_its_text_holds_the_delimiter(make: Make) -> None:
    engine = make()
    params = StepParams(temperature=3.0, top_p=1.0, max_step_tokens=150, delimiter=" ")  # " " is a token, and " th" another
    rows = await collect(engine, [Job(encode("a"), seed, params) for seed in range(60)])
    tokenizer = Tokenizer.from_str(engine.info.tokenizer_json)
    ended = {tokenizer.decode([row.tokens[-1]]) for row in rows if row.finish == Finish.STEP}
    assert ended == {" ", " th"}
    for row in rows:
        assert (b" " in row.text) == (row.finish == Finish.STEP)
        assert b" " not in row.text[:-3]


async def test_any_of_the_ends_ends_a_chain(make: Make) -> None:
    params = StepParams(temperature=2.0, top_p=1.0, max_step_tokens=200, delimiter=None)
    engine = make()
    rows = await collect(engine, [Job(encode("a"), seed, params) for seed in range(80)])
    ends = {make_tokenizer().token_to_id(each) for each in (EOS, OTHER_EOS)}
    assert any(row.finish == Finish.END for row in rows)
    assert not any(ends & set(row.tokens) for row in rows)


def test_a_folder_straight_from_the_hub_is_enough(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models--someone--Small-Instruct" / "snapshots" / ("0" * 40), Layout(file="onnx/model.onnx"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages }}", "eos_token": {"content": EOS}, "bos_token": None})
    )
    info = OnnxEngine(folder).info
    assert (info.name, info.prompt_template, info.delimiter, info.problem_format) == ("Small-Instruct", "{problem}", "\n\n", "")
    assert (info.chat_template, info.bos_token, info.eos_token) == ("{{ messages }}", "", EOS)
    assert info.context_tokens_max == 256
    said = OnnxParams(
        name="small", delimiter=";", prompt_template="Q: {problem}", problem_format="countdown", context_tokens_max=99
    )
    info = OnnxEngine(folder, said).info
    assert (info.name, info.delimiter, info.prompt_template, info.problem_format) == ("small", ";", "Q: {problem}", "countdown")
    assert info.context_tokens_max == 99


def test_the_file_can_be_chosen_and_its_weights_are_its_revision(tmp_path: Path) -> None:
    for name in ("model", "model_q4"):
        write_model(tmp_path, Layout(file=f"onnx/{name}.onnx", external=True), seed=len(name))
    plain, chosen = OnnxEngine(tmp_path).info.revision, OnnxEngine(tmp_path, OnnxParams(file="onnx/model_q4.onnx")).info.revision
    assert plain != chosen
    with (tmp_path / "onnx/model_q4.onnx_data").open("r+b") as weights:
        weights.seek(-4, os.SEEK_END)
        weights.write(b"\0\0\0\0")
    assert OnnxEngine(tmp_path).info.revision == plain
    assert OnnxEngine(tmp_path, OnnxParams(file="onnx/model_q4.onnx")).info.revision != chosen
    with pytest.raises(EngineError, match=r"lacks model_q8.onnx; it has onnx/model.onnx, onnx/model_q4.onnx \(choose with file="):
        OnnxEngine(tmp_path, OnnxParams(file="model_q8.onnx"))


def rename(graph: onnx.GraphProto, name: str, new: str) -> None:
    for each in (*graph.input, *graph.output):
        each.name = new if each.name == name else each.name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if each == name else each for each in names]


def add_input(graph: onnx.GraphProto, name: str, shape: list[Any], kind: int = TensorProto.INT64) -> None:
    graph.input.append(helper.make_tensor_value_info(name, kind, shape))


def add_past(graph: onnx.GraphProto, shape: list[Any], kind: int = TensorProto.FLOAT) -> None:
    add_input(graph, "past_key_values.2.key", shape, kind)
    graph.node.append(helper.make_node("Identity", ["past_key_values.2.key"], ["present.2.key"]))
    graph.output.append(helper.make_tensor_value_info("present.2.key", kind, shape))


BAD: dict[str, tuple[Callable[[onnx.GraphProto], object], str]] = {
    "another input": (
        lambda graph: add_input(graph, "past_conv.0", [1]),
        r"the input past_conv.0 is none that a decoder-only model has .* Export the model with `optimum-cli",
    ),
    "an encoder's past": (
        lambda graph: rename(graph, "past_key_values.1.key", "past_key_values.1.decoder.key"),
        "the input past_key_values.1.decoder.key is none",
    ),
    "no tokens": (lambda graph: rename(graph, "input_ids", "attention_mask_2"), "the input attention_mask_2"),
    "no present": (lambda graph: rename(graph, "present.0.value", "new.0.value"), "lacks the output present.0.value"),
    "three axes": (
        lambda graph: add_past(graph, ["b", "p", 16]),
        "the input past_key_values.2.key has 3 axes and not 4",
    ),
    "positions in three parts": (lambda graph: add_input(graph, "position_ids", [3, "b", "s"]), "position_ids has 3 axes"),
    "one row": (lambda graph: add_input(graph, "position_ids", [1, "s"]), "axis 0 of the input position_ids is always 1"),
    "doubles": (lambda graph: add_past(graph, ["b", 2, "p", 16], TensorProto.DOUBLE), r"is a tensor\(double\), which is not"),
    "other types": (lambda graph: add_past(graph, ["b", 2, "p", 16], TensorProto.FLOAT16), "differ in type, heads or width"),
    "other heads": (lambda graph: add_past(graph, ["b", 3, "p", 16]), "differ in type, heads or width"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_decoder_is_refused_by_name(tmp_path: Path, name: str) -> None:
    spoil, message = BAD[name]
    file = write_model(tmp_path, Layout(positions=False)) / "model.onnx"
    model = onnx.load(file)
    spoil(model.graph)
    onnx.save(model, file)
    with pytest.raises(EngineError, match=message) as caught:
        OnnxEngine(tmp_path)
    assert str(file) in str(caught.value)


def test_a_model_without_a_past_is_refused(tmp_path: Path) -> None:
    file = write_model(tmp_path, Layout()) / "model.onnx"
    value = helper.make_tensor_value_info
    node = helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [node], "g", [value("input_ids", TensorProto.INT64, ["b", "s"])], [value("logits", TensorProto.FLOAT, ["b", "s"])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    with pytest.raises(EngineError, match=r"its inputs are input_ids: it lacks .* past_key_values.N.key"):
        OnnxEngine(tmp_path)


def test_files_that_are_broken_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path, Layout(external=True))
    (folder / "model.onnx_data").unlink()
    with pytest.raises(EngineError, match=r"can't load .*model.onnx"):
        OnnxEngine(folder)
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"can't load .*model.onnx"):
        OnnxEngine(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(EngineError, match=r"config.json is no JSON"):
        OnnxEngine(folder)
    (folder / "config.json").write_text('{"vocab_size": 3}')
    with pytest.raises(EngineError, match="has no max_position_embeddings: add context_tokens_max"):
        OnnxEngine(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match="is no tokenizer"):
        OnnxEngine(folder)


def test_a_context_beyond_the_models_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, Layout())
    with pytest.raises(EngineError, match="context_tokens_max=257 is more than the 256 tokens"):
        OnnxEngine(folder, replace(OnnxParams(), context_tokens_max=257))
