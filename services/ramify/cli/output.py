"""How things are written for people: one console, and words for numbers, durations and foreign text."""

import json
import os
import sys
from collections.abc import Mapping

from rich.console import Console

#: Nothing is cut off where no terminal sets the width.
_PIPE_COLUMNS = 100_000


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr: styled in a terminal, plain and as wide as its content in a pipe."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_COLUMNS
    return console


def print_json(record: Mapping[str, object]) -> None:
    """One JSON object on a line of its own, at once."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def one_line(text: str) -> str:
    """Foreign text on one line and without control characters, which a terminal might obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))


def duration(seconds: float) -> str:
    """`38 s`, `2 min 5 s`, `3 h 12 min`, `4 d 2 h`."""
    whole = max(0, round(seconds))
    for unit, size, part, part_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def counted(count: int, noun: str) -> str:
    """`1 step`, `1,204 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
