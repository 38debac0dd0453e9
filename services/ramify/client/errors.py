"""What can go wrong for a client, and the one table from gRPC's status codes to it."""

import contextlib
from collections.abc import Iterator
from types import MappingProxyType
from typing import cast

import grpc


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
    """The gateway is there and takes no more now, or a quota is used up. Repeat later."""


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
        details = (
            f"no gateway answers at {address}; start one with `ramify up`, or say where it is with --address or RAMIFY_ADDRESS"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and not said_by_gateway(error):
        details = f"the gateway at {address} is too slow to answer; try again, or look at its health"
    elif code is grpc.StatusCode.UNIMPLEMENTED and not details:
        details = "no such call"
    kind = ERROR_OF_STATUS[code]
    if kind is ServerError:
        details = f"the gateway at {address} failed: {details or code.name}"
    return kind(details or code.name)


def said_by_gateway(error: grpc.RpcError) -> bool:
    """Whether a call failed for what the gateway has answered; else the transport has failed."""
    # Pairs, whatever the type stubs hold them for.
    trailers = cast("tuple[tuple[str, str | bytes], ...]", tuple(error.trailing_metadata() or ()))
    return any(key == _STATUS_DETAILS_KEY for key, _ in trailers)


@contextlib.contextmanager
def translated(address: str) -> Iterator[None]:
    """Raises gRPC's errors as ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise client_error(error, address) from error
