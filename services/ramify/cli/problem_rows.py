"""The rows of a problem file, one reader a format."""

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO

from ramify.cli.errors import ProblemFileError
from ramify.cli.problem_values import LINE_BYTES_MAX, parse_json


@dataclass(frozen=True, slots=True)
class Row:
    """The named values of one problem, and where they stand."""

    file: str
    place: str
    values: Mapping[str, object]

    def error(self, message: str) -> ProblemFileError:
        """The error that names this place."""
        return ProblemFileError(f"{self.file}, {self.place}: {message}")


def _lines(name: str, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines with their ends; never reads more of a line than it may have."""
    offset = 0
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise ProblemFileError(f"{name}, line {number}: is longer than {LINE_BYTES_MAX:,} bytes; is this a problem file?")
        start = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
        try:
            yield number, line[start:].decode()
        except UnicodeDecodeError as error:
            place = offset + start + error.start
            raise ProblemFileError(
                f"{name}, line {number}: byte {place:,} of the file is not UTF-8; convert the file to UTF-8"
            ) from None
        offset += len(line)


def _jsonl_rows(name: str, file: IO[bytes]) -> Iterator[Row]:
    for number, line in _lines(name, file):
        if not line.strip():
            continue
        row = Row(name, f"line {number}", {})
        try:
            value = parse_json(line)
        except json.JSONDecodeError as error:
            raise row.error(f"column {error.colno}: not JSON: {error.msg}; each line must be one JSON object") from None
        except ValueError as error:
            raise row.error(f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise row.error(f'is no JSON object; write {{"text": ...}} on each line, not {line.strip()!r:.40}')
        yield Row(name, row.place, value)


def _text_rows(name: str, file: IO[bytes]) -> Iterator[Row]:
    for number, line in _lines(name, file):
        if line.strip():
            yield Row(name, f"line {number}", {"text": line.strip()})


def _csv_rows(name: str, file: IO[bytes]) -> Iterator[Row]:
    # Not Arrow's reader: it can't say on which line a value stands.
    reader = csv.reader((line for _, line in _lines(name, file)), strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ProblemFileError(
                f"{name}, {place}: not CSV: {error}; a value with commas, quotes or line ends needs quotes around it"
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        row = Row(name, place, {})
        if header is None:
            header = cells
            twice = [cell for cell in header if header.count(cell) > 1]
            if twice:
                raise row.error(f"the header names {twice[0]!r} twice; give each column a name of its own")
        elif len(cells) != len(header):
            raise row.error(f"has {len(cells)} values where the header has {len(header)} columns; correct the line")
        else:
            yield Row(name, place, dict(zip(header, cells, strict=True)))


def _parquet_rows(name: str, file: IO[bytes]) -> Iterator[Row]:
    import pyarrow as pa  # slow to import, and few need it
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1_024):
            for values in batch.to_pylist():
                number += 1
                yield Row(name, f"row {number}", values)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        after = f" after row {number:,}" if number else ""
        raise ProblemFileError(f"{name}: can't be read as Parquet{after}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


#: Reader of each format, by the extension of its files.
READERS: Mapping[str, Callable[[str, IO[bytes]], Iterator[Row]]] = MappingProxyType(
    {"jsonl": _jsonl_rows, "csv": _csv_rows, "parquet": _parquet_rows, "txt": _text_rows}
)
