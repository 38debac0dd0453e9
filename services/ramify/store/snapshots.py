"""Snapshots as bytes: four Arrow IPC streams (zstd), one after the other: trees, nodes, steps, and where each tree begins.

A job's trees follow each other, and so do their nodes; the schema's metadata says how many of them each job has.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ramify.scheduler.commands import Snapshot
from ramify.scheduler.forest.parts import NODE_COLUMNS, TREE_COLUMNS, Part
from ramify.store import segments as codec
from ramify.store.errors import Damaged

_COUNTED = ("token_count", "text_count")  # a node's tokens and text are lists, which know their lengths
_NODES = [name for name in NODE_COLUMNS if name not in _COUNTED]
_FIRSTS = ("tree_id", "first_segment")
_PARTS = b"parts"  # JSON: job id, trees and nodes of each part


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A snapshot that was read."""

    parts: Mapping[str, Part]  # by job id
    steps: pa.Table  # see `segments`
    first_segment: Mapping[int, int]  # of the trees of both, by tree id: that of the first step, or one before it


def encode(snapshot: Snapshot, first_segment: Mapping[int, int]) -> bytes:
    """A snapshot's body; `first_segment` of trees whose first steps are in the same commit may be left out."""
    parts = list(snapshot.parts.values())
    counts = [[job_id, len(part), len(part.nodes["node_id"])] for job_id, part in snapshot.parts.items()]
    trees: dict[str, Any] = {
        name: pa.array(_joined([part.trees[name] for part in parts], dtype)) for name, dtype in TREE_COLUMNS.items()
    }
    messages = {tree: message for part in parts for tree, message in part.messages.items()}
    names = trees["tree_id"].to_pylist()
    trees["message"] = pa.array([messages.get(name) for name in names], pa.string())
    nodes: dict[str, Any] = {name: pa.array(_joined([part.nodes[name] for part in parts], NODE_COLUMNS[name])) for name in _NODES}
    tokens, text = _joined([part.tokens for part in parts], np.int32), _joined([part.text for part in parts], np.uint8)
    nodes["tokens"] = codec.list_column(tokens, _joined([part.nodes["token_count"] for part in parts], np.int32))
    nodes["text"] = codec.list_column(text, _joined([part.nodes["text_count"] for part in parts], np.int32))
    all_trees = np.unique(np.concatenate((np.array(names, np.uint64), snapshot.steps.tree_id)))
    firsts = [first_segment.get(tree, 0) for tree in all_trees.tolist()]
    return b"".join(
        (
            codec.encode(pa.table(trees).replace_schema_metadata({_PARTS: json.dumps(counts)})),
            codec.encode(pa.table(nodes)),
            codec.encode_nodes(snapshot.steps),
            codec.encode(pa.table({"tree_id": pa.array(all_trees), "first_segment": pa.array(firsts, pa.int64())})),
        )
    )


def decode(body: bytes, known: int, segment_id: int) -> StoredSnapshot:
    """Read a snapshot.

    Args:
        body: of `encode`.
        known: its checksum.
        segment_id: of the commit that carried it.

    Raises:
        Damaged: it is none, or one of a version whose forest has other columns.
    """
    codec.verify(known, body)
    stream = pa.BufferReader(body)
    trees, nodes = codec.read(stream, [*TREE_COLUMNS, "message"]), codec.read(stream, [*_NODES, "tokens", "text"])
    steps, firsts = codec.read(stream, codec.PLAIN), codec.read(stream, _FIRSTS)
    try:
        counts = json.loads((trees.schema.metadata or {})[_PARTS])
        parts = dict[str, Part]()
        tree = node = 0
        for job_id, tree_count, node_count in counts:
            parts[job_id] = _part(trees.slice(tree, tree_count), nodes.slice(node, node_count))
            tree, node = tree + tree_count, node + node_count
    except (KeyError, ValueError, TypeError) as error:
        raise Damaged(f"it does not say whose its trees are: {error!r}") from error
    first = dict(zip(*(codec.column(firsts, name).tolist() for name in _FIRSTS), strict=True))
    return StoredSnapshot(parts, steps, {name: segment or segment_id for name, segment in first.items()})


def _part(trees: pa.Table, nodes: pa.Table) -> Part:
    tokens, token_count = codec.lists(nodes, "tokens")
    text, text_count = codec.lists(nodes, "text")
    messages = zip(codec.column(trees, "tree_id").tolist(), trees["message"].to_pylist(), strict=True)
    return Part(
        trees={name: codec.column(trees, name) for name in TREE_COLUMNS},
        nodes={name: codec.column(nodes, name) for name in _NODES} | {"token_count": token_count, "text_count": text_count},
        tokens=tokens,
        text=text,
        messages={name: said for name, said in messages if said is not None},
    )


def _joined(columns: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *columns])
