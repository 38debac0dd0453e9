"""Segments: steps as Arrow IPC streams (zstd), one for each flush of a shard, with checksums and an index of their trees."""

import io
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ramify.scheduler.commands import NodeRows, ScoreRows
from ramify.scheduler.engines.base import Finish
from ramify.scheduler.forest.ids import mix64
from ramify.scheduler.forest.table import ranges
from ramify.store.errors import Damaged

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
_INDEX = np.dtype("<u8")
_CODEC = pa.Codec("zstd", compression_level=1)  # higher levels cost more than they save
_NOTHING: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in PLAIN.items()}
NO_STEPS = NodeRows(
    **_NOTHING,
    tokens=np.empty(0, np.int32),
    token_count=np.empty(0, np.int32),
    text=np.empty(0, np.uint8),
    text_count=np.empty(0, np.int32),
)

NO_SCORES = pa.table({name: pa.array(np.empty(0, dtype)) for name, dtype in SCORES.items()})


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as it is stored; see `schema.segments`."""

    nodes: bytes
    scores: bytes
    checksum: int
    trees: bytes
    trees_checksum: int


def seal(nodes: NodeRows, scores: ScoreRows) -> Segment:
    """Make a segment of R steps and S scores."""
    bodies = encode_nodes(nodes), encode_scores(scores)
    trees = np.unique(np.concatenate((nodes.tree_id, scores.tree_id))).astype(_INDEX).tobytes()
    return Segment(*bodies, checksum(*bodies), trees, checksum(trees))


def checksum(*bodies: bytes) -> int:
    """CRC-32 of some bytes, one after the other."""
    found = 0
    for body in bodies:
        found = zlib.crc32(body, found)
    return found


def verify(known: int | None, *bodies: bytes) -> None:
    """Raise `Damaged` unless the bytes have the checksum `known`; None: they were written without one."""
    if known is not None and (found := checksum(*bodies)) != known:
        raise Damaged(f"its checksum is {found:08x} and should be {known:08x}")


def read_index(trees: bytes | None, known: int | None) -> NDArray[np.uint64] | None:
    """`[T]` sorted ids of a segment's trees; None if it was written without an index. Raises `Damaged`."""
    if trees is None:
        return None
    verify(known, trees)
    return np.frombuffer(trees, _INDEX).astype(np.uint64)


def open_segment(nodes: bytes, scores: bytes, known: int | None) -> tuple[pa.Table, pa.Table]:
    """Steps and scores of a segment whose checksum is `known`. Raises `Damaged`."""
    verify(known, nodes, scores)
    return read(nodes, PLAIN), read(scores, SCORES)


def index_of(nodes: pa.Table, scores: pa.Table) -> NDArray[np.uint64]:
    """`[T]` sorted ids of the trees that a segment holds something of."""
    return np.unique(np.concatenate((column(nodes, "tree_id"), column(scores, "tree_id"))))


def encode_nodes(nodes: NodeRows) -> bytes:
    """One IPC stream of R steps; tokens and text are lists of each row."""
    return encode(pa.table(_columns(nodes)))


def encode_scores(scores: ScoreRows) -> bytes:
    """One IPC stream of R scores."""
    return encode(pa.table({name: pa.array(getattr(scores, name)) for name in SCORES}))


def decode_nodes(body: bytes, wanted: NDArray[np.uint64]) -> NodeRows:
    """The steps of the trees `wanted` `[T]` out of what `encode_nodes` has made. Raises `Damaged`."""
    table = read(body, PLAIN)
    return _nodes([table.filter(pc.is_in(table["tree_id"], value_set=pa.array(wanted)))])


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
        tree_id, node_id, score, turn = (column(table, name) for name in SCORES)
        if not len(known) or not len(score):
            continue
        wanted = mix64(tree_id, node_id)
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        here = known[place] == wanted
        at = order[place[here]]
        nodes.score[at], nodes.turn[at] = score[here], turn[here]
        nodes.finish[at[np.isnan(score[here])]] = Finish.ERROR
    return nodes


