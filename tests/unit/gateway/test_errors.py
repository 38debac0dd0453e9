import grpc
import pytest
from google.rpc import status_pb2
from sqlalchemy.exc import OperationalError

from ramify.gateway import errors as gateway_errors
from ramify.gateway.errors import STATUS, GatewayError, InvalidRequest, status_of
from ramify.store import errors as store_errors
from ramify.store.errors import DiskFull, StoreError, StoreUnavailable


def classes(module: object, base: type[Exception]) -> set[type[Exception]]:
    return {each for each in vars(module).values() if isinstance(each, type) and issubclass(each, base)}


def test_every_error_has_a_status() -> None:
    ours = classes(gateway_errors, GatewayError) | classes(store_errors, StoreError)
    assert ours <= STATUS.keys()
    assert all(code is not grpc.StatusCode.OK for code in STATUS.values())


@pytest.mark.parametrize("module", [gateway_errors, store_errors])
def test_every_error_has_the_package_s_base(module: object) -> None:
    base = GatewayError if module is gateway_errors else StoreError
    raised = {each for each in classes(module, Exception) if each.__module__ == getattr(module, "__name__", None)}
    assert all(issubclass(each, base) for each in raised)


class Stranger(InvalidRequest):
    """Not in the table."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidRequest("n is 0"), grpc.StatusCode.INVALID_ARGUMENT, "n is 0"),
        (Stranger("n is 0"), grpc.StatusCode.INVALID_ARGUMENT, "n is 0"),
        (StoreError("x"), grpc.StatusCode.INTERNAL, "x"),
        (StoreUnavailable("down"), grpc.StatusCode.UNAVAILABLE, "down"),
        (DiskFull("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL, "the gateway failed at this call; its log says more"),
        (
            OperationalError("SELECT secret", {}, Exception("disk full")),
            grpc.StatusCode.UNAVAILABLE,
            "the store does not answer: try again; the gateway's log says more",
        ),
    ],
)
def test_what_a_caller_is_told(error: Exception, code: grpc.StatusCode, message: str) -> None:
    status = status_of(error)
    assert (status.code, status.details) == (code, message)
    ((_, body),) = status.trailing_metadata
    assert isinstance(body, bytes)
    assert status_pb2.Status.FromString(body).message == message
