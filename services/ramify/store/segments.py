"""Segments: steps as Arrow IPC streams (zstd), one for each flush of a shard."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ramify.scheduler.commands import NodeRows, ScoreRows
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.table import ranges

PLAIN: dict[str, Any] = {
    "tree_id": np.uint64,
    "node_id": np.uint64,
    "parent_id": np.uint64,
    "child_index": np.int32,
    "depth": np.int16,
    "logprob": np.float32,
    "score": np.float32,
    "finish": np.uint8,
    "turn": np.int32,
}
SCORES: dict[str, Any] = {"tree_id": np.uint64, "node_id": np.uint64, "score": np.float32, "turn": np.int32}
_NOTHING: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in PLAIN.items()}
NO_STEPS = NodeRows(
    **_NOTHING,
    tokens=np.empty(0, np.int32),
    token_count=np.empty(0, np.int32),
    text=np.empty(0, np.uint8),
    text_count=np.empty(0, np.int32),
)


def encode_nodes(nodes: NodeRows) -> bytes:
    """One IPC stream of R steps; tokens and text are lists of each row."""
    return _encode(pa.table(_columns(nodes)))


def encode_scores(scores: ScoreRows) -> bytes:
    """One IPC stream of R scores."""
    return _encode(pa.table({name: pa.array(getattr(scores, name)) for name in SCORES}))


def decode(found: Iterable[tuple[pa.Table, pa.Table]]) -> NodeRows:
    """All steps of some segments, in the order of their commits, with the last that is known of each; see `of_trees`.

    A step that was committed twice counts once, as it was first. A score that came in a later commit is put in its place, and
    with it the decision that was the first to know it; if it is NaN, the step could not be scored and its finish becomes ERROR.
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
        tree_id, node_id, score, turn = (_column(table, name) for name in SCORES)
        if not len(known) or not len(score):
            continue
        wanted = mix64(tree_id, node_id)
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        here = known[place] == wanted
        at = order[place[here]]
        nodes.score[at], nodes.turn[at] = score[here], turn[here]
        nodes.finish[at[np.isnan(score[here])]] = Finish.ERROR
    return nodes


def of_trees(nodes: bytes, scores: bytes, wanted: NDArray[np.uint64]) -> tuple[pa.Table, pa.Table]:
    """One segment's steps and scores, cut to those of the trees `wanted` `[T]`."""
    keep = pa.array(wanted)
    steps, later = (table.filter(pc.is_in(table["tree_id"], value_set=keep)) for table in (_read(nodes), _read(scores)))
    return steps, later


def concat(parts: Sequence[NodeRows]) -> NodeRows:
    """The steps of several reads, one after the other."""
    names = [field.name for field in fields(NodeRows)]
    return NodeRows(**{name: np.concatenate([getattr(part, name) for part in (NO_STEPS, *parts)]) for name in names})


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


def _columns(nodes: NodeRows) -> dict[str, Any]:
    columns: dict[str, Any] = {name: pa.array(getattr(nodes, name)) for name in PLAIN}
    for name, values, counts in (("tokens", nodes.tokens, nodes.token_count), ("text", nodes.text, nodes.text_count)):
        starts: Any = pa.array(offsets(counts))
        columns[name] = pa.ListArray.from_arrays(starts, pa.array(values))
    return columns


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _read(body: bytes) -> pa.Table:
    with pa.ipc.open_stream(body) as reader:
        table = reader.read_all()
    if "turn" in table.column_names:
        return table
    return table.append_column("turn", pa.array(np.zeros(len(table), np.int32)))  # written before decisions were counted


def _column(table: pa.Table, name: str) -> Any:
    return table[name].to_numpy()


def _nodes(tables: Sequence[pa.Table]) -> NodeRows:
    order = [*PLAIN, "tokens", "text"]  # not the same in segments from before decisions were counted
    table = pa.concat_tables([table.select(order) for table in tables]) if tables else pa.table(_columns(NO_STEPS))
    plain = {name: _column(table, name).copy() for name in PLAIN}  # a copy, for scores are put into it
    tokens, token_count = _lists(table, "tokens")
    text, text_count = _lists(table, "text")
    return NodeRows(**plain, tokens=tokens, token_count=token_count, text=text, text_count=text_count)


def _lists(table: pa.Table, name: str) -> tuple[Any, NDArray[np.int32]]:
    """The values of a column of lists, one list after the other, and the lists' lengths `[R]`."""
    column: Any = table[name]
    none = np.empty(0, column.type.value_type.to_pandas_dtype())
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    counts = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([none, *values]), np.concatenate([np.empty(0, np.int32), *counts])
