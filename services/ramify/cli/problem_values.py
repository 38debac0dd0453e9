"""The text of a value of a problem file."""

import json
import math
from decimal import Decimal

#: Bytes that one line or one value may have.
LINE_BYTES_MAX = 1 << 20


class Number(str):
    """A number of a JSON file as it was written there, so that 1.10 stays 1.10 and 64 bits are no limit."""

    __slots__ = ()


def parse_json(line: str) -> object:
    """A JSON value whose numbers are `Number`s.

    Raises:
        ValueError: it is none; json.JSONDecodeError where the place of the fault is known.
    """
    try:
        return json.loads(line.rstrip("\r\n"), parse_int=Number, parse_float=Number, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("the brackets are nested too deep") from None


def as_text(value: object) -> str:
    """Text as it is, numbers as text, a list of numbers joined by spaces, empty for null.

    Raises:
        ValueError: the value is something else; the message says what, and what to do.
    """
    if value is None:
        return ""
    if isinstance(value, str) or _is_number(value):
        text = str(value)
    elif isinstance(value, list) and value and all(_is_number(item) for item in value):
        text = " ".join(str(item) for item in value)
    else:
        raise ValueError(f"is {_kind(value)}; it must be text, a number, or a list of numbers")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair; correct the \\u escape") from None
    if size > LINE_BYTES_MAX:
        raise ValueError(f"has {size:,} bytes; at most {LINE_BYTES_MAX:,} are read")
    return text


def _no_number(constant: str) -> object:
    raise ValueError(f"{constant} is no number there")


def _is_number(value: object) -> bool:
    if isinstance(value, (float, Decimal)):
        return math.isfinite(value)
    return isinstance(value, (Number, int)) and not isinstance(value, bool)


def _kind(value: object) -> str:
    if isinstance(value, (bool, float, Decimal)):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list of other things than numbers" if value else "an empty list"
    return f"a {type(value).__name__}"
