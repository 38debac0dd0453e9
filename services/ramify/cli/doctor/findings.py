"""What a check has found, and how checks are run so that none of them can end the others."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from ramify.store.errors import StoreOutage
from ramify.store.failures import reason

DETAILS_MAX = 10  # lines of a finding; the others are counted


class Level(StrEnum):
    """How bad it is, the least first."""

    SKIPPED = "skipped"  # there was nothing to look at, or it may not be looked at: the summary says why
    OK = "ok"
    WARN = "warn"  # it works, but not as it should, or not for long
    BAD = "bad"  # something does not work, or something is lost


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    name: str  # of the check, one or two words
    level: Level
    summary: str  # one line
    details: tuple[str, ...] = ()  # a line each
    why: str = ""  # it matters
    remedy: str = ""  # what to do


Subject = TypeVar("Subject")
Check = Callable[[Subject], Awaitable[Finding]]


async def made(name: str, finding: Awaitable[Finding], limit_s: float) -> Finding:
    """The finding of a check, or one that says why it could not be made.

    Args:
        name: of the check.
        finding: it.
        limit_s: how long it may take.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await finding
    except TimeoutError:
        why = f"it took longer than {limit_s:,.0f} s"
    except Exception as error:  # whatever it is: the other checks must be made, and nobody wants to read a stack trace
        why = words(error)
    return Finding(name, Level.WARN, f"could not be checked: {why}")


def words(error: BaseException) -> str:
    """What went wrong, in one line, in the words of whoever knows best."""
    return reason(error.__cause__ if isinstance(error, StoreOutage) and error.__cause__ else error)


def listed(lines: Sequence[str], total: int | None = None) -> tuple[str, ...]:
    """The first lines, and how many more there are (of `total`, if `lines` are not all of them)."""
    more = (len(lines) if total is None else total) - min(len(lines), DETAILS_MAX)
    return (*lines[:DETAILS_MAX], f"and {more:,} more") if more > 0 else tuple(lines)


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in few words: `0-3, 7, 9-63`."""
    parts: list[str] = []
    start = previous = None
    for number in [*sorted(numbers), None]:
        if start is None or previous is None:
            start = number
        elif number != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = number
        previous = number
    return ", ".join(parts)


def size(count: float) -> str:
    """Bytes for people: `812 B`, `4.1 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
