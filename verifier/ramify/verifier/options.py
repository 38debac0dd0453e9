"""Options of a command line, `NAME=WHERE?option=value&...`, as dataclasses."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ramify.verifier.errors import StartupError

P = TypeVar("P")


def names_of(kind: type[Any]) -> list[str]:
    """The options that a dataclass has."""
    return [field.name for field in fields(kind)]


def read_options(whose: str, kind: type[P], given: Mapping[str, Any]) -> P:
    """Options as a dataclass; texts become numbers.

    Args:
        whose: For messages.
        kind: The dataclass.
        given: The options by name.

    Raises:
        StartupError: an option or its value is unknown.
    """
    for name in given:
        if name not in names_of(kind):
            raise StartupError(unknown(whose, name, names_of(kind)))
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg'].lower()}" for each in error.errors()]
        raise StartupError(f"{whose}: {'; '.join(told)}") from error


def unknown(whose: str, name: str, known: Iterable[str]) -> str:
    """What to say of an option that is not there."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    there = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}" if known else "it has none"
    return f"{whose} has no option {name}; {there}"
