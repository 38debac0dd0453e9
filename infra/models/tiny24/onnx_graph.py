"""The ONNX graph of a `TinyLlama`, by hand, in the Hugging Face / Optimum layout with past keys and values.

By hand because the search needs two things of it: that a row's logits are the same bits whatever rows share
its batch, and speed on one CPU core. So products with weights are plain `MatMul`s of [.., E] with a constant
[E, N] (transposed here, not at run time), those that share an input are one (query, key, value, and the
rotated copies that RoPE adds, so that no tensor is sliced to rotate it), and the norms and the activation are
in the forms that ONNX Runtime fuses. Only standard operators of opset 17.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from model import MASKED, Config, TinyLlama, rope_tables
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = dict[str, NDArray[np.float32]]
Shared = tuple[str, str, str]
"""What all layers use: the scores' bias, and the cosines and sines of the positions."""
OPSET = 17
IR_VERSION = 8


class Graph:
    """Collects nodes and constants under fresh names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """A named constant; the same name means the same constant."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of int64."""
        return self.constant("i_" + "_".join(str(value) for value in values), np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        """A constant scalar of float32."""
        return self.constant(name, np.array(value, np.float32))

    def many(self, op: str, inputs: list[str], names: list[str], **attributes: Any) -> list[str]:
        """A node with the outputs `names`."""
        made = helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes)
        self.nodes.append(made)
        return names

    def node(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output; gives that output's name."""
        return self.many(op, list(inputs), [name or f"t{len(self.nodes)}"], **attributes)[0]


def half_turn(weight: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """A projection [E_out, E] whose output is `rotate_half` of the given one's: rows moved and negated."""
    heads = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    turned: NDArray[np.float32] = np.stack((-heads[:, 1], heads[:, 0]), axis=1)
    return turned.reshape(weight.shape)


def add_norm(graph: Graph, x: str, name: str, weight: NDArray[np.float32], eps: float) -> str:
    """RMS norm of x [B, T, E], in the form that ONNX Runtime fuses to one kernel."""
    square = graph.node("Pow", x, graph.scalar("two", 2.0))
    mean = graph.node("ReduceMean", square, axes=[-1], keepdims=1)
    root = graph.node("Sqrt", graph.node("Add", mean, graph.scalar("eps", eps)))
    return graph.node("Mul", graph.node("Div", x, root), graph.constant(name, weight))


def add_bias(graph: Graph) -> str:
    """What is added to the scores, [B, 1, T, P + T]: MASKED where not seen (causally, and by the mask)."""
    zero, one = graph.constant("zero", np.array(0)), graph.constant("one", np.array(1))
    total = graph.node("Gather", graph.node("Shape", "attention_mask"), one, axis=0)
    new = graph.node("Gather", graph.node("Shape", "input_ids"), one, axis=0)
    keys = graph.node("Range", zero, total, one)
    queries = graph.node("Range", graph.node("Sub", total, new), total, one)
    causal = graph.node("LessOrEqual", keys, graph.node("Unsqueeze", queries, graph.integers(1)))
    mask = graph.node("Cast", "attention_mask", to=TensorProto.BOOL)
    seen = graph.node("And", causal, graph.node("Unsqueeze", mask, graph.integers(1, 2)))
    return graph.node("Where", seen, graph.scalar("open", 0.0), graph.scalar("masked", MASKED))


def add_attention(graph: Graph, x: str, layer: int, weights: Weights, config: Config, shared: Shared) -> str:
    """Attention of one layer on the normed x [B, T, E]; also writes `present.{layer}.*`."""
    bias, cos, sin = shared
    prefix, width = f"model.layers.{layer}.self_attn.", config.hidden_size
    # The scores' scale goes into the queries' weights.
    query = weights[prefix + "q_proj.weight"] * np.float32(config.head_dim**-0.5)
    key, value = weights[prefix + "k_proj.weight"], weights[prefix + "v_proj.weight"]
    turned = half_turn(query, config.head_dim), half_turn(key, config.head_dim)
    joint = graph.constant(f"qkv.{layer}", np.concatenate((query, key, *turned, value)).T)
    plain, rotated, values = graph.many(
        "Split", [graph.node("MatMul", x, joint), graph.integers(2 * width, 2 * width, width)],
        [f"{name}.{layer}" for name in ("plain", "rotated", "values")], axis=-1,
    )  # fmt: skip
    turned_both = graph.node("Add", graph.node("Mul", plain, cos), graph.node("Mul", rotated, sin))
    queries, keys = graph.many("Split", [turned_both], [f"q.{layer}", f"k.{layer}"], axis=-1)
    split = graph.integers(0, 0, config.heads, config.head_dim)

    def heads(name: str) -> str:
        return graph.node("Transpose", graph.node("Reshape", name, split), perm=[0, 2, 1, 3])

    past = f"past_key_values.{layer}."
    keys = graph.node("Concat", past + "key", heads(keys), name=f"present.{layer}.key", axis=2)
    values = graph.node("Concat", past + "value", heads(values), name=f"present.{layer}.value", axis=2)
    scores = graph.node("MatMul", heads(queries), graph.node("Transpose", keys, perm=[0, 1, 3, 2]))
    shares = graph.node("Softmax", graph.node("Add", scores, bias), axis=-1)
    mixed = graph.node("Transpose", graph.node("MatMul", shares, values), perm=[0, 2, 1, 3])
    joined = graph.node("Reshape", mixed, graph.integers(0, 0, width))
    return graph.node("MatMul", joined, graph.constant(f"o.{layer}", weights[prefix + "o_proj.weight"].T))


def add_mlp(graph: Graph, x: str, layer: int, weights: Weights) -> str:
    """SwiGLU of one layer on the normed x [B, T, E]."""
    prefix = f"model.layers.{layer}.mlp."
    joint = np.concatenate((weights[prefix + "gate_proj.weight"], weights[prefix + "up_proj.weight"])).T
    both = graph.node("MatMul", x, graph.constant(f"gate_up.{layer}", joint))
    gate, up = graph.many("Split", [both], [f"gate.{layer}", f"up.{layer}"], axis=-1)
    active = graph.node("Mul", graph.node("Mul", gate, graph.node("Sigmoid", gate)), up)
    down = graph.constant(f"down.{layer}", weights[prefix + "down_proj.weight"].T)
    return graph.node("MatMul", active, down)


def build(model: TinyLlama) -> onnx.ModelProto:
    """The whole graph; see the module's docstring for its layout."""
    config, graph = model.config, Graph()
    weights: Weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    cos, sin = (np.tile(table.numpy(), (1, 2 * config.heads)) for table in rope_tables(config))
    shared = (
        add_bias(graph),
        graph.node("Gather", graph.constant("cos", cos), "position_ids"),
        graph.node("Gather", graph.constant("sin", sin), "position_ids"),
    )
    x = graph.node("Gather", graph.constant("embed", weights["model.embed_tokens.weight"]), "input_ids")
    for layer in range(config.layers):
        name = f"model.layers.{layer}."
        for norm in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            normed = add_norm(graph, x, name + norm, weights[name + norm], config.rms_norm_eps)
            if norm.startswith("input"):
                added = add_attention(graph, normed, layer, weights, config, shared)
            else:
                added = add_mlp(graph, normed, layer, weights)
            x = graph.node("Add", x, added)
    x = add_norm(graph, x, "model.norm.weight", weights["model.norm.weight"], config.rms_norm_eps)
    graph.node("MatMul", x, graph.constant("head", weights["lm_head.weight"].T), name="logits")
    return assemble(graph, config)


def assemble(graph: Graph, config: Config) -> onnx.ModelProto:
    """The model around the graph: inputs and outputs with their names and dynamic axes."""
    info, integer, real = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        info("input_ids", integer, ["batch", "new"]),
        info("attention_mask", integer, ["batch", "total"]),
        info("position_ids", integer, ["batch", "new"]),
    ]
    outputs = [info("logits", real, ["batch", "new", config.vocab_size])]
    for layer in range(config.layers):
        for part in ("key", "value"):
            heads, width = config.heads, config.head_dim
            inputs.append(info(f"past_key_values.{layer}.{part}", real, ["batch", heads, "past", width]))
            outputs.append(info(f"present.{layer}.{part}", real, ["batch", heads, "total", width]))
    body = helper.make_graph(graph.nodes, "tiny_llama", inputs, outputs, list(graph.constants.values()))
    built = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="ramify")
    built.ir_version = IR_VERSION
    onnx.checker.check_model(built, full_check=True)
    return built


def write(model: TinyLlama, file: Path) -> None:
    """Builds, checks and saves."""
    onnx.save(build(model), file)
