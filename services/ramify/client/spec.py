"""Job specs from plain values.

The knobs are read off the proto's descriptors, so that a knob that is new there is known here, with its type and,
for enums, its words.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypedDict

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from ramify.client.errors import InvalidRequest
from ramify.v1 import job_pb2

#: The policy of a spec made here when none is named.
DEFAULT_POLICY = "beam"


class SpecFields(TypedDict, total=False):
    """What a job spec can say, flat; meanings, units and defaults are in job.proto."""

    name: str
    generator: str
    generators: Mapping[str, float] | Sequence[str]
    verifier: str
    verifiers: Mapping[str, float] | Sequence[str | Mapping[str, object]]
    checker: str
    priority: int
    policy: str
    n: int
    keep: int
    branch: int
    max_steps: int
    max_step_tokens: int
    temperature: float
    top_p: float
    step: str | int
    finished: Literal["compete", "retire", "refill"]
    aggregate: Literal["last", "min", "mean", "prod"]
    answer: Literal["best", "vote", "weighted_vote"]
    duplicates: Literal["drop", "keep"]
    seed: int
    siblings: Literal["spread", "independent"]
    threshold: float
    iterations: int
    parallel: int
    barrier: Literal["level", "none"]
    speculate: int
    stop_score: float
    cut: Literal["discard", "answer"]
    extract: Literal["last_line", "boxed", "pattern"]
    pattern: str
    compare: str
    tolerance: float
    stop: Literal["never", "beta", "margin"]
    confidence: float
    margin: float
    lookahead: int
    balance: float
    exploration: float
    resample: Literal["systematic", "multinomial"]
    ess: float
    belief: Literal["gaussian", "beta"]
    tokens_max: int
    tokens_per_problem_max: int
    seconds_max: int
    steps_max: int
    steps_per_problem_max: int
    system: str
    prompt_template: str
    chat: Literal["auto", "always", "never"]
    step_prompt: str
    thoughts_end: str
    regions: Sequence[str]
    price_weight: float
    delay_weight: float
    carbon_weight: float


#: The knobs of a search, in the proto's order.
SEARCH_KNOBS = MappingProxyType(dict(job_pb2.Search.DESCRIPTOR.fields_by_name))

_JOB_FIELDS = {
    field.name: field
    for field in job_pb2.JobSpec.DESCRIPTOR.fields
    if field.message_type is None  # search, budget, prompt and routing are messages: their fields stand for themselves
}
_BUDGET_FIELDS = dict(job_pb2.Budget.DESCRIPTOR.fields_by_name)
_PROMPT_FIELDS = {
    {"template": "prompt_template", "step": "step_prompt"}.get(name, name): field
    for name, field in job_pb2.Prompt.DESCRIPTOR.fields_by_name.items()
}
_VERIFIER_FIELDS = dict(job_pb2.Verifier.DESCRIPTOR.fields_by_name)
_ROUTING_FIELDS = dict(job_pb2.Routing.DESCRIPTOR.fields_by_name)

_WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def job_spec(**fields: object) -> job_pb2.JobSpec:
    """A spec from the fields of `SpecFields`; numbers may be given as text.

    `step` is "answer", a number of tokens, or the delimiter that ends a step; `generators` are names, or weights by name, and
    so are `verifiers`, of which each may also be a mapping of the fields of `Verifier` in job.proto.

    Raises:
        InvalidRequest: a field is unknown, or its value isn't one that it can have.
    """
    spec = job_pb2.JobSpec()
    spec.search.policy = DEFAULT_POLICY
    for name, value in fields.items():
        if name in SEARCH_KNOBS:
            _set(spec.search, SEARCH_KNOBS[name], value)
        elif name in _JOB_FIELDS:
            _set(spec, _JOB_FIELDS[name], value)
        elif name in _BUDGET_FIELDS:
            _set(spec.budget, _BUDGET_FIELDS[name], value)
        elif name in _PROMPT_FIELDS:
            _set(spec.prompt, _PROMPT_FIELDS[name], value)
        elif name == "generators":
            spec.generators.extend(_generators(value))
        elif name == "verifiers":
            spec.verifiers.extend(_verifiers(value))
        elif name in _ROUTING_FIELDS:
            _set(spec.routing, _ROUTING_FIELDS[name], value)
        else:
            raise unknown_knob(
                name,
                [*SEARCH_KNOBS, *_JOB_FIELDS, "generators", "verifiers", *_BUDGET_FIELDS, *_PROMPT_FIELDS, *_ROUTING_FIELDS],
            )
    return spec


def unknown_knob(name: str, known: list[str]) -> InvalidRequest:
    """The error for a knob that isn't there: names the nearest one, and all."""
    nearest = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {nearest[0]}?" if nearest else ";"
    return InvalidRequest(f"there is no knob {name}{guess} there are {', '.join(known)}")


