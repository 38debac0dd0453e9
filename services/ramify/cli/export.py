"""Results as a file: JSONL, CSV or Parquet."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from ramify.cli.errors import UsageError
from ramify.cli.records import Record, as_record
from ramify.v1 import job_pb2

FORMATS = ("jsonl", "csv", "parquet")

#: Columns of a CSV or Parquet file with their Arrow types. `id`, `text` and `reference` are the problem's, so that
#: the file can be submitted again.
COLUMNS = MappingProxyType(
    {
        "problem_index": "uint64",
        "id": "string",
        "text": "string",
        "reference": "string",
        "outcome": "string",
        "verdict": "string",
        "score": "float32",
        "answer": "string",
        "steps": "list",
        "step_count": "uint64",
        "tokens": "uint64",
        "message": "string",
        "answer_node_id": "string",
        "restarted": "string",
        "generators": "list",
        "note": "string",
    }
)

_ROWS_PER_GROUP = 10_000


def check_output(path: Path) -> None:
    """Raises `UsageError` unless results can be written to a file of that name."""
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise UsageError(f"{path}: the name must end in {', '.join('.' + name for name in FORMATS)}")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path}: {'is a directory' if path.is_dir() else f'there is no directory {path.parent}'}")


def write_results(path: Path, results: Iterable[job_pb2.Result]) -> int:
    """Writes the results in the format of the file's extension and returns their number.

    The file appears once it is complete; until then it has `.part` at its end.
    """
    writer = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}[path.suffix.lower()[1:]]
    count = 0

    def records() -> Iterator[Record]:
        nonlocal count
        for result in results:
            count += 1
            yield as_record(result)

    with _complete_or_not(path) as part:
        writer(part, records())
    return count


@contextmanager
def _complete_or_not(path: Path) -> Iterator[Path]:
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _flat(record: Record) -> Record:
    problem = record["problem"]
    merged = record | (dict(problem) if isinstance(problem, Mapping) else {})
    return {name: merged.get(name) for name in COLUMNS}


def _write_jsonl(path: Path, records: Iterator[Record]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_csv(path: Path, records: Iterator[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        for record in records:
            row = _flat(record)
            writer.writerow({name: "\n".join(value) if isinstance(value, list) else value for name, value in row.items()})


def _write_parquet(path: Path, records: Iterator[Record]) -> None:
    import pyarrow as pa  # slow to import, and few need it
    import pyarrow.parquet as pq

    types = {"uint64": pa.uint64(), "string": pa.string(), "float32": pa.float32(), "list": pa.list_(pa.string())}
    schema = pa.schema([pa.field(name, types[kind]) for name, kind in COLUMNS.items()])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := [_flat(record) for record in islice(records, _ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
