"""What can go wrong for a client, and the one table from gRPC's status codes to it."""

import contextlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2


class ClientError(Exception):
    """Base of every error that a client raises; the message is for people."""


class InvalidRequest(ClientError):
    """The caller's fault: the message says what is wrong and what to do. Repeating the call changes nothing."""


class NotFound(ClientError):
    """No such job or problem."""


class AlreadyExists(ClientError):
    """The request_id names a job with another spec or other problems."""


class PermissionDenied(ClientError):
    """The gateway doesn't know the caller, or the caller may not do this."""


class Unavailable(ClientError):
    """No answer: nobody listens, the connection broke, or the deadline passed. The call is safe to repeat."""


class Overloaded(ClientError):
    """The gateway is there and takes no more now. Repeat later."""


class QuotaExceeded(Overloaded):
    """The tenant has used up what it may have."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        #: Until there is room again; None: once something of the tenant's ends.
        self.retry_after_s = retry_after_s


class ServerError(ClientError):
    """The gateway's fault."""


#: Every status code. OK is there because an RpcError that says OK is a broken server.
ERROR_OF_STATUS = MappingProxyType[grpc.StatusCode, type[ClientError]](
    {
        grpc.StatusCode.OK: ServerError,
        grpc.StatusCode.CANCELLED: Unavailable,
        grpc.StatusCode.UNKNOWN: ServerError,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
        grpc.StatusCode.NOT_FOUND: NotFound,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
        grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
        grpc.StatusCode.ABORTED: Unavailable,
        grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
        grpc.StatusCode.UNIMPLEMENTED: ServerError,
        grpc.StatusCode.INTERNAL: ServerError,
        grpc.StatusCode.UNAVAILABLE: Unavailable,
        grpc.StatusCode.DATA_LOSS: ServerError,
        grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    }
)

#: The trailer of a google.rpc.Status: a status that has it was said by the gateway and not made up by the transport.
_STATUS_DETAILS_KEY = "grpc-status-details-bin"

#: What grpc.aio says of a message that it could not send because the connection broke.
_BROKEN_WRITE = "Internal error from Core"

#: What the transport says of a connection on which the two sides don't agree.
_TLS_FAULTS = MappingProxyType(
    {
        "CERTIFICATE_VERIFY_FAILED": "its certificate is of no authority that is trusted here",
        "is not in peer certificate": "its certificate is another name's",
        "WRONG_VERSION_NUMBER": "it speaks no TLS",
        "failed to connect to all addresses; last error: UNAVAILABLE": "it hangs up at once, as one does that wants TLS, or a "
        "client's certificate",
    }
)


def status_code(error: grpc.RpcError) -> grpc.StatusCode:
    """Why a call failed."""
    lost = error.code() is grpc.StatusCode.INTERNAL and error.details() == _BROKEN_WRITE
    return grpc.StatusCode.UNAVAILABLE if lost else error.code()


def client_error(error: grpc.RpcError, address: str) -> ClientError:
    """The error to raise for a failed call to the gateway at `address`."""
    code = status_code(error)
    details = error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and not said_by_gateway(error):
        # The transport's own words ("failed to connect to all addresses; last error: ...") help nobody.
        fault = next((words for sign, words in _TLS_FAULTS.items() if sign in details), None)
        details = (
            f"no gateway answers at {address}; start one with `ramify up`, or say where it is with --address or RAMIFY_ADDRESS"
            if fault is None
            else f"no connection with the gateway at {address}: {fault}; see RAMIFY_TLS_CA, and for mTLS RAMIFY_TLS_CERT"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and not said_by_gateway(error):
        details = f"the gateway at {address} is too slow to answer; try again, or look at its health"
    elif code is grpc.StatusCode.UNIMPLEMENTED and not details:
        details = "no such call"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (told := _status(error)) is not None:
        kinds = {detail.TypeName(): detail for detail in told.details}
        if error_details_pb2.QuotaFailure.DESCRIPTOR.full_name in kinds:
            retry, found = error_details_pb2.RetryInfo(), kinds.get(error_details_pb2.RetryInfo.DESCRIPTOR.full_name)
            known = found is not None and found.Unpack(retry)
            return QuotaExceeded(details, retry.retry_delay.ToTimedelta().total_seconds() if known else None)
    kind = ERROR_OF_STATUS[code]
    if kind is ServerError:
        details = f"the gateway at {address} failed: {details or code.name}"
    return kind(details or code.name)


def said_by_gateway(error: grpc.RpcError) -> bool:
    """Whether a call failed for what the gateway has answered; else the transport has failed."""
    return _status(error) is not None


def _status(error: grpc.RpcError) -> status_pb2.Status | None:
    """All that the gateway has said of a failure."""
    # Pairs, whatever the type stubs hold them for.
    trailers = cast("tuple[tuple[str, str | bytes], ...]", tuple(error.trailing_metadata() or ()))
    bodies = [value for key, value in trailers if key == _STATUS_DETAILS_KEY]
    return status_pb2.Status.FromString(bodies[0]) if bodies and isinstance(bodies[0], bytes) else None


@contextlib.contextmanager
def translated(address: str) -> Iterator[None]:
    """Raises gRPC's errors as ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise client_error(error, address) from error
