"""A decoder-only model exported to ONNX with past keys and values: its layout, and calls of it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ramify.scheduler.engines.onnx_folder import EXPORT
from ramify.scheduler.errors import EngineError

KV = NDArray[Any]
"""Keys or values, of float32 or float16."""
I64 = NDArray[np.int64]

_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")
_KEEP = ("num_logits_to_keep", "logits_to_keep")
_AXES = {"input_ids": 2, "attention_mask": 2, "position_ids": 2, "use_cache_branch": 1}  # how many each input has
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
_REALS = ("tensor(float)", "tensor(float16)")


class OnnxModel:
    """A graph in the layout of Hugging Face's exports (optimum, transformers.js), run on the CPU.

    Inputs are `input_ids`, `past_key_values.N.key` and `.value`, and, if the graph has them, `attention_mask`, `position_ids`,
    `use_cache_branch` and `logits_to_keep`; outputs are `logits`, `present.N.key` and `.value`.

    Attributes:
        caches: how many key and value tensors there are, two a layer.
        heads: key and value heads, H.
        head_dim: width of one, D.
        dtype: of keys and values.
        vocabulary: number of logits, V.
        padded: whether rows at different positions can be in one call, their pasts padded on the right.
        in_place: whether a call puts new keys and values right after the row's own past, and not after the padding.
        whole: whether a call for several tokens must begin with the chain.

    Raises:
        EngineError: the graph can't be loaded, or is not of the layout.
    """

    def __init__(self, file: Path, config: Mapping[str, Any], threads: int) -> None:
        self._file = file
        self._session = _session(file, threads)
        self._inputs: dict[str, Any] = {each.name: each for each in self._session.get_inputs()}
        self._outputs: dict[str, Any] = {each.name: each for each in self._session.get_outputs()}
        self._past_names = [name for name in self._inputs if _PAST.fullmatch(name)]
        self._present_names = [name.replace("past_key_values", "present") for name in self._past_names]
        self._check_layout()
        first, logits = self._inputs[self._past_names[0]], self._outputs["logits"]
        heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
        width = config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)
        self.caches = len(self._past_names)
        self.heads = self._size("how many key and value heads there are", first.shape[1], heads)
        self.head_dim = self._size("how wide a head is", first.shape[3], width)
        self.dtype = _TYPES[first.type]
        self.vocabulary = self._size("how many logits there are", logits.shape[-1], config.get("vocab_size"))
        self._dtypes = {name: _TYPES[each.type] for name, each in self._inputs.items()}
        self._keep = {name: np.ones([1] * len(self._inputs[name].shape), np.int64) for name in _KEEP if name in self._inputs}
        self.in_place = self._lands_in_place()
        told = "attention_mask" in self._inputs and "position_ids" in self._inputs and not _windowed(config)
        self.padded = self.in_place or told
        # The half of it that takes a past was traced with one new token, and may see no order among several.
        self.whole = "use_cache_branch" in self._inputs

    def run(self, tokens: I64, positions: I64, past: Sequence[KV]) -> tuple[KV, list[KV]]:
        """Feed one token a row.

        Args:
            tokens: `[B]`
            positions: `[B]` of them, P at most: so many tokens of its past a row attends to. All P, unless `padded`.
            past: `caches` times `[B, H, P, D]`, key and value of each layer in turn. Where `in_place`, positions are below P, the
                arrays contiguous, and the new token is written into them.

        Returns:
            logits: `[B, V]`
            new: `caches` times `[B, H, D]`: keys and values of the tokens.
        """
        length = past[0].shape[2]
        if self.in_place:
            mask = (np.arange(length) <= positions[:, None]).astype(np.int64)
            logits = self._overwrite(self._feeds(tokens[:, None], positions[:, None], mask, past))
            rows = np.arange(len(positions))
            return logits[:, -1], [each[rows, :, positions] for each in past]
        mask = (np.arange(length + 1) < positions[:, None]).astype(np.int64)
        mask[:, -1] = 1
        feeds = self._feeds(tokens[:, None], positions[:, None], mask, past)
        logits, *present = self._session.run(["logits", *self._present_names], feeds)
        return logits[:, -1], [each[:, :, -1] for each in present]

    def fill(self, tokens: I64, past: Sequence[KV]) -> list[KV]:
        """Feed many tokens a row, of rows whose pasts are equally long.

        Args:
            tokens: `[B, T]`; those of shorter rows are padded on the right, where no token before sees them.
            past: `caches` times `[B, H, P, D]`, all of it attended.

        Returns:
            `caches` times `[B, H, T, D]`: keys and values of the tokens.
        """
        rows, new = tokens.shape
        held = past[0].shape[2]
        mask = np.ones((rows, held + new), np.int64)
        positions = np.tile(np.arange(held, held + new), (rows, 1))
        present = self._session.run(self._present_names, self._feeds(tokens, positions, mask, past))
        return [each[:, :, held : held + new] for each in present]

    def _feeds(self, tokens: I64, positions: I64, mask: I64, past: Sequence[KV]) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = dict(zip(self._past_names, past, strict=True))
        offered = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        offered |= {"use_cache_branch": np.array([past[0].shape[2] > 0]), **self._keep}
        for name, value in offered.items():
            if name in self._dtypes:
                feeds[name] = value.astype(self._dtypes[name], order="C", copy=False)
        return feeds

    def _overwrite(self, feeds: dict[str, NDArray[Any]]) -> KV:
        """Logits `[B, T, V]`; the presents take the memory of the pasts, which saves copying all of them for every token."""
        binding = self._session.io_binding()
        binding.bind_output("logits", "cpu")
        for name, value in feeds.items():
            binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        for name, present in zip(self._past_names, self._present_names, strict=True):
            value = feeds[name]
            binding.bind_output(present, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        self._session.run_with_iobinding(binding)
        logits: KV = binding.get_outputs()[0].numpy()
        return logits

    def _lands_in_place(self) -> bool:
        """Ask the model itself: two rows with nothing but padding in their past, and one new token each.

        Graphs with ONNX Runtime's GroupQueryAttention put it before the padding, others behind.
        """
        tokens, nowhere = np.array([[1], [self.vocabulary // 2]]), np.zeros((2, 1), np.int64)
        past: list[KV] = [np.zeros((2, self.heads, 2, self.head_dim), self.dtype)] * self.caches
        try:
            present = self._session.run(self._present_names, self._feeds(tokens, nowhere, np.array([[0, 0, 1]] * 2), past))
        except Exception as error:  # ONNX Runtime has many kinds, and nothing above them
            raise EngineError(f"{self._file} can't be run with past key values: {_line(error)}") from error
        return any(bool(each[:, :, 0].any()) for each in present)

    def _check_layout(self) -> None:
        known = {*_AXES, *_KEEP, *self._past_names}
        unknown = sorted(set(self._inputs) - known)
        if unknown:
            self._refuse(f"the input {unknown[0]} is none that a decoder-only model has in Hugging Face's layout")
        if "input_ids" not in self._inputs or not self._past_names:
            self._refuse(f"its inputs are {', '.join(sorted(self._inputs))}: it lacks input_ids or past_key_values.N.key")
        lacking = sorted({"logits", *self._present_names} - set(self._outputs))
        if lacking:
            self._refuse(f"it lacks the output {lacking[0]}")
        for name in self._past_names:
            self._check_input(name, 4, (0, 2), _REALS)
        if len({(given.type, *given.shape[1::2]) for name, given in self._inputs.items() if name in self._past_names}) > 1:
            self._refuse("its past key values differ in type, heads or width, which is not supported")
        for name, axes in _AXES.items():
            if name in self._inputs:
                self._check_input(name, axes, range(2) if axes == 2 else (), tuple(_TYPES))

    def _check_input(self, name: str, axes: int, dynamic: Sequence[int], types: Sequence[str]) -> None:
        given = self._inputs[name]
        if given.type not in types:
            self._refuse(f"the input {name} is a {given.type}, which is not supported")
        if len(given.shape) != axes:
            self._refuse(f"the input {name} has {len(given.shape)} axes and not {axes}")
        fixed = [axis for axis in dynamic if isinstance(given.shape[axis], int)]
        if fixed:
            self._refuse(f"axis {fixed[0]} of the input {name} is always {given.shape[fixed[0]]}: it must be dynamic")

    def _size(self, what: str, graph: Any, config: Any) -> int:
        """A size as the graph says it, or the configuration where the graph has a name for it."""
        if isinstance(graph, int):
            return graph
        if not config:
            self._refuse(f"neither its shapes nor config.json say {what}")
        return int(config)

    def _refuse(self, reason: str) -> NoReturn:
        raise EngineError(f"{self._file}: {reason}. Export the model with `{EXPORT}`")


def _windowed(config: Mapping[str, Any]) -> bool:
    """Whether attention reaches back for so many places only: graphs count the padding among them."""
    width = config.get("sliding_window") or config.get("attention_chunk_size")
    return bool(width) and bool(config.get("use_sliding_window", True))


def _session(file: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which come as exceptions too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes share the cores
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many kinds, and nothing above them
        raise EngineError(f"ONNX Runtime can't load {file}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