def of_trees(nodes: pa.Table, scores: pa.Table, wanted: NDArray[np.uint64]) -> tuple[pa.Table, pa.Table]:
    """One segment's steps and scores, cut to those of the trees `wanted` `[T]`."""
    keep = pa.array(wanted)
    here = [pc.is_in(table["tree_id"], value_set=keep) for table in (nodes, scores)]
    steps, later = (
        table if pc.all(mask).as_py() else table.filter(mask) for table, mask in zip((nodes, scores), here, strict=True)
    )
    return steps, later


def without_trees(nodes: pa.Table, scores: pa.Table, unwanted: NDArray[np.uint64]) -> tuple[pa.Table, pa.Table]:
    """One segment's steps and scores less those of the trees `unwanted` `[T]`."""
    if not len(unwanted):
        return nodes, scores
    drop = pa.array(unwanted)
    steps, later = (table.filter(pc.invert(pc.is_in(table["tree_id"], value_set=drop))) for table in (nodes, scores))
    return steps, later


def rooted(nodes: NodeRows) -> NodeRows:
    """The steps whose ancestors are all among them; in order."""
    keep = nodes.depth == 1
    names, parents = mix64(nodes.tree_id, nodes.node_id), mix64(nodes.tree_id, nodes.parent_id)
    for depth in range(2, int(nodes.depth.max(initial=1)) + 1):
        here = nodes.depth == depth
        keep |= here & np.isin(parents, names[keep & (nodes.depth == depth - 1)])
    return nodes if keep.all() else take(nodes, np.flatnonzero(keep))


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
    columns["tokens"] = list_column(nodes.tokens, nodes.token_count)
    columns["text"] = list_column(nodes.text, nodes.text_count)
    return columns


def list_column(values: NDArray[Any], counts: NDArray[np.int32]) -> Any:
    """`[R]` lists: of `values`, one after the other, the first `counts[0]`, and so on."""
    starts: Any = pa.array(offsets(counts))
    return pa.ListArray.from_arrays(starts, pa.array(values))


def encode(table: pa.Table) -> bytes:
    """One IPC stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=_CODEC)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read(body: bytes | pa.BufferReader, columns: Collection[str]) -> pa.Table:
    """The table of one IPC stream, which must have some columns; `turn` is made up if it lacks it. Raises `Damaged`."""
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"it is no Arrow stream: {error}") from error
    if "turn" in columns and "turn" not in table.column_names:  # written before decisions were counted
        table = table.append_column("turn", pa.array(np.zeros(len(table), np.int32)))
    if lacks := set(columns) - set(table.column_names):
        raise Damaged(f"it lacks the columns {', '.join(sorted(lacks))}")
    return table


def column(table: pa.Table, name: str) -> Any:
    """`[R]` the values of a column."""
    return table[name].to_numpy()


def _nodes(tables: Sequence[pa.Table]) -> NodeRows:
    order = [*PLAIN, "tokens", "text"]  # not the same in segments from before decisions were counted
    table = pa.concat_tables([table.select(order) for table in tables]) if tables else pa.table(_columns(NO_STEPS))
    plain = {name: column(table, name).copy() for name in PLAIN}  # a copy, for scores are put into it
    tokens, token_count = lists(table, "tokens")
    text, text_count = lists(table, "text")
    return NodeRows(**plain, tokens=tokens, token_count=token_count, text=text, text_count=text_count)


def lists(table: pa.Table, name: str) -> tuple[Any, NDArray[np.int32]]:
    """The values of a column of lists, one list after the other, and the lists' lengths `[R]`; see `list_column`."""
    column: Any = table[name]
    none = np.empty(0, column.type.value_type.to_pandas_dtype())
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    counts = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([none, *values]), np.concatenate([np.empty(0, np.int32), *counts])
