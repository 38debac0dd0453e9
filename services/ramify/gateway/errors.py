"""Errors of the gateway, and the one table from errors to gRPC status."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from sqlalchemy.exc import SQLAlchemyError

from ramify.store.errors import (
    CannotOpen,
    Conflict,
    Contention,
    Damaged,
    DiskFull,
    Fenced,
    InvalidName,
    JobNotFound,
    KeyNotFound,
    ProblemNotFound,
    QuotaExceeded,
    QuotaTooSmall,
    StoreBusy,
    StoreError,
    StoreOutage,
    StoreUnavailable,
    UploadEnded,
    UploadError,
)


class GatewayError(Exception):
    """Base of every error that the gateway raises."""


class InvalidRequest(GatewayError):
    """The caller's fault; the message says what is wrong, where, and what to do."""


class NotReady(GatewayError):
    """The system has no model yet: it is starting, or `ramify up` does not run."""


class TooManyCalls(GatewayError):
    """More open calls of a kind than the gateway bears."""


class TooManyKeys(GatewayError):
    """More keys that nobody here has seen wait to be looked up than the gateway bears."""


class Unauthenticated(GatewayError):
    """The gateway doesn't know the caller: it has no key, or none that is good."""


class Forbidden(GatewayError):
    """The caller is known and may not do this."""


class SlowReader(GatewayError):
    """The client does not read what it has asked for."""


class UploadIdle(GatewayError):
    """An upload has brought nothing for too long."""


class Stopping(GatewayError):
    """The gateway stops; another one, or the next one, goes on."""


class CannotListen(GatewayError):
    """The address can't be had; the operator's fault."""


MESSAGE_MAX = 1000  # characters: it travels as metadata, twice, which clients bound

STATUS: Mapping[type[Exception], grpc.StatusCode] = MappingProxyType(
    {
        InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
        UploadError: grpc.StatusCode.INVALID_ARGUMENT,
        JobNotFound: grpc.StatusCode.NOT_FOUND,
        ProblemNotFound: grpc.StatusCode.NOT_FOUND,
        Conflict: grpc.StatusCode.ALREADY_EXISTS,
        UploadEnded: grpc.StatusCode.ABORTED,
        NotReady: grpc.StatusCode.UNAVAILABLE,
        UploadIdle: grpc.StatusCode.UNAVAILABLE,  # which clients answer by taking the upload up again
        Stopping: grpc.StatusCode.UNAVAILABLE,
        Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
        Forbidden: grpc.StatusCode.PERMISSION_DENIED,
        SlowReader: grpc.StatusCode.UNAVAILABLE,  # likewise: it goes on where it was
        QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
        QuotaTooSmall: grpc.StatusCode.FAILED_PRECONDITION,  # another time is no better, but another bound is
        TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
        TooManyKeys: grpc.StatusCode.UNAVAILABLE,  # by which clients try again: a good key is known from then on
        # Clients try again by themselves what is UNAVAILABLE; a full disk waits for somebody.
        StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
        StoreBusy: grpc.StatusCode.UNAVAILABLE,
        Contention: grpc.StatusCode.UNAVAILABLE,
        DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
        StoreOutage: grpc.StatusCode.UNAVAILABLE,
        SQLAlchemyError: grpc.StatusCode.UNAVAILABLE,  # what the database fails with otherwise
        # These have no caller: a gateway holds no slots, makes no keys, and does not serve before it listens.
        Fenced: grpc.StatusCode.INTERNAL,
        Damaged: grpc.StatusCode.DATA_LOSS,  # readers tell it beside what is whole
        CannotListen: grpc.StatusCode.INTERNAL,
        CannotOpen: grpc.StatusCode.INTERNAL,
        InvalidName: grpc.StatusCode.INTERNAL,
        KeyNotFound: grpc.StatusCode.INTERNAL,
        GatewayError: grpc.StatusCode.INTERNAL,
        StoreError: grpc.StatusCode.INTERNAL,
    }
)
"""Every error. One that is not here, a subclass of ours or a stranger, has its nearest base's status, or INTERNAL."""


def status_of(error: Exception) -> grpc.Status:
    """The status, as code, message and google.rpc.Status, that tells a caller of an error."""
    code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), grpc.StatusCode.INTERNAL)
    number: int = code.value[0]
    message = _message(error)
    body = status_pb2.Status(code=number, message=message if len(message) <= MESSAGE_MAX else f"{message[:MESSAGE_MAX]} ...")
    for detail in _details(error, body.message):
        body.details.add().Pack(detail)
    status: grpc.Status = rpc_status.to_status(body)
    return status


def _details(error: Exception, message: str) -> Iterator[Message]:
    """What programs are told beside the message."""
    if isinstance(error, QuotaExceeded):
        violation = error_details_pb2.QuotaFailure.Violation(subject=f"tenant:{error.tenant}", description=message)
        yield error_details_pb2.QuotaFailure(violations=[violation])
        if error.retry_s is not None:
            yield error_details_pb2.RetryInfo(retry_delay=Duration(seconds=math.ceil(error.retry_s)))


def _message(error: Exception) -> str:
    if isinstance(error, GatewayError | StoreError):
        return str(error)
    # Others' messages hold statements and addresses that are no caller's business.
    if isinstance(error, SQLAlchemyError):
        return "the store does not answer: try again; the gateway's log says more"
    return "the gateway failed at this call; its log says more"
