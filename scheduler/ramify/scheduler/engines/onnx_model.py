"""A decoder-only model exported to ONNX with past key values: what its folder holds, and one step of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.scheduler.engines.base import ModelInfo
from ramify.scheduler.engines.text import step_text
from ramify.scheduler.errors import EngineError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_REQUIRED = ("config.json", "tokenizer.json", "model.onnx")


class OnnxModel:
    """The model in a folder of `config.json`, `tokenizer.json` and `model.onnx` (the layout that optimum exports).

    `generation_config.json` may name the end-of-sequence tokens instead of `config.json`; `ramify.json` may hold
    `name`, `prompt_template`, `delimiter` and `problem_format`, with the meanings of `ModelInfo`.

    Attributes:
        caches: how many key and value tensors there are, two a layer.
        heads: key and value heads, H.
        head_dim: width of one, D.
        vocabulary: number of logits, V.
        eos: ids that end a chain.

    Raises:
        EngineError: the folder lacks a file, or the model is not of the layout.
    """

    def __init__(self, folder: Path, slots: int, threads: int) -> None:
        for name in _REQUIRED:
            if not (folder / name).is_file():
                raise EngineError(f"the model folder {folder} lacks {name}")
        config, ramify = _json(folder / "config.json"), _json(folder / "ramify.json")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._session = _session(folder / "model.onnx", threads)
        inputs: dict[str, Any] = {each.name: each for each in self._session.get_inputs()}
        self._past_names = [name for name in inputs if name.startswith("past_key_values.")]
        self._output_names = ["logits", *(name.replace("past_key_values", "present") for name in self._past_names)]
        _check_layout(folder, self._past_names, inputs, self._output_names, self._session)
        self.caches = len(self._past_names)
        self.heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
        self.head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
        self.vocabulary = int(config["vocab_size"])
        self.eos = _eos(folder, config)
        self.info = ModelInfo(
            name=ramify.get("name", folder.name),
            revision=_revision(folder),
            backend="onnx",
            tokenizer_json=self.tokenizer.to_str(),
            context_tokens_max=int(config["max_position_embeddings"]),
            slots=slots,
            **{key: ramify[key] for key in ("prompt_template", "delimiter", "problem_format") if key in ramify},
        )

    def run(self, tokens: I64, positions: I64, mask: I64, past: list[F32]) -> tuple[F32, list[F32]]:
        """Feed one token a row.

        Args:
            tokens: `[B]`
            positions: `[B]`
            mask: `[B, P+1]` 1 where attended.
            past: `caches` times `[B, H, P, D]`, key and value of each layer in turn.

        Returns:
            logits: `[B, V]`
            present: `caches` times `[B, H, P+1, D]`, the new token last.
        """
        feeds: dict[str, F32 | I64] = dict(zip(self._past_names, past, strict=True))
        feeds |= {"input_ids": tokens[:, None], "position_ids": positions[:, None], "attention_mask": mask}
        logits, *present = self._session.run(self._output_names, feeds)
        return logits[:, -1], present

    def token_id(self, text: str) -> int | None:
        """The single token that stands for a text, if there is one."""
        token: int | None = self.tokenizer.token_to_id(text)
        if token is not None:
            return token
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return int(ids[0]) if len(ids) == 1 else None

    def text(self, chain: NDArray[np.int32], start: int, *, ended: bool) -> bytes:
        """See `step_text`."""
        return step_text(self.tokenizer, chain, start, ended=ended)


def _session(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes share the cores
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _check_layout(folder: Path, past: list[str], inputs: dict[str, Any], outputs: list[str], session: Any) -> None:
    expected = {"input_ids", "attention_mask", "position_ids", *past}
    if not past or set(inputs) != expected:
        raise EngineError(f"{folder / 'model.onnx'}: inputs are {sorted(inputs)}, not tokens with past key values")
    if any(inputs[name].type != "tensor(float)" for name in past):
        raise EngineError(f"{folder / 'model.onnx'}: past key values are not float32")
    lacking = set(outputs) - {each.name for each in session.get_outputs()}
    if lacking:
        raise EngineError(f"{folder / 'model.onnx'} lacks outputs {sorted(lacking)}")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _eos(folder: Path, config: dict[str, Any]) -> NDArray[np.int64]:
    found = _json(folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    if found is None:
        raise EngineError(f"{folder}: neither generation_config.json nor config.json has an eos_token_id")
    return np.atleast_1d(np.array(found, np.int64))


def _revision(folder: Path) -> str:
    """Hash of everything that changes what is sampled: weights (also those beside the graph), tokenizer, ends."""
    content = hashlib.blake2b(digest_size=16)
    names = sorted({*_REQUIRED, "generation_config.json", *(path.name for path in folder.glob("model.onnx*"))})
    for path in (folder / name for name in names):
        if path.is_file():
            with path.open("rb") as file:
                content.update(f"{path.name}:{hashlib.file_digest(file, 'blake2b').hexdigest()};".encode())
    return content.hexdigest()
