"""vLLM's engine arguments as users write them: for engines that sample with vLLM, and for the verifier, which reads with it."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]


class VllmOptionError(Exception):
    """An option that vLLM has not, that is not for the user to set, or whose value is wrong. The message is for people."""


def engine_options(options: Mapping[str, Any], *, reserved: Mapping[str, str], others: Iterable[str] = ()) -> dict[str, Any]:
    """Options as values of the types that `AsyncEngineArgs` has for them; a text becomes one, JSON where that is no text.

    Args:
        options: by vLLM's names.
        reserved: those that can't be set, and why.
        others: names of what else the user may say, for hints.

    Raises:
        VllmOptionError: names the first that is wrong.
    """
    known = {field.name: field.type for field in fields(AsyncEngineArgs)}
    for name in options:
        if name in reserved:
            raise VllmOptionError(f"{name} can't be set: {reserved[name]}")
        if name not in known:
            close = difflib.get_close_matches(name, [*(known.keys() - reserved.keys()), *others], 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise VllmOptionError(f"there is no option {name}, neither of vLLM's engine nor of Ramify's{hint}")
    return {name: _value(name, known[name], value) for name, value in options.items()}


def _value(name: str, kind: Any, value: Any) -> Any:
    """A text as a value of a field's type; what is no text is taken as it is."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticUserError, NameError, TypeError):  # a dataclass has its own configuration, some types can't be checked
        return _unchecked(name, kind, parsed)
    for candidate in (value, parsed):
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            failure = error
    raise VllmOptionError(f"{name}={value}: {'; '.join(each['msg'] for each in failure.errors())}")


def _unchecked(name: str, kind: Any, parsed: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(parsed)
    except ValidationError as error:
        raise VllmOptionError(f"{name}: {'; '.join(each['msg'] for each in error.errors())}") from error
    except (PydanticUserError, NameError, TypeError):
        return parsed  # vLLM will check it
