"""Batched sampling and scoring in PyTorch, for judging checkpoints (Ramify itself runs the ONNX exports)."""

from __future__ import annotations

import torch
from data import EOS, MINUS, NEWLINE, PAD, PLUS, TOKEN, VOCABULARY, encode
from model import Past, TinyLlama
from torch import Tensor

LONGEST = 72
"""Most new tokens of a solution."""
ROWS = 400
"""Most rows sampled at once."""


def pad_left(rows: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ids as (ids, mask, positions), each [B, T], padded on the left so that all end together."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Next tokens [B] from logits [B, V]: the likeliest at temperature 0, else sampled."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def sample(
    model: TinyLlama,
    prompts: list[str],
    temperature: float,
    seed: int = 0,
    *,
    one_step: bool = False,
) -> list[str]:
    """Continues each prompt to the end mark, or only to the next newline. A newline stands for the mark."""
    if len(prompts) > ROWS:
        head = sample(model, prompts[:ROWS], temperature, seed, one_step=one_step)
        return head + sample(model, prompts[ROWS:], temperature, seed + 1_000_003, one_step=one_step)
    generator = torch.Generator().manual_seed(seed)
    ids, mask, positions = pad_left([encode(prompt) for prompt in prompts])
    stops = (EOS, NEWLINE) if one_step else (EOS,)
    texts, live = [""] * len(prompts), list(range(len(prompts)))
    past: Past | None = None
    for _ in range(LONGEST):
        logits, past = model.extend(ids, mask, positions, past)
        chosen = pick(logits[:, -1].float(), temperature, generator)
        tokens = chosen.tolist()
        for row, token in zip(live, tokens, strict=True):
            # The end mark stands where the last step's newline would, which the PRM reads.
            texts[row] += "\n" if token == EOS else VOCABULARY[token] if token != PAD else ""
        keep = [index for index, token in enumerate(tokens) if token not in stops]
        live = [live[index] for index in keep]
        if not live:
            break
        if len(keep) < len(tokens):
            index = torch.tensor(keep)
            past = [(key[index], value[index]) for key, value in past]
            chosen, mask, positions = chosen[index], mask[index], positions[index]
        ids = chosen[:, None]
        mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
        positions = positions[:, -1:] + 1
    return texts


@torch.inference_mode()
def scores(model: TinyLlama, texts: list[str], rows: int = 128) -> list[list[float]]:
    """The PRM's score, P(`+`) against `-`, at every newline of every text."""
    found: list[list[float]] = []
    for start in range(0, len(texts), rows):
        encoded = [[TOKEN.get(character, PAD) for character in text] for text in texts[start : start + rows]]
        width = max(len(row) for row in encoded)
        logits = model(torch.tensor([row + [PAD] * (width - len(row)) for row in encoded]))
        plus = (logits[..., PLUS] - logits[..., MINUS]).float().sigmoid()
        for row, odds in zip(encoded, plus.tolist(), strict=True):
            found.append([odds[index] for index, token in enumerate(row) if token == NEWLINE])
    return found