def word(enum: EnumDescriptor, number: int) -> str:
    """The word for an enum's value: `running` for JOB_STATE_RUNNING; empty for unspecified."""
    return "" if number == 0 else _words(enum).get(number, str(number))


def _words(enum: EnumDescriptor) -> dict[int, str]:
    """The words of an enum by number, without the unspecified one; the prefix is what all names share."""
    prefix_length = len(enum.values_by_number[0].name) - len("UNSPECIFIED")
    return {value.number: value.name[prefix_length:].lower() for value in enum.values if value.number}


def _set(message: Message, field: FieldDescriptor, value: object) -> None:
    if field is _ROUTING_FIELDS["regions"]:
        getattr(message, field.name).extend(_texts(field.name, value))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_step(value))
    elif field.enum_type is not None:
        setattr(message, field.name, _enum(field, value))
    elif field.cpp_type in _WHOLE:
        setattr(message, field.name, _whole_number(field.name, value, *_WHOLE[field.cpp_type]))
    elif field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        setattr(message, field.name, _number(field.name, value))
    elif isinstance(value, str):
        setattr(message, field.name, value)
    else:
        raise _unexpected(field.name, "text", value)


def _texts(name: str, value: object) -> list[str]:
    if isinstance(value, str):
        return [each.strip() for each in value.split(",")]
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise _unexpected(name, "names, with commas between them", value)
    return [*value]


def _step(value: object) -> job_pb2.StepBoundary:
    if isinstance(value, job_pb2.StepBoundary):
        return value
    if value == "answer":
        return job_pb2.StepBoundary(answer=True)
    if isinstance(value, str) and value and not value.strip().lstrip("+-").isdecimal():
        return job_pb2.StepBoundary(delimiter=value)
    if isinstance(value, (str, int)) and value:
        tokens = _whole_number("step", value, *_WHOLE[FieldDescriptor.CPPTYPE_UINT32])
        return job_pb2.StepBoundary(tokens=tokens)
    raise _unexpected("step", "answer, a number of tokens, or the delimiter that ends a step", value)


def _generators(value: object) -> list[job_pb2.Generator]:
    if isinstance(value, Mapping):
        return [job_pb2.Generator(model=str(name), weight=_number(f"the weight of {name}", each)) for name, each in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value):
        return [job_pb2.Generator(model=each) for each in value]
    raise _unexpected("generators", "names of models, or weights by name", value)


def _verifiers(value: object) -> list[job_pb2.Verifier]:
    if isinstance(value, Mapping):
        value = [{"model": str(name), "weight": weight} for name, weight in value.items()]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _unexpected("verifiers", "names of models, weights by name, or mappings of what is said of each", value)
    return [_verifier(each) for each in value]


def _verifier(value: object) -> job_pb2.Verifier:
    if isinstance(value, str):
        return job_pb2.Verifier(model=value)
    if not isinstance(value, Mapping):
        raise _unexpected("one of the verifiers", f"a name, or a mapping of {', '.join(_VERIFIER_FIELDS)}", value)
    found = job_pb2.Verifier()
    for name, each in value.items():
        if name not in _VERIFIER_FIELDS:
            raise _unexpected("what is said of a verifier", f"one of {', '.join(_VERIFIER_FIELDS)}", name)
        _set(found, _VERIFIER_FIELDS[name], each)
    return found


def _enum(field: FieldDescriptor, value: object) -> int:
    assert field.enum_type is not None
    numbers = {text: number for number, text in _words(field.enum_type).items()}
    if not isinstance(value, str) or value not in numbers:
        raise _unexpected(field.name, f"one of {', '.join(numbers)}", value)
    return numbers[value]


def _whole_number(name: str, value: object, least: int, largest: int) -> int:
    expected = f"a whole number from {least:,} to {largest:,}"
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _unexpected(name, expected, value)
    try:
        number = int(value)
    except ValueError:
        raise _unexpected(name, expected, value) from None
    if not least <= number <= largest:
        raise _unexpected(name, expected, value)
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise _unexpected(name, "a number", value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _unexpected(name, "a number", value) from None
    if not math.isfinite(number):
        raise _unexpected(name, "a finite number", value)
    return number


def _unexpected(name: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(f"{name} is {expected}, not {value!r:.60}")
