"""A decoder of random weights as an ONNX graph, laid out as exports from the Hugging Face hub are.

It is of the kind that reward models are: rotary positions, groups of heads that share keys and values, a gated feed-forward part.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models

_OPSET, _IR = 17, 8
_THETA = 10_000.0  # of rotary positions
_SHUT = -3e4  # what is added to the score of what is not seen


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large it is."""

    vocabulary: int = 1024
    layers: int = 4
    hidden: int = 256
    inner: int = 704
    heads: int = 8
    kv_heads: int = 2
    context: int = 1536

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """Numbers in its products with weights, without embeddings."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.inner) + self.hidden * self.vocabulary


class Decoder:
    """Builds the graph. The same sizes and seed have the same weights, with a past or without."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self._sizes, self._rng = sizes, np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def build(self, *, past: bool) -> onnx.ModelProto:
        """The model.

        Args:
            past: Whether it takes keys and values and gives them; else it reads whole rows.
        """
        sizes, info = self._sizes, helper.make_tensor_value_info
        inputs = [info(name, TensorProto.INT64, ["batch", "new"]) for name in ("input_ids", "position_ids")]
        inputs.append(info("attention_mask", TensorProto.INT64, ["batch", "total"]))
        outputs = [info("logits", TensorProto.FLOAT, ["batch", "new", sizes.vocabulary])]
        for layer in range(sizes.layers if past else 0):
            for part in ("key", "value"):
                shape = ["batch", sizes.kv_heads, "past", sizes.head_dim]
                inputs.append(info(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, shape))
                outputs.append(info(f"present.{layer}.{part}", TensorProto.FLOAT, [*shape[:2], "total", shape[3]]))
        self._body(past)
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, list(self._constants.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)

    def _body(self, past: bool) -> None:
        sizes = self._sizes
        turns = np.arange(sizes.context)[:, None] * _THETA ** -np.linspace(0, 1, sizes.head_dim // 2, endpoint=False)
        tables = [self._constant(name, np.tile(function(turns), 2)) for name, function in (("cos", np.cos), ("sin", np.sin))]
        turned = [self._node("Unsqueeze", self._node("Gather", each, "position_ids"), self._integers(1)) for each in tables]
        bias = self._bias()
        x = self._node("Gather", self._weight("embed", sizes.vocabulary, sizes.hidden), "input_ids")
        for layer in range(sizes.layers):
            x = self._node("Add", x, self._attention(self._norm(x), layer, bias, turned, past))
            normed = self._norm(x)
            gate, up = (self._product(normed, f"{name}.{layer}", sizes.hidden, sizes.inner) for name in ("gate", "up"))
            active = self._node("Mul", self._node("Mul", gate, self._node("Sigmoid", gate)), up)
            x = self._node("Add", x, self._product(active, f"down.{layer}", sizes.inner, sizes.hidden))
        head = self._weight("head", sizes.hidden, sizes.vocabulary)
        self._node("MatMul", self._norm(x), head, name="logits")

    def _attention(self, x: str, layer: int, bias: str, turned: Sequence[str], past: bool) -> str:
        sizes, (cos, sin) = self._sizes, turned
        counts = (sizes.heads, sizes.kv_heads, sizes.kv_heads)
        made = []
        for name, count in zip("qkv", counts, strict=True):
            flat = self._product(x, f"{name}.{layer}", sizes.hidden, count * sizes.head_dim)
            split = self._node("Reshape", flat, self._integers(0, 0, count, sizes.head_dim))
            made.append(self._node("Transpose", split, perm=[0, 2, 1, 3]))
        query, key, value = self._turn(made[0], cos, sin), self._turn(made[1], cos, sin), made[2]
        if past:
            held = f"past_key_values.{layer}."
            key = self._node("Concat", held + "key", key, name=f"present.{layer}.key", axis=2)
            value = self._node("Concat", held + "value", value, name=f"present.{layer}.value", axis=2)
        keys, values = self._repeat(key), self._repeat(value)
        scaled = self._node("Mul", query, self._constant("scale", np.array(sizes.head_dim**-0.5)))
        scores = self._node("MatMul", scaled, self._node("Transpose", keys, perm=[0, 1, 3, 2]))
        mixed = self._node("MatMul", self._node("Softmax", self._node("Add", scores, bias), axis=-1), values)
        joined = self._node("Reshape", self._node("Transpose", mixed, perm=[0, 2, 1, 3]), self._integers(0, 0, sizes.hidden))
        return self._product(joined, f"o.{layer}", sizes.hidden, sizes.hidden)

    def _bias(self) -> str:
        """What is added to the scores, `[B, 1, T, P + T]`."""
        zero, one = self._integer(0), self._integer(1)
        total = self._node("Gather", self._node("Shape", "attention_mask"), one)
        new = self._node("Gather", self._node("Shape", "input_ids"), one)
        keys, queries = (self._node("Range", first, total, one) for first in (zero, self._node("Sub", total, new)))
        causal = self._node("LessOrEqual", keys, self._node("Unsqueeze", queries, self._integers(1)))
        told = self._node("Unsqueeze", self._node("Cast", "attention_mask", to=TensorProto.BOOL), self._integers(1, 2))
        opened, shut = self._constant("open", np.array(0.0)), self._constant("shut", np.array(_SHUT))
        return self._node("Where", self._node("And", causal, told), opened, shut)

    def _norm(self, x: str) -> str:
        square = self._node("Pow", x, self._constant("two", np.array(2.0)))
        mean = self._node("Add", self._node("ReduceMean", square, axes=[-1]), self._constant("eps", np.array(1e-5)))
        ones = self._constant("ones", np.ones(self._sizes.hidden))
        return self._node("Mul", self._node("Div", x, self._node("Sqrt", mean)), ones)

    def _turn(self, x: str, cos: str, sin: str) -> str:
        left, right = self._many("Split", [x], 2, axis=-1)
        across = self._node("Concat", self._node("Neg", right), left, axis=-1)
        return self._node("Add", self._node("Mul", x, cos), self._node("Mul", across, sin))

    def _repeat(self, x: str) -> str:
        sizes = self._sizes
        times = self._integers(1, 1, sizes.heads // sizes.kv_heads, 1, 1)
        wide = self._node("Tile", self._node("Unsqueeze", x, self._integers(2)), times)
        return self._node("Reshape", wide, self._integers(0, sizes.heads, -1, sizes.head_dim))

    def _product(self, x: str, name: str, rows: int, columns: int) -> str:
        return self._node("MatMul", x, self._weight(name, rows, columns))

    def _weight(self, name: str, rows: int, columns: int) -> str:
        return self._constant(name, self._rng.normal(size=(rows, columns)) * rows**-0.5)

    def _integers(self, *values: int) -> str:
        name = "integers_" + "_".join(map(str, values))
        self._constants.setdefault(name, numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _integer(self, value: int) -> str:
        name = f"integer_{value}"
        self._constants.setdefault(name, numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def _many(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        outputs = [f"t{len(self._nodes)}_{at}" for at in range(count)]
        self._nodes.append(helper.make_node(op, list(inputs), outputs, **attributes))
        return outputs

    def _node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output


def write_decoder(folder: Path, sizes: Sizes, *, past: bool = True, seed: int = 0) -> Path:
    """A folder with the model, and a tokenizer of as many words as it has tokens: "0", "1" and so on."""
    folder.mkdir(parents=True)
    onnx.save(Decoder(sizes, seed).build(past=past), folder / "model.onnx")
    words = {str(number): number for number in range(sizes.vocabulary)}
    Tokenizer(models.WordLevel(words, unk_token="0")).save(str(folder / "tokenizer.json"))
    config = {
        "vocab_size": sizes.vocabulary,
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": sizes.context,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
