"""A model that was exported to ONNX: its layout, and calls of it.

Shapes: B rows, P tokens that are held, T new ones, V numbers for a token; C keys and values (two a layer), H heads of D.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ramify.verifier.backends.onnx_cache import KV
from ramify.verifier.errors import StartupError

_PAST = re.compile(r"past_key_values\.\d+\.(key|value)")
_KEEP = ("num_logits_to_keep", "logits_to_keep")
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OnnxGraph:
    """A graph in the layout of Hugging Face's exports (optimum, transformers.js), run on the CPU.

    Inputs are `input_ids` and, if the graph has them, `attention_mask`, `position_ids`, `past_key_values.N.key` and `.value`,
    `use_cache_branch` and `logits_to_keep`; outputs are `logits` `[B, T, V]`, and `present.N.key` and `.value` for each past.

    Attributes:
        remembers: Whether it takes several tokens after others whose keys and values are held.
        padded: Whether rows that hold differently many tokens can be in one call, what they hold padded on the right.
        alone: Whether a row that holds tokens needs a call of its own, without any padding.
        token_bytes: Of a token's keys and values.
        outputs: How many numbers there are for a token, V.

    Raises:
        StartupError: the graph cannot be loaded or run, or is not of the layout.
    """

    def __init__(self, file: Path, config: Mapping[str, Any], threads: int) -> None:
        self._file = file
        self._session = _session(file, threads)
        self._inputs: dict[str, Any] = {each.name: each for each in self._session.get_inputs()}
        self._past = [name for name in self._inputs if _PAST.fullmatch(name)]
        self._wanted = ["logits", *(name.replace("past_key_values", "present") for name in self._past)]
        self._check_layout()
        first = self._inputs[self._past[0]] if self._past else None
        heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
        width = config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)
        self._heads = self._size("how many key and value heads there are", first.shape[1], heads) if first else 0
        self._head_dim = self._size("how wide a head is", first.shape[3], width) if first else 0
        self._dtype = _TYPES[first.type] if first else np.float32
        self._dtypes = {name: _TYPES[each.type] for name, each in self._inputs.items()}
        self._room: KV = np.empty(0, self._dtype)
        self.token_bytes = len(self._past) * self._heads * self._head_dim * np.dtype(self._dtype).itemsize
        # The half of a merged graph that takes a past was traced with one new token, and may see no order among several.
        self.remembers = bool(self._past) and "use_cache_branch" not in self._inputs
        self.outputs = 0
        self.alone = self._probe(int(config.get("vocab_size") or 2) // 2)
        told = "attention_mask" in self._inputs and "position_ids" in self._inputs
        self.padded = told and not self.alone and not _windowed(config)

    def run(
        self, tokens: Sequence[NDArray[np.int32]], held: Sequence[Sequence[KV]], held_width: int, new_width: int
    ) -> tuple[NDArray[Any], KV]:
        """Feed some tokens a row.

        Args:
            tokens: B times `[n]`, n at most T.
            held: B times the keys and values of what is before them, one after the other.
            held_width: P; what each row holds, unless `padded`.
            new_width: T. Padding is on the right, where no token before sees it.

        Returns:
            logits: `[B, T, V]`; where there is padding, they are anything.
            kv: `[C, B, H, T, D]`, likewise; of no tokens if the graph does not remember.
        """
        rows = len(tokens)
        ids = np.zeros((rows, new_width), np.int64)
        mask = np.zeros((rows, held_width + new_width), np.int64)
        positions = np.empty((rows, new_width), np.int64)
        past = self._past_room(rows, held_width)
        for row, (new, parts) in enumerate(zip(tokens, held, strict=True)):
            at = 0
            for part in parts:
                past[:, row, :, at : at + part.shape[2]] = part
                at += part.shape[2]
            past[:, row, :, at:] = 0  # masked, but no number at all times nothing is no number
            ids[row, : len(new)] = new
            mask[row, :at] = 1
            mask[row, held_width : held_width + len(new)] = 1
            positions[row] = np.arange(at, at + new_width)
        logits, *presents = self._call(ids, mask, positions, past)
        made = np.empty((len(presents) * self.remembers, rows, self._heads, new_width, self._head_dim), self._dtype)
        for new_part, present in zip(made, presents, strict=False):
            new_part[...] = present[:, :, held_width : held_width + new_width]
        return logits, made

    def _call(self, ids: NDArray[Any], mask: NDArray[Any], positions: NDArray[Any], past: KV) -> list[NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = dict(zip(self._past, past, strict=True))
        offered = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        offered |= {name: np.full([1] * len(self._inputs[name].shape), ids.shape[1]) for name in _KEEP if name in self._inputs}
        offered["use_cache_branch"] = np.array([False])
        for name, value in offered.items():
            if name in self._dtypes:
                feeds[name] = value.astype(self._dtypes[name], copy=False)
        found: Any = self._session.run(self._wanted if self.remembers else ["logits"], feeds)
        return list(found)

    def _past_room(self, rows: int, width: int) -> KV:
        """`[C, B, H, P, D]` of anything. The same memory each time: fresh memory costs more than what is copied to it."""
        shape = len(self._past), rows, self._heads, width, self._head_dim
        size = int(np.prod(shape))
        if size > len(self._room):
            self._room = np.empty(size, self._dtype)
        return self._room[:size].reshape(shape)

    def _probe(self, token: int) -> bool:
        """Try it out, and find whether it puts new keys and values right after the row's own past, before the padding.

        Graphs with ONNX Runtime's GroupQueryAttention do, others put them behind. Two tokens: one may have none but zeros.
        """
        held = 2 if self.remembers else 0
        ids, nowhere = np.array([[1], [token]]), np.zeros((2, 1), np.int64)
        past: KV = np.zeros((len(self._past), 2, self._heads, held, self._head_dim), self._dtype)
        mask = np.array([[0] * held + [1]] * 2)
        try:
            logits, *presents = self._call(ids, mask, nowhere, past)
        except Exception as error:  # ONNX Runtime has many kinds, and nothing above them
            raise StartupError(f"{self._file} can't be run: {_line(error)}") from error
        if logits.ndim != 3:
            self._refuse(f"its logits have {logits.ndim} axes and not 3: one row of numbers for each token")
        self.outputs = logits.shape[2]
        return any(bool(each[:, :, 0].any()) for each in presents)

    def _check_layout(self) -> None:
        known = {"input_ids", "attention_mask", "position_ids", "use_cache_branch", *_KEEP, *self._past}
        if unknown := sorted(set(self._inputs) - known):
            self._refuse(f"the input {unknown[0]} is none that a decoder-only model has in Hugging Face's layout")
        if "input_ids" not in self._inputs:
            self._refuse("it lacks the input input_ids")
        if lacking := sorted(set(self._wanted) - {each.name for each in self._session.get_outputs()}):
            self._refuse(f"it lacks the output {lacking[0]}")
        for name, each in self._inputs.items():
            axes = 4 if name in self._past else 2 if name in ("input_ids", "attention_mask", "position_ids") else None
            if each.type not in _TYPES:
                self._refuse(f"the input {name} is a {each.type}, which is not supported")
            if axes is not None and len(each.shape) != axes:
                self._refuse(f"the input {name} has {len(each.shape)} axes and not {axes}")
            fixed = [axis for axis in ((0, 2) if axes == 4 else (0, 1) if axes else ()) if isinstance(each.shape[axis], int)]
            if fixed:
                self._refuse(f"axis {fixed[0]} of the input {name} is always {each.shape[fixed[0]]}: it must be dynamic")
        if len({(self._inputs[name].type, *self._inputs[name].shape[1::2]) for name in self._past}) > 1:
            self._refuse("its past key values differ in type, heads or width, which is not supported")

    def _size(self, what: str, graph: Any, config: Any) -> int:
        """A size as the graph says it, or the configuration where the graph has a name for it."""
        if not isinstance(graph, int) and not config:
            self._refuse(f"neither its shapes nor config.json say {what}")
        return int(graph if isinstance(graph, int) else config)

    def _refuse(self, reason: str) -> NoReturn:
        raise StartupError(f"{self._file}: {reason}")


def _windowed(config: Mapping[str, Any]) -> bool:
    """Whether attention reaches back for so many places only: graphs count the padding among them."""
    width = config.get("sliding_window") or config.get("attention_chunk_size")
    return bool(width) and bool(config.get("use_sliding_window", True))


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which come as exceptions too
    # Idle threads must not burn the cores that the generator needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many kinds, and nothing above them
        raise StartupError(f"ONNX Runtime can't load {file}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
