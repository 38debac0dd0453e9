"""Segments: steps as Arrow IPC streams (zstd), one for each flush of a shard."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ramify.scheduler.commands import NodeRows, ScoreRows
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.table import ranges

PLAIN = {
    "tree_id": np.uint64,
    "node_id": np.uint64,
    "parent_id": np.uint64,
    "child_index": np.int32,
    "depth": np.int16,
    "logprob": np.float32,
    "score": np.float32,
    "finish": np.uint8,
}
SCORES = {"tree_id": np.uint64, "node_id": np.uint64, "score": np.float32}


def encode_nodes(nodes: NodeRows) -> bytes:
    """One IPC stream of R steps; tokens and text are lists of each row."""
    columns: dict[str, pa.Array] = {name: pa.array(getattr(nodes, name)) for name in PLAIN}
    columns["tokens"] = pa.ListArray.from_arrays(pa.array(offsets(nodes.token_count)), pa.array(nodes.tokens))
    columns["text"] = pa.ListArray.from_arrays(pa.array(offsets(nodes.text_count)), pa.array(nodes.text))
    return _encode(pa.table(columns))


def encode_scores(scores: ScoreRows) -> bytes:
    """One IPC stream of R scores."""
    return _encode(pa.table({name: pa.array(getattr(scores, name)) for name in SCORES}))


def decode(found: Iterable[tuple[pa.Table, pa.Table]]) -> NodeRows:
    """All steps of some segments (see `of_trees`), in the order in which they were committed, with the last that is known of each.

    A step that was committed twice counts once, as it was first. A score that came in a later commit is put in its place; if
    it is NaN, the step could not be scored and its finish becomes ERROR.
    """
    pairs = list(found)
    nodes = _nodes([nodes for nodes, _ in pairs])
    tables = [scores for _, scores in pairs]
    names = mix64(nodes.tree_id, nodes.node_id)
    known, order = np.unique(names, return_index=True)
    if len(known) < len(names):
        nodes = take(nodes, np.sort(order))
        known, order = np.unique(mix64(nodes.tree_id, nodes.node_id), return_index=True)
    for table in tables:
        tree_id, node_id, score = (_column(table, name) for name in SCORES)
        if not len(known) or not len(score):
            continue
        wanted = mix64(tree_id, node_id)
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        here = known[place] == wanted
        at = order[place[here]]
        nodes.score[at] = score[here]
        nodes.finish[at[np.isnan(score[here])]] = Finish.ERROR
    return nodes


def of_trees(nodes: bytes, scores: bytes, wanted: NDArray[np.uint64]) -> tuple[pa.Table, pa.Table]:
    """One segment's steps and scores, cut to those of the trees `wanted` `[T]`."""
    tables = (_read(nodes), _read(scores))
    keep = pa.array(wanted)
    return tuple(table.filter(pc.is_in(table["tree_id"], value_set=keep)) for table in tables)  # type: ignore[return-value]


def concat(parts: Sequence[NodeRows]) -> NodeRows:
    """The steps of several reads, one after the other."""
    return NodeRows(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in (*parts, _nodes([]))])
            for field in fields(NodeRows)
        }
    )


def take(nodes: NodeRows, rows: NDArray[np.int64]) -> NodeRows:
    """Some of the steps, in the order of `rows` `[R]`."""
    token_start = np.cumsum(nodes.token_count, dtype=np.int64) - nodes.token_count
    text_start = np.cumsum(nodes.text_count, dtype=np.int64) - nodes.text_count
    return replace(
        nodes,
        **{name: getattr(nodes, name)[rows] for name in PLAIN},
        tokens=nodes.tokens[ranges(token_start[rows], nodes.token_count[rows])],
        token_count=nodes.token_count[rows],
        text=nodes.text[ranges(text_start[rows], nodes.text_count[rows])],
        text_count=nodes.text_count[rows],
    )


def offsets(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """`[R+1]` where each run starts, and the end."""
    return np.concatenate((np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)))


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _read(body: bytes) -> pa.Table:
    with pa.ipc.open_stream(body) as reader:
        return reader.read_all()


def _column(table: pa.Table, name: str) -> NDArray[np.generic]:
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)


def _nodes(tables: list[pa.Table]) -> NodeRows:
    if not tables:
        empty = {name: np.empty(0, dtype) for name, dtype in PLAIN.items()}
        none = np.empty(0, np.int32)
        return NodeRows(**empty, tokens=none, token_count=none, text=np.empty(0, np.uint8), text_count=none)
    table = pa.concat_tables(tables).combine_chunks()
    plain = {name: _column(table, name).copy() for name in PLAIN}
    tokens, token_count = _lists(table, "tokens")
    text, text_count = _lists(table, "text")
    return NodeRows(**plain, tokens=tokens, token_count=token_count, text=text, text_count=text_count)


def _lists(table: pa.Table, name: str) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    chunks = table[name].chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    counts = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate(values), np.concatenate(counts).astype(np.int32)
