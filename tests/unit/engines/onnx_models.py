"""Decoders of random weights, made on the spot, in the layouts that models exported to ONNX are found in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS, OTHER_EOS = "<end>", "<end of turn>"
_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
_THETA = 100.0  # of rotary positions: neighbours differ much


@dataclass(frozen=True)
class Layout:
    """What differs between exports. A decoder of the same sizes has the same weights in all of them."""

    vocabulary: int = 0  # 0: as many as the tokenizer has
    hidden: int = 40
    inner: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    context: int = 256
    half: bool = False  # weights, keys, values and logits of float16
    positions: bool = True  # whether position_ids are an input; else they are counted from the length of the past
    mask: bool = True  # whether attention_mask is an input
    keep: str = ""  # name of the input that says how many logits are wanted
    merged: bool = False  # two graphs in one, and use_cache_branch
    fused: bool = False  # ONNX Runtime's GroupQueryAttention, which writes keys and values where the row's own past ends
    external: bool = False  # weights beside the graph
    window: int = 0  # how many places attention reaches back for, padding counted; 0: all
    file: str = "model.onnx"

    @property
    def real(self) -> Any:
        """The type of all that is no integer."""
        return np.float16 if self.half else np.float32


LAYOUTS = {
    "today": Layout(),
    "half": Layout(half=True),
    "no position_ids": Layout(positions=False),
    "neither position_ids nor attention_mask": Layout(positions=False, mask=False),
    "num_logits_to_keep": Layout(keep="num_logits_to_keep"),
    "logits_to_keep": Layout(keep="logits_to_keep", positions=False),
    "merged": Layout(merged=True),
    "merged without position_ids": Layout(merged=True, positions=False),
    "GroupQueryAttention": Layout(fused=True, positions=False, context=200),
    "GroupQueryAttention of half": Layout(fused=True, positions=False, half=True),
    "weights beside it": Layout(external=True),
    "a sliding window": Layout(window=20),
}


class Body:
    """Nodes under names that begin with a prefix, and the constants that they need."""

    def __init__(self, prefix: str, constants: dict[str, onnx.TensorProto]) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self._constants = constants

    def constant(self, name: str, value: Any) -> str:
        """A constant; the same name means the same."""
        self._constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant("i_" + "_".join(map(str, values)), np.array(values, np.int64))

    def many(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """A node; gives the names of its outputs."""
        outputs = [f"{self.prefix}{len(self.nodes)}_{at}" for at in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, **attributes))
        return outputs

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.many(op, inputs, 1, **attributes)[0]

    def size(self, name: str, axis: int) -> str:
        """How long an axis is, `[1]`."""
        return self.node("Gather", self.node("Shape", name), self.integers(axis))

    def scalar(self, name: str) -> str:
        """A vector of one number as that number."""
        return self.node("Squeeze", name, self.integers(0))


class Decoder:
    """Builds a graph of a layout; weights follow from the seed."""

    def __init__(self, layout: Layout, vocabulary: int, seed: int = 0) -> None:
        self.layout, self.vocabulary = layout, vocabulary
        rng, sizes = np.random.default_rng(seed), layout

        def weight(rows: int, columns: int) -> NDArray[Any]:
            made: NDArray[Any] = (rng.normal(size=(rows, columns)) * rows**-0.5).astype(np.float32).astype(layout.real)
            return made

        wide, narrow = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.weights: dict[str, NDArray[Any]] = {"embed": weight(vocabulary, sizes.hidden)}
        for layer in range(sizes.layers):
            shapes = {"q": (sizes.hidden, wide), "k": (sizes.hidden, narrow), "v": (sizes.hidden, narrow)}
            shapes |= {"o": (wide, sizes.hidden), "up": (sizes.hidden, sizes.inner), "down": (sizes.inner, sizes.hidden)}
            self.weights |= {f"{name}.{layer}": weight(*shape) for name, shape in shapes.items()}
        self.weights["head"] = 4 * weight(sizes.hidden, vocabulary)
        self.constants: dict[str, onnx.TensorProto] = {}

    def build(self) -> onnx.ModelProto:
        """The model."""
        layout, info = self.layout, helper.make_tensor_value_info
        integer, real = TensorProto.INT64, helper.np_dtype_to_tensor_dtype(np.dtype(layout.real))
        inputs = [info("input_ids", integer, ["batch_size", "sequence_length"])]
        if layout.mask:
            inputs.append(info("attention_mask", integer, ["batch_size", "total_sequence_length"]))
        if layout.positions:
            inputs.append(info("position_ids", integer, ["batch_size", "sequence_length"]))
        if layout.keep:
            inputs.append(info(layout.keep, integer, []))
        outputs = [info("logits", real, ["batch_size", "logits_length", self.vocabulary])]
        for layer in range(layout.layers):
            for part in ("key", "value"):
                shape = ["batch_size", layout.kv_heads, "past_sequence_length", layout.head_dim]
                inputs.append(info(f"past_key_values.{layer}.{part}", real, shape))
                outputs.append(info(f"present.{layer}.{part}", real, [*shape[:2], "total_sequence_length", shape[3]]))
        if layout.merged:
            inputs.append(info("use_cache_branch", TensorProto.BOOL, [1]))
        nodes = self._merged(outputs) if layout.merged else self._body("", [each.name for each in outputs], past=True)
        graph = helper.make_graph(nodes, "decoder", inputs, outputs, list(self.constants.values()))
        return helper.make_model(graph, opset_imports=_OPSETS, ir_version=8)

    def _merged(self, outputs: list[onnx.ValueInfoProto]) -> list[onnx.NodeProto]:
        branches = {}
        for name, past in (("then", True), ("else", False)):
            made = [f"{name}/{each.name}" for each in outputs]
            nodes = self._body(f"{name}/", made, past=past)
            infos = [helper.make_empty_tensor_value_info(each) for each in made]
            branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], infos)
        return [helper.make_node("If", ["use_cache_branch"], [each.name for each in outputs], **branches)]

    def _body(self, prefix: str, outputs: list[str], *, past: bool) -> list[onnx.NodeProto]:
        """Nodes from inputs to `outputs`: logits, and keys and values of each layer in turn."""
        body, layout = Body(prefix, self.constants), self.layout
        shared = self._shared(body, past)
        x, presents = body.node("Gather", self._weight(body, "embed"), "input_ids"), []
        for layer in range(layout.layers):
            mixed, *kept = self._attention(body, self._norm(body, x), layer, shared, past)
            presents += kept
            x = body.node("Add", x, body.node("MatMul", mixed, self._weight(body, f"o.{layer}")))
            up = body.node("MatMul", self._norm(body, x), self._weight(body, f"up.{layer}"))
            active = body.node("Mul", up, body.node("Sigmoid", up))
            x = body.node("Add", x, body.node("MatMul", active, self._weight(body, f"down.{layer}")))
        x = self._norm(body, x)
        if layout.keep:
            first = body.node("Neg", body.node("Unsqueeze", layout.keep, body.integers(0)))
            x = body.node("Slice", x, first, body.integers(np.iinfo(np.int64).max), body.integers(1))
        logits = body.node("MatMul", x, self._weight(body, "head"))
        body.nodes += [
            helper.make_node("Identity", [made], [name]) for made, name in zip([logits, *presents], outputs, strict=True)
        ]
        return body.nodes

    def _weight(self, body: Body, name: str) -> str:
        return body.constant(name, self.weights[name])

    def _norm(self, body: Body, x: str) -> str:
        mean = body.node("ReduceMean", body.node("Mul", x, x), axes=[-1], keepdims=1)
        return body.node("Div", x, body.node("Sqrt", body.node("Add", mean, body.constant("eps", self.layout.real(1e-3)))))

    def _shared(self, body: Body, past: bool) -> tuple[str, str, str]:
        """What all layers use: bias of the scores `[B, 1, T, S]`, cosines and sines `[B or 1, 1, T, D]`."""
        layout = self.layout
        turns = np.arange(layout.context)[:, None] * _THETA ** -np.linspace(0, 1, layout.head_dim // 2, endpoint=False)
        cos, sin = (function(turns).astype(layout.real) for function in (np.cos, np.sin))
        if layout.fused:
            seen = body.node("ReduceSum", "attention_mask", body.integers(1), keepdims=1)
            last = body.node("Cast", body.node("Sub", seen, body.integers(1)), to=TensorProto.INT32)
            total = body.node("Cast", body.scalar(body.size("attention_mask", 1)), to=TensorProto.INT32)
            for name, table in (("cos", cos), ("sin", sin)):
                body.constant(name, table)
            return last, total, ""
        zero, one = body.constant("zero", np.array(0)), body.constant("one", np.array(1))
        new = body.scalar(body.size("input_ids", 1))
        held = body.scalar(body.size("past_key_values.0.key", 2)) if past else zero
        total = body.node("Add", held, new)
        queries, keys = body.node("Range", held, total, one), body.node("Range", zero, total, one)
        positions = "position_ids" if layout.positions else body.node("Unsqueeze", queries, body.integers(0))
        # Older exports were traced with one new token where there is a past: nothing in them is causal then.
        at = queries if not (layout.merged and past) else body.node("Expand", total, body.node("Shape", queries))
        seen = body.node("LessOrEqual", keys, body.node("Unsqueeze", at, body.integers(1)))
        if layout.window:
            reach = body.node("Sub", queries, body.constant("window", np.array(layout.window)))
            seen = body.node("And", seen, body.node("Greater", keys, body.node("Unsqueeze", reach, body.integers(1))))
        if layout.mask:
            held_in_mask = body.node("Cast", "attention_mask", to=TensorProto.BOOL)
            seen = body.node("And", seen, body.node("Unsqueeze", held_in_mask, body.integers(1, 2)))
        bias = body.node("Where", seen, body.constant("open", layout.real(0)), body.constant("shut", layout.real(-3e4)))
        tables = [body.constant(f"{name}_twice", np.tile(table, 2)) for name, table in (("cos", cos), ("sin", sin))]
        turned = [body.node("Unsqueeze", body.node("Gather", table, positions), body.integers(1)) for table in tables]
        return bias, turned[0], turned[1]

    def _attention(self, body: Body, x: str, layer: int, shared: tuple[str, str, str], past: bool) -> list[str]:
        """What is mixed `[B, T, heads * D]`, and the keys and values so far `[B, kv heads, S, D]`."""
        layout, held = self.layout, [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        made = [body.node("MatMul", x, self._weight(body, f"{name}.{layer}")) for name in ("q", "k", "v")]
        if layout.fused:
            sizes = {"num_heads": layout.heads, "kv_num_heads": layout.kv_heads, "do_rotary": 1}
            inputs = [*made, *held, shared[0], shared[1], "cos", "sin"]
            return body.many("GroupQueryAttention", inputs, 3, domain="com.microsoft", **sizes)
        heads = (layout.heads, layout.kv_heads, layout.kv_heads)
        q, k, v = (self._split(body, each, count) for each, count in zip(made, heads, strict=True))
        q, k = (self._turn(body, each, shared[1], shared[2]) for each in (q, k))
        if past:
            k, v = (body.node("Concat", before, now, axis=2) for before, now in zip(held, (k, v), strict=True))
        keys, values = (self._repeat(body, each) for each in (k, v))
        scaled = body.node("Mul", q, body.constant("scale", layout.real(layout.head_dim**-0.5)))
        scores = body.node("MatMul", scaled, body.node("Transpose", keys, perm=[0, 1, 3, 2]))
        shares = body.node("Softmax", body.node("Add", scores, shared[0]), axis=-1)
        mixed = body.node("Transpose", body.node("MatMul", shares, values), perm=[0, 2, 1, 3])
        return [body.node("Reshape", mixed, body.integers(0, 0, layout.heads * layout.head_dim)), k, v]

    def _split(self, body: Body, x: str, heads: int) -> str:
        split = body.node("Reshape", x, body.integers(0, 0, heads, self.layout.head_dim))
        return body.node("Transpose", split, perm=[0, 2, 1, 3])

    def _turn(self, body: Body, x: str, cos: str, sin: str) -> str:
        left, right = body.many("Split", [x], 2, axis=-1)
        across = body.node("Concat", body.node("Neg", right), left, axis=-1)
        return body.node("Add", body.node("Mul", x, cos), body.node("Mul", across, sin))

    def _repeat(self, body: Body, x: str) -> str:
        layout = self.layout
        wide = body.node(
            "Tile", body.node("Unsqueeze", x, body.integers(2)), body.integers(1, 1, layout.heads // layout.kv_heads, 1, 1)
        )
        return body.node("Reshape", wide, body.integers(0, layout.heads, -1, layout.head_dim))


def make_tokenizer() -> Tokenizer:
    """Bytes, some merges of them as the tokenizers of large models have them, and two tokens that end a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (".", "ĊĊ"), ("t", "h"), ("Ġ", "th")]
    words = [*alphabet, *(left + right for left, right in merges)]
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(EOS, special=True), AddedToken(OTHER_EOS, special=True)])
    return made


def write_model(folder: Path, layout: Layout, seed: int = 0) -> Path:
    """A folder as the hub has them: model, tokenizer, `config.json` and `generation_config.json`."""
    tokenizer = make_tokenizer()
    vocabulary = layout.vocabulary or tokenizer.get_vocab_size()
    file = folder / layout.file
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = {"save_as_external_data": True, "location": f"{file.name}_data", "size_threshold": 1024} if layout.external else {}
    onnx.save(Decoder(layout, vocabulary, seed).build(), file, **beside)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = [tokenizer.token_to_id(each) for each in (EOS, OTHER_EOS)]
    config = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": layout.hidden,
        "num_attention_heads": layout.heads,
        "num_key_value_heads": layout.kv_heads,
        "head_dim": layout.head_dim,
        "max_position_embeddings": layout.context,
        "eos_token_id": ends[0],
        "sliding_window": layout.window or None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder
