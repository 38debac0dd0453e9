from collections.abc import Iterator

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier import errors
from ramify.verifier.chains import ChainError
from ramify.verifier.status import STATUS, error_from_call, status_code, status_from_error


def subclasses(error: type[errors.VerifierError]) -> Iterator[type[errors.VerifierError]]:
    for subclass in error.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


CONCRETE = sorted(
    # The operator's fault is told before there are calls.
    {error for error in subclasses(errors.VerifierError) if not error.__subclasses__() or error in STATUS}
    - {errors.StartupError},
    key=lambda error: error.__name__,
)


def failed_call(error: errors.VerifierError) -> AioRpcError:
    """What the client of a server that aborts with `error` gets."""
    status = status_from_error(error)
    return AioRpcError(status.code, Metadata(), Metadata(*(status.trailing_metadata or ())), status.details)


@pytest.mark.parametrize("error", CONCRETE)
def test_every_concrete_error_has_a_code(error: type[errors.VerifierError]) -> None:
    assert status_code(error) is not grpc.StatusCode.UNKNOWN


def test_no_code_has_two_errors() -> None:
    assert len(set(STATUS.values())) == len(STATUS)


@pytest.mark.parametrize("error", STATUS)
def test_errors_survive_the_wire(error: type[errors.VerifierError]) -> None:
    found = error_from_call(failed_call(error("what is wrong")))
    assert type(found) is error
    assert str(found) == "what is wrong"


def test_a_problem_error_is_an_invalid_argument() -> None:
    assert status_code(errors.ProblemError) is grpc.StatusCode.INVALID_ARGUMENT


def test_retry_delay_survives_the_wire() -> None:
    found = error_from_call(failed_call(errors.OverloadedError("full", 1250)))
    assert isinstance(found, errors.OverloadedError)
    assert found.retry_delay_ms == 1250


def test_overload_without_details_has_no_delay() -> None:
    found = error_from_call(AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), "too large"))
    assert isinstance(found, errors.OverloadedError)
    assert found.retry_delay_ms == 0


def test_other_codes_are_the_services_fault() -> None:
    found = error_from_call(AioRpcError(grpc.StatusCode.UNIMPLEMENTED, Metadata(), Metadata(), "no such method"))
    assert type(found) is errors.ServiceError
    assert str(found) == "UNIMPLEMENTED: no such method"


def test_chain_errors_are_the_protos() -> None:
    ours = {
        "CHAIN_ERROR_UNSPECIFIED" if error is ChainError.NONE else f"CHAIN_ERROR_{error.name}": error.value
        for error in ChainError
    }
    assert ours == dict(pb.ChainError.items())
