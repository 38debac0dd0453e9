r"""Comparison: which answers say the same, by the rules that are cheap and safe enough for the core.

Equality within a tolerance is not transitive: 1.0 may equal 1.1 and 1.1 equal 1.2 while 1.0 doesn't equal 1.2. So answers are not
divided into classes but go, in a given order, each to the first group whose representative (its first answer) they equal. For a
rule that is transitive these groups are its classes.
"""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

CompareRule = Literal["exact", "number"]
Same = Callable[[str, str], bool]

NO_ANSWER = -1
NUMBER_CHARS_MAX = 64  # also keeps every number, and the quotient of any two, in the range of a float

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_POWER = r"(?:e|\s*(?:\*|x|×|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+−]?)\s*(?:"
    rf"(?:(?P<whole>{_DIGITS})\s+)?(?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})"
    rf"|(?P<decimal>{_DECIMAL})(?:{_POWER}(?P<brace>\{{)?(?P<power>[-+−]?\d{{1,2}})(?(brace)\}}))?"
    rf")(?P<percent>\s*\\?%)?",
    re.ASCII | re.IGNORECASE,
)


def plain(text: str) -> str:
    """`text` as `exact` compares it: no white space around it, one space for each run of white space in it, and else untouched.

    Letters keep their case and their Unicode form.
    """
    return " ".join(text.split())


def exact(a: str, b: str) -> bool:
    """Whether two answers are the same text, but for white space; see `plain`."""
    return plain(a) == plain(b)


def number(text: str) -> Fraction | None:
    r"""The number that `text` says, exactly; None: it says none, or takes more than `NUMBER_CHARS_MAX` characters for it.

    A number is, after a sign or none, an integer or a decimal, `12`, `12.5`, `.5`, `1,234.5`, also with a power of ten, `1.2e-5`,
    `1.2 \times 10^{-5}`; or a quotient of two of the former, `1/2`; or a mixed number, `1 1/2`. A percent sign divides by 100.
    Commas are accepted between thousands only.
    """
    text = text.strip()
    found = _NUMBER.fullmatch(text) if len(text) <= NUMBER_CHARS_MAX else None
    if found is None:
        return None
    if found["over"]:
        under = _decimal(found["under"])
        if not under:
            return None
        value = _decimal(found["whole"] or "0") + _decimal(found["over"]) / under
    else:
        value = _decimal(found["decimal"]) * Fraction(10) ** int((found["power"] or "0").replace("−", "-"))
    if found["percent"]:
        value /= 100
    return value if found["sign"] in ("", "+") else -value


def numbers(tolerance: float) -> Same:
    """Compares answers as numbers; where one of two is none, they are compared by `exact`.

    Args:
        tolerance: at least 0; two numbers are the same if they are equal (exactly: 33.3% is 0.333, and no digit of a long integer
            is lost), or, where this isn't 0, if `math.isclose` says so with it as both the relative and the absolute tolerance.

    Returns:
        A comparison that remembers what it has read: for one use, not to be kept.
    """
    known: dict[Fraction | str, int] = {}
    read: dict[str, tuple[int, float]] = {}

    def value(text: str) -> tuple[int, float]:
        found = number(text)
        name = known.setdefault(plain(text) if found is None else found, len(known))
        read[text] = name, math.nan if found is None else float(found)
        return read[text]

    def same(a: str, b: str) -> bool:
        (name_a, near_a), (name_b, near_b) = read.get(a) or value(a), read.get(b) or value(b)
        if name_a == name_b or not tolerance:
            return name_a == name_b
        return math.isclose(near_a, near_b, rel_tol=tolerance, abs_tol=tolerance)

    return same


def same_by(rule: CompareRule, tolerance: float) -> Same:
    """The comparison of a rule; `tolerance` is for numbers. For one use, see `numbers`."""
    return exact if rule == "exact" else numbers(tolerance)


def groups(answers: Sequence[str], same: Same) -> list[int]:
    """Divide answers into groups: each joins the first whose representative it equals, or begins one.

    Args:
        answers: R, in the order in which they are to be grouped; empty: no answer.
        same: asked as `same(representative, answer)`, and only of texts that differ.

    Returns:
        R numbers of groups, from 0 in the order in which groups began; `NO_ANSWER` for those that are empty.
    """
    key: Callable[[str], str] = plain if same is exact else str
    found: dict[str, int] = {"": NO_ANSWER}
    heads: list[str] = []
    for answer in map(key, answers):
        if answer not in found:
            # Two keys of `exact` that differ are different answers, so there is nothing to ask.
            asked = () if same is exact else enumerate(heads)
            group = next((group for group, head in asked if same(head, answer)), len(heads))
            if group == len(heads):
                heads.append(answer)
            found[answer] = group
    return [found[answer] for answer in map(key, answers)]


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
