"""Files of solutions: JSONL with a problem and its solution, in one piece or as steps, a line."""

import json
from collections.abc import Iterator, Mapping
from typing import IO, NamedTuple

from ramify.cli.problem_values import as_text
from ramify.verifier.chains import CHAIN_STEPS_MAX, Chain

LINE_BYTES_MAX = 8 << 20
NAMES_SHOWN_MAX = 8

Record = Mapping[str, object]


class Solution(NamedTuple):
    """A line that can be scored."""

    line: int  # from 1
    record: Record  # as it is in the file
    chain: Chain
    whole: bool  # it was in one piece, to be cut by the delimiter


class Broken(NamedTuple):
    """A line that can't be scored, and why."""

    line: int
    record: Record  # empty if it is none
    message: str


def read_solutions(lines: IO[bytes], delimiter: str) -> Iterator[Solution | Broken]:
    """Every line that is not blank, in order; holds one at a time."""
    number = 0
    while line := lines.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            while line and not line.endswith(b"\n"):
                line = lines.readline(LINE_BYTES_MAX)
            yield Broken(number, {}, f"is longer than {LINE_BYTES_MAX:,} bytes")
        elif line.strip():
            yield _read(number, line, delimiter)


def cut(text: str, delimiter: str) -> tuple[str, ...]:
    """The steps of a text, each with the delimiter behind it; together they are the text. None is blank but for its delimiter.

    Args:
        text: A solution.
        delimiter: What steps end with; empty: the text is one step.
    """
    pieces = text.split(delimiter) if delimiter else [text]
    steps: list[str] = []
    begun = ""
    for at, piece in enumerate(pieces):
        begun += piece + (delimiter if at + 1 < len(pieces) else "")
        if piece.strip():
            steps.append(begun)
            begun = ""
        elif steps:
            steps[-1] += begun
            begun = ""
    return tuple(steps) or ((text,) if text.strip() else ())


def _read(number: int, line: bytes, delimiter: str) -> Solution | Broken:
    record: Record = {}
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_no_number)
        if not isinstance(value, dict):
            raise ValueError('is no JSON object, such as {"problem": ..., "solution": ...}')
        record = value
        chain = Chain(_text(record, "problem"), _steps(record, delimiter), as_text(record.get("reference")))
    except UnicodeDecodeError as error:
        return Broken(number, record, f"byte {error.start + 1:,} of the line is not UTF-8")
    except json.JSONDecodeError as error:
        return Broken(number, record, f"is not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Broken(number, record, "is not JSON: the brackets are nested too deep")
    except ValueError as error:
        return Broken(number, record, str(error))
    if len(chain.steps) > CHAIN_STEPS_MAX:
        return Broken(number, record, f"has {len(chain.steps):,} steps; at most {CHAIN_STEPS_MAX:,} are scored")
    return Solution(number, record, chain, "solution" in record and bool(delimiter))


def _text(record: Record, name: str) -> str:
    if name not in record:
        names = ", ".join(repr(each) for each in [*record][:NAMES_SHOWN_MAX])
        raise ValueError(f"has no field '{name}', only {names or 'an empty object'}")
    try:
        text = as_text(record[name])
    except ValueError as error:
        raise ValueError(f"field '{name}' {error}") from None
    if not text.strip():
        raise ValueError(f"field '{name}' is empty")
    return text


def _steps(record: Record, delimiter: str) -> tuple[str, ...]:
    if "steps" not in record:
        return cut(_text(record, "solution"), delimiter)
    steps = record["steps"]
    if "solution" in record:
        raise ValueError("has both 'steps' and 'solution'; give one of them")
    if not (isinstance(steps, list) and steps and all(isinstance(step, str) for step in steps)):
        raise ValueError("field 'steps' is no list of texts, at least one")
    try:
        return tuple(as_text(step) for step in steps)
    except ValueError as error:
        raise ValueError(f"field 'steps': a step {error}") from None


def _no_number(constant: str) -> object:
    raise ValueError(f"is not JSON: {constant} is no number there")
