import grpc
import pytest

from ramify.client import InvalidRequest, ServerError, Unavailable
from ramify.client.connection import FIRST_PATIENCE_S, PAUSE_S, REFUSED_PAUSE_S_MAX, UNREACHED_PAUSE_S_MAX, Lifeline
from ramify.client.errors import client_error


class FailedCall(grpc.RpcError):
    """What gRPC raises, said by the transport or, with its trailer, by the gateway."""

    def __init__(self, code: grpc.StatusCode, details: str = "", *, by_gateway: bool = False) -> None:
        self._code = code
        self._details = details
        self._trailers = (("grpc-status-details-bin", b""),) if by_gateway else ()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]
        return self._trailers


NO_GATEWAY = "no gateway answers at here:1; start one with `ramify up`, or say where it is with --address or RAMIFY_ADDRESS"
REFUSED = FailedCall(grpc.StatusCode.UNAVAILABLE, "no database", by_gateway=True)
LOST = FailedCall(grpc.StatusCode.UNAVAILABLE, "Socket closed")


def test_a_stream_that_got_nowhere_is_taken_up_once_and_soon() -> None:
    lifeline = Lifeline("here:1", 30.0)
    lifeline.broken(LOST)
    assert lifeline.patience_s == FIRST_PATIENCE_S
    with pytest.raises(Unavailable):
        lifeline.broken(LOST)


def test_one_that_got_somewhere_is_worth_waiting_for() -> None:
    lifeline = Lifeline("here:1", 30.0)
    lifeline.progressed()
    lifeline.broken(LOST)
    assert lifeline.patience_s == 30.0
    assert Lifeline("here:1", 0.05).patience_s == 0.05


@pytest.mark.parametrize(("error", "most_s"), [(LOST, UNREACHED_PAUSE_S_MAX), (REFUSED, REFUSED_PAUSE_S_MAX)])
def test_it_is_tried_with_pauses_for_as_long_as_was_said(error: FailedCall, most_s: float) -> None:
    now_s = 100.0
    lifeline = Lifeline("here:1", 30.0, lambda: now_s)
    lifeline.progressed()
    pauses = []
    while now_s <= 130.0:
        lifeline.broken(error)
        pauses.append(lifeline.pause_s)
        now_s += lifeline.pause_s
    assert 0 < pauses[0] <= PAUSE_S
    assert most_s / 2 < max(pauses) <= most_s
    with pytest.raises(Unavailable):
        lifeline.broken(error)
    lifeline.progressed()
    assert lifeline.pause_s == 0
    lifeline.broken(error)


def test_a_gateway_that_never_served_is_not_waited_for() -> None:
    lifeline = Lifeline("here:1", 30.0)
    lifeline.broken(REFUSED)
    with pytest.raises(Unavailable, match="no database"):
        lifeline.broken(REFUSED)


def test_only_a_lost_connection_is_worth_another_try() -> None:
    lifeline = Lifeline("here:1", 30.0)
    lifeline.progressed()
    with pytest.raises(InvalidRequest, match="bad"):
        lifeline.broken(FailedCall(grpc.StatusCode.INVALID_ARGUMENT, "bad"))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FailedCall(grpc.StatusCode.UNAVAILABLE, "draining", by_gateway=True), Unavailable, "draining"),
        (
            FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
            Unavailable,
            "the gateway at here:1 is too slow to answer; try again, or look at its health",
        ),
        (
            FailedCall(grpc.StatusCode.INTERNAL, "store is gone", by_gateway=True),
            ServerError,
            "the gateway at here:1 failed: store is gone",
        ),
        (FailedCall(grpc.StatusCode.INTERNAL, "Internal error from Core"), Unavailable, NO_GATEWAY),
        (LOST, Unavailable, NO_GATEWAY),
        (FailedCall(grpc.StatusCode.UNIMPLEMENTED), ServerError, "the gateway at here:1 failed: no such call"),
        (FailedCall(grpc.StatusCode.UNKNOWN), ServerError, "the gateway at here:1 failed: UNKNOWN"),
        (FailedCall(grpc.StatusCode.INVALID_ARGUMENT), InvalidRequest, "INVALID_ARGUMENT"),
    ],
)
def test_messages(error: FailedCall, kind: type[Exception], message: str) -> None:
    translated = client_error(error, "here:1")
    assert type(translated) is kind
    assert str(translated) == message
