"""A shard's whole state as bytes, and its commands as text: to be compared."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ramify.scheduler.shard import Shard


def snapshot(shard: Shard) -> dict[str, Any]:
    """Everything that an event may change."""
    forest, trees = shard.forest, shard.forest.trees
    columns = {f"forest.{name}": forest.column(name)[: forest.size].tobytes() for name in forest.COLUMNS}
    columns |= {f"trees.{name}": trees.column(name)[: trees.size].tobytes() for name in trees.COLUMNS}
    arenas = {
        "tokens": forest.tokens.data[: forest.tokens.size].tobytes(),
        "text": forest.text.data[: forest.text.size].tobytes(),
        "listed": forest._listed.data[: forest._listed.size].tobytes(),
    }
    own = {"plans": list(shard.plans), "messages": dict(shard.messages), "sizes": (forest.size, trees.size)}
    commit = {"commit": (shard._sequence, shard._committing, shard._flushed_ms), "touched": len(shard._landing.touched)}
    return {**columns, **arenas, **own, **commit}


def trace(found: Sequence[object]) -> str:
    """Commands, to the last bit."""
    return "\n".join(_text(command) for command in found)


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    if isinstance(value, list):
        return f"[{', '.join(_text(each) for each in value)}]"
    if is_dataclass(value):
        return f"{type(value).__name__}({', '.join(_text(getattr(value, each.name)) for each in fields(value))})"
    return repr(value)
