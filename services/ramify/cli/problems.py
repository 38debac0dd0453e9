"""Problem files: JSONL, CSV, Parquet, or text with one problem a line.

A file is read twice: first to the end, so that nothing is sent of a file that is wrong anywhere, then again as the
problems are sent. Neither reading holds more than a piece of it, apart from the ids.
"""

import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ramify.cli.errors import ProblemFileError, UsageError
from ramify.cli.problem_rows import READERS, Row
from ramify.cli.problem_values import as_text
from ramify.v1 import job_pb2

#: What `--field` can name.
TARGETS = ("text", "id", "reference")

#: Where the text is looked for, if `--field` doesn't say; the first one wins, of the others there must be one alone.
DEFAULT_TEXT_FIELDS = ("text", "problem", "puzzle", "question", "prompt")


def parse_fields(arguments: list[str]) -> dict[str, str]:
    """The mapping that `--field TARGET=NAME` options make.

    Raises:
        UsageError: one is malformed or names an unknown target, or a target twice.
    """
    mapping: dict[str, str] = {}
    for argument in arguments:
        target, equals, name = argument.partition("=")
        if not equals or not name:
            raise UsageError(f"--field is TARGET=NAME, such as text=puzzle, not {argument!r}")
        if target not in TARGETS:
            raise UsageError(f"--field {argument}: there is no target {target!r}; there are {', '.join(TARGETS)}")
        if target in mapping:
            raise UsageError(f"--field {target} is given twice: {mapping[target]!r} and {name!r}")
        mapping[target] = name
    return mapping


class ProblemFile:
    """The problems of one file; iterating reads it anew. Use it as a context: it may hold a temporary copy."""

    def __init__(self, path: str, *, file_format: str | None = None, fields: Mapping[str, str] | None = None) -> None:
        """Checks that the file can be opened, and copies what can't be read twice.

        Args:
            path: the file, or `-` for JSONL on standard input.
            file_format: a key of `READERS`; by default what the file's extension says.
            fields: name of the field for each target of `TARGETS`; see `DEFAULT_TEXT_FIELDS`.

        Raises:
            ProblemFileError: there is no such file, or its format is unknown.
        """
        self._cleanup = ExitStack()
        self._fields = dict(fields or {})
        self._name = "standard input" if path == "-" else path
        if file_format is None:
            file_format = "jsonl" if path == "-" else Path(path).suffix.lower().removeprefix(".")
        if file_format not in READERS:
            known = ", ".join(READERS)
            what = f"the extension .{file_format}" if file_format else "a name without an extension"
            raise self._error(f"{what} doesn't tell the format; say it with --format, one of {known}")
        self._read_rows = READERS[file_format]
        self._path = self._twice_readable(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._cleanup.close()

    def __iter__(self) -> Iterator[job_pb2.Problem]:
        """The problems in the file's order. Raises `ProblemFileError` at the first thing that is wrong."""
        mapping: Mapping[str, str] | None = None
        with open(self._path, "rb") as file:
            for row in self._read_rows(self._name, file):
                if mapping is None:
                    mapping = self._mapping(row)
                yield self._problem(row, mapping)
        if mapping is None:
            raise self._error("is empty; a problem file has at least one problem")

    def check(self) -> int:
        """Reads all of the file and returns the number of problems.

        Raises:
            ProblemFileError: anything is wrong, or two problems have the same id.
        """
        count = 0
        row_of_id: dict[str, int] = {}
        for problem in self:
            count += 1
            first = row_of_id.setdefault(problem.id, count) if problem.id else count
            if first != count:
                raise self._error(
                    f"problems {first} and {count} (counted from 1) both have the id {problem.id!r}; ids must differ"
                )
        return count

    def _mapping(self, row: Row) -> Mapping[str, str]:
        """The field for each target, from the first row; later rows must have the same."""
        mapping = {target: target for target in ("id", "reference") if target in row.values} | self._fields
        if "text" not in mapping:
            there = [name for name in DEFAULT_TEXT_FIELDS if name in row.values]
            if len(there) > 1 and "text" not in there:
                raise row.error(f"any of the fields {', '.join(there)} could be the text; say which: --field text=NAME")
            if not there:
                raise row.error(
                    f"has none of the fields {', '.join(DEFAULT_TEXT_FIELDS)}, only {_names(row)}; "
                    "say which one is the text: --field text=NAME"
                )
            mapping["text"] = there[0]
        return mapping

    def _problem(self, row: Row, mapping: Mapping[str, str]) -> job_pb2.Problem:
        problem = job_pb2.Problem()
        for target, name in mapping.items():
            if name not in row.values:
                # An id or a reference that nobody asked for may be absent here and there.
                if target in self._fields or target == "text":
                    raise row.error(f"has no field {name!r}, only {_names(row)}; correct it or the --field options")
                continue
            try:
                text = as_text(row.values[name])
            except ValueError as error:
                raise row.error(f"field {name!r} {error}") from None
            if target == "text" and not text.strip():
                raise row.error(f"field {name!r} is empty; every problem needs a text")
            setattr(problem, target, text)
        return problem

    def _twice_readable(self, path: str) -> str:
        """The path of a regular file with the content; pipes are copied to a temporary one."""
        try:
            if path == "-":
                return self._copy(sys.stdin.buffer)
            mode = Path(path).stat().st_mode
            if stat.S_ISDIR(mode):
                raise self._error("is a directory; name a file in it")
            with open(path, "rb") as file:
                return path if stat.S_ISREG(mode) else self._copy(file)
        except FileNotFoundError:
            raise self._error("there is no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise self._error(f"can't be read: {getattr(error, 'strerror', None) or error}") from error

    def _copy(self, source: IO[bytes]) -> str:
        copy = tempfile.NamedTemporaryFile(prefix="ramify-problems-")  # noqa: SIM115 (closed on exit)
        self._cleanup.enter_context(copy)
        shutil.copyfileobj(source, copy)
        copy.flush()
        return copy.name

    def _error(self, message: str) -> ProblemFileError:
        return ProblemFileError(f"{self._name}: {message}")


def _names(row: Row) -> str:
    return ", ".join(repr(name) for name in row.values) or "an empty object"
