"""Writes a checkpoint as a folder that transformers and vLLM load as they are, with an ONNX export beside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_graph
import onnxruntime
import torch
from data import BOS, EOS, PAD, SPECIAL, TOKEN
from model import Config, Past, TinyLlama
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

TOLERANCE = 1e-4
LARGEST = 6_000_000

Feeds = dict[str, NDArray[np.generic]]


def write_json(file: Path, content: dict[str, object]) -> None:
    """Indented, with a newline at the end."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tokenizer() -> Tokenizer:
    """One token a character; plain text gets no special tokens, and decoding joins without spaces."""
    made = Tokenizer(models.WordLevel(dict(TOKEN), unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return made


def llama_config(config: Config) -> dict[str, object]:
    """`config.json` of a `LlamaForCausalLM`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def tokenizer_config(config: Config) -> dict[str, object]:
    """`tokenizer_config.json`; no clean-up of spaces, which would change the text."""
    named = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "add_bos_token": False,
        "add_eos_token": False,
        **named,
    }


def feeds(config: Config, ids: Tensor, mask: Tensor, positions: Tensor, past: Past | None) -> Feeds:
    """The ONNX graph's inputs; no past means one of length 0."""
    named: Feeds = {
        "input_ids": ids.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy(),
    }  # fmt: skip
    empty = torch.zeros(len(ids), config.heads, 0, config.head_dim)
    for layer in range(config.layers):
        key, value = past[layer] if past else (empty, empty)
        named[f"past_key_values.{layer}.key"] = key.numpy()
        named[f"past_key_values.{layer}.value"] = value.numpy()
    return named


def furthest(found: NDArray[np.generic], wanted: Tensor) -> float:
    """Largest difference."""
    return float(np.abs(found - wanted.numpy()).max())


@torch.inference_mode()
def verify(model: TinyLlama, file: Path, rows: int = 3, length: int = 24) -> float:
    """Largest difference of the ONNX logits from PyTorch's: at once, token by token, and with holes."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    config, generator = model.config, torch.Generator().manual_seed(0)
    ids = torch.randint(len(SPECIAL), config.vocab_size, (rows, length), generator=generator)
    positions = torch.arange(length).expand(rows, length).contiguous()
    mask = torch.ones_like(ids)
    wanted = model(ids)
    worst = furthest(session.run(["logits"], feeds(config, ids, mask, positions, None))[0], wanted)
    past: Past | None = None
    for t in range(length):
        new = feeds(config, ids[:, t : t + 1], mask[:, : t + 1], positions[:, t : t + 1], past)
        logits, *presents = (torch.from_numpy(output) for output in session.run(None, new))
        past = list(zip(presents[::2], presents[1::2], strict=True))
        worst = max(worst, furthest(logits.numpy(), wanted[:, t : t + 1]))
    last = 4
    cut = [(key[:, :, :-last].contiguous(), value[:, :, :-last].contiguous()) for key, value in past or []]
    mask[:, 3:9] = 0
    mask[0] = 0  # A row of padding alone must not give NaN.
    ids, positions = ids[:, -last:], positions[:, -last:]
    holed, _ = model.extend(ids, mask, positions, cut)
    found = session.run(["logits"], feeds(config, ids, mask, positions, cut))[0]
    if not np.isfinite(found).all():
        raise SystemExit(f"{file.name}: not finite where all is masked")
    return max(worst, furthest(found[1:], holed[1:]))


def export(model: TinyLlama, folder: Path, convention: str = "") -> None:
    """Writes every artefact, with the verifier's convention if it has one, and fails where ONNX and PyTorch disagree."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    write_json(folder / "config.json", llama_config(config))
    write_json(folder / "tokenizer_config.json", tokenizer_config(config))
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    write_json(folder / "generation_config.json", {**ends, "do_sample": True, "max_new_tokens": 72})
    if convention:
        (folder / "ramify.json").write_text(json.dumps({"convention": convention}) + "\n", encoding="utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # It is written for its owner alone.
    file = folder / "model.onnx"
    onnx_graph.write(model, file)
    worst = verify(model, file)
    if worst > TOLERANCE or file.stat().st_size > LARGEST:
        raise SystemExit(f"{file.name}: off by {worst:.2e}, {file.stat().st_size} bytes")
    print(f"{folder.name}: ONNX within {worst:.1e} of PyTorch, {file.stat().st_size} bytes", flush=True)
