"""Prompts fed to an `OnnxModel` many tokens at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.onnx_lanes import Group
from ramify.scheduler.engines.onnx_model import OnnxModel

KV = NDArray[Any]


@dataclass(slots=True, eq=False)
class Prefill:
    """A chain whose keys and values are being made."""

    lane: int
    chain: NDArray[np.int32]  # [n]
    groups: list[Group]  # that wait for it
    kv: KV  # [C, H, n, D], filled up to `position`
    position: int = 0  # the next token to feed

    @property
    def left(self) -> int:
        """Tokens that are not filled yet."""
        return len(self.chain) - self.position

    def skip(self, held: int, kv: Sequence[KV]) -> int:
        """Take over what is known of the first `held` tokens, `[C, H, _, D]` one after the other; how many are new."""
        new = max(0, held - self.position)
        if new:
            np.concatenate(kv, axis=2, out=self.kv[:, :, :held])
            self.position = held
        return new


def fill(model: OnnxModel, prefills: Sequence[Prefill], tokens_max: int) -> int:
    """One call of the model: for the first prefill, and those of the others that stand at the same position, as far as they fit.

    At the same position no past is padded, which every layout takes; new tokens are padded on the right, where none sees them.

    Args:
        model: to run.
        prefills: at least one, none of them done; those of the call have moved on after it.
        tokens_max: of the call, padding included. A model that takes no pieces is fed a whole chain nevertheless.

    Returns:
        How many tokens were filled.
    """
    first = prefills[0]
    position = first.position
    longest = first.left if model.whole else min(first.left, tokens_max)
    chosen = [first]
    if position == 0 or not model.in_place:  # GroupQueryAttention takes several rows only for one new token, or without a past
        for other in prefills[1:]:
            length = max(longest, other.left)
            if other.position == position and length * (len(chosen) + 1) <= tokens_max:
                chosen.append(other)
                longest = length
    lengths = [min(each.left, longest) for each in chosen]
    tokens = np.zeros((len(chosen), longest), np.int64)
    for row, (each, length) in enumerate(zip(chosen, lengths, strict=True)):
        tokens[row, :length] = each.chain[position : position + length]
        tokens[row, length:] = tokens[row, length - 1]
    past = [np.stack([each.kv[cache, :, :position] for each in chosen]) for cache in range(model.caches)]
    made = model.fill(tokens, past)
    for row, (each, length) in enumerate(zip(chosen, lengths, strict=True)):
        for cache, new in enumerate(made):
            each.kv[cache, :, position : position + length] = new[row, :, :length]
        each.position += length
    return sum(lengths)
