"""Messages as JSON objects that are pleasant in `jq`."""

import math
import struct
from collections.abc import Iterable
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ramify.client.spec import word

Record = dict[str, object]


def as_record(message: Message) -> Record:
    """All of a message's fields by their names in the proto.

    Enums are their words (`running`; unspecified is null), counters are numbers, ids of nodes are 16 hex digits since
    JSON numbers don't hold 64 bits, times are ISO 8601, and what is absent or no finite number is null.
    """
    descriptor = cast(Descriptor, message.DESCRIPTOR)  # the stubs waver between two implementations of one interface
    return {field.name: _value(message, field) for field in descriptor.fields}


def _value(message: Message, field: FieldDescriptor) -> object:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if field.is_repeated:
        items: Iterable[object] = value
        return [_scalar(item, field) for item in items]
    return _scalar(value, field)


def _scalar(value: object, field: FieldDescriptor) -> object:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return as_record(value)
    if field.enum_type is not None:
        assert isinstance(value, int)
        return word(field.enum_type, value) or None
    if field.type == FieldDescriptor.TYPE_FIXED64:
        return f"{value:016x}"
    return _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float | None:
    """The shortest decimal that is the same 32-bit float; null for what JSON can't say."""
    if not math.isfinite(value):
        return None
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == struct.pack("f", value):
            return short
    return float(f"{value:.9g}")
