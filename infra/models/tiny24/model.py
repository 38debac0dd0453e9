"""A small Llama in plain PyTorch, with Hugging Face's parameter names and RoPE convention.

Shapes: B rows, T new tokens, P past tokens, V vocabulary, H heads of D, width E = H * D.
The modules are named so that `state_dict()` is what `LlamaForCausalLM` loads, unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Past = list[tuple[Tensor, Tensor]]

MASKED = -1e9
"""Added to a masked score: finite, so that a row with everything masked gives no NaN."""


@dataclass(frozen=True)
class Config:
    """The architecture; both models share it."""

    vocab_size: int = 24
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 384
    max_positions: int = 256
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """D: the width of one head."""
        return self.hidden_size // self.heads


def rope_tables(config: Config) -> tuple[Tensor, Tensor]:
    """Cos and sin, each [max_positions, D]: the D/2 frequencies twice over, as `rotate_half` wants."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**half)
    angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns queries or keys [B, H, T, D] by their positions' angles (cos and sin [.., T, D])."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shape in, shape out."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal self-attention over the past and the new tokens."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """X [B, T, E]; bias [B, 1, T, P + T] or None for plain causal; past keys and values [B, H, P, D]."""
        rows, new, _ = x.shape
        shape = (rows, new, self.heads, self.head_dim)
        query = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        key = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        value = self.v_proj(x).view(shape).transpose(1, 2)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        if bias is None:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim) + bias
            mixed = scores.softmax(-1) @ value
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, new, -1)), (key, value)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] in and out."""
        mixed: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return mixed


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and with a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `Attention.forward`."""
        mixed, present = self.self_attn(self.input_layernorm(x), cos, sin, bias, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Backbone(nn.Module):
    """Everything but the output head; called `model` in Hugging Face's names."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class TinyLlama(nn.Module):
    """The whole model: token ids to next-token logits."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.model = Backbone(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        cos, sin = rope_tables(self.config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """Normal weights; the two projections onto the residual stream smaller, for depth."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.05)
        if isinstance(module, Layer):
            for last in (module.self_attn.o_proj, module.mlp.down_proj):
                nn.init.normal_(last.weight, std=0.05 / math.sqrt(2 * self.config.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Training: ids [B, T], padded on the right, to logits [B, T, V]. Plainly causal, no cache."""
        cos, sin = self._table("cos")[: ids.shape[1]], self._table("sin")[: ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x, _ = layer(x, cos, sin, None, None)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits

    def extend(self, ids: Tensor, mask: Tensor, positions: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Inference: ids and positions [B, T], mask [B, P + T] (1 where attended) to logits and the new past.

        Positions are given, so the past may have masked holes.
        """
        new, total = ids.shape[1], mask.shape[1]
        places = torch.arange(total, device=ids.device)
        causal = places <= places[total - new :, None]
        seen = causal[None] & mask.bool()[:, None]
        bias = torch.where(seen, 0.0, MASKED)[:, None]
        cos, sin = self._table("cos")[positions][:, None], self._table("sin")[positions][:, None]
        x = self.model.embed_tokens(ids)
        presents: Past = []
        for index, layer in enumerate(self.model.layers):
            x, present = layer(x, cos, sin, bias, past[index] if past else None)
            presents.append(present)
        return self.lm_head(self.model.norm(x)), presents

    def _table(self, name: str) -> Tensor:
        table = getattr(self, name)
        assert isinstance(table, Tensor)
        return table
