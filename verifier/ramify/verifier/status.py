"""Errors as gRPC statuses and back: one table, read by the server and, the other way round, by the client."""

from collections.abc import Mapping
from types import MappingProxyType

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from ramify.verifier import errors

STATUS: Mapping[type[errors.VerifierError], grpc.StatusCode] = MappingProxyType(
    {
        errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.UnknownModelError: grpc.StatusCode.NOT_FOUND,
        errors.RevisionError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
        errors.ModelError: grpc.StatusCode.INTERNAL,
    }
)
"""The code of each concrete error of a call. A subclass that is not here has its nearest base's code. No code occurs twice."""

_ERRORS = {code: error for error, code in STATUS.items()}


def status_code(error: type[errors.VerifierError]) -> grpc.StatusCode:
    """The code of an error class; UNKNOWN for one that neither it nor a base of it is in the table."""
    return next((STATUS[base] for base in error.__mro__ if base in STATUS), grpc.StatusCode.UNKNOWN)


def status_from_error(error: errors.VerifierError) -> grpc.Status:
    """The status that tells a caller of `error`: code, message and, where it is overload, `RetryInfo`."""
    code: int = status_code(type(error)).value[0]
    status = status_pb2.Status(code=code, message=str(error))
    if isinstance(error, errors.OverloadedError):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_delay_ms)
        status.details.add().Pack(retry)
    converted: grpc.Status = rpc_status.to_status(status)
    return converted


def error_from_call(failure: grpc.aio.AioRpcError) -> errors.VerifierError:
    """The error that the server meant; a status of no class of its own becomes a `ServiceError`."""
    code, details = failure.code(), failure.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.OverloadedError(details, _retry_delay_ms(failure))
    if code is grpc.StatusCode.CANCELLED:  # not by us: the server has stopped under the call
        return errors.UnavailableError(details or "the server has stopped")
    known = _ERRORS.get(code)
    return known(details) if known else errors.ServiceError(f"{code.name}: {details}")


def _retry_delay_ms(failure: grpc.aio.AioRpcError) -> int:
    for key, value in failure.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
            for detail in status.details:
                retry = error_details_pb2.RetryInfo()
                if status.code == code_pb2.RESOURCE_EXHAUSTED and detail.Unpack(retry):
                    return int(retry.retry_delay.ToMilliseconds())
    return 0
