"""The proto's messages as columns and back, within the limits of a request."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.chains import ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import InvalidRequestError

REQUEST_CHAINS_MAX = 4_096
CHAIN_STEPS_MAX = 512


class ScoreRequest(Protocol):
    """What `ScoreRequest` and `ScoreStreamRequest` have in common."""

    @property
    def model(self) -> str:
        """Which model."""
        ...

    @property
    def chains(self) -> Sequence[pb.Chain]:
        """What to score."""
        ...


def chains_of(request: ScoreRequest) -> ChainColumns:
    """The chains of a request.

    Raises:
        InvalidRequestError: there are more of them, or of steps, than a request may have.
    """
    _check_count(len(request.chains))
    for index, chain in enumerate(request.chains):
        _check_steps(index, len(chain.steps))
    return ChainColumns.of(request.chains)


def scores_message(found: ColumnScores, chains: ChainColumns) -> list[pb.ChainScores]:
    """The scores of a request's chains, a message for each."""
    return [_chain_scores(each) for each in found.chains(chains)]


def columns_of(request: pb.ScoreColumnsRequest) -> ChainColumns:
    """The chains of a request that has them as columns already; the text is not copied again.

    Raises:
        InvalidRequestError: the columns do not fit each other, or there is more than a request may have.
    """
    length = _numbers("length", request.length)
    _check_count(len(length))
    longest = int(length.argmax()) if len(length) else 0
    if len(length):
        _check_steps(longest, int(length[longest]))
    return ChainColumns(
        np.frombuffer(request.text, np.uint8), _numbers("text_count", request.text_count), length, request.references
    )


def columns_request(model: str, chains: ChainColumns, *, revision: str, last_only: bool) -> pb.ScoreColumnsRequest:
    """The request to score some chains; see the proto."""
    return pb.ScoreColumnsRequest(
        model=model,
        revision=revision,
        text=chains.text.tobytes(),
        text_count=chains.text_count.astype("<i4", copy=False).tobytes(),
        length=chains.length.astype("<i4", copy=False).tobytes(),
        references=chains.references,
        last_only=last_only,
    )


def columns_response(found: ColumnScores, chains: ChainColumns, *, revision: str, last_only: bool) -> pb.ScoreColumnsResponse:
    """The answer to a request that had columns."""
    scores = found.last(chains) if last_only else found.scores
    faults = [
        pb.ChainFault(chain=fault.chain, error=fault.error.value, message=fault.message)  # type: ignore[arg-type]
        for fault in found.faults
    ]
    return pb.ScoreColumnsResponse(scores=scores.astype("<f4", copy=False).tobytes(), faults=faults, revision=revision)


def scores_of(response: pb.ScoreColumnsResponse) -> ColumnScores:
    """What an answer holds; one score for each step, or for each chain if so it was asked."""
    faults = [ChainFault(fault.chain, ChainError(fault.error), fault.message) for fault in response.faults]
    return ColumnScores(np.frombuffer(response.scores, "<f4").astype(np.float32, copy=False), faults)


def _numbers(name: str, data: bytes) -> NDArray[np.int32]:
    if len(data) % 4:
        raise InvalidRequestError(f"{name} has {len(data)} bytes; it must hold numbers of four bytes each")
    return np.frombuffer(data, "<i4").astype(np.int32, copy=False)


def _check_count(chains: int) -> None:
    if chains > REQUEST_CHAINS_MAX:
        raise InvalidRequestError(f"the request has {chains} chains, more than {REQUEST_CHAINS_MAX}")


def _check_steps(index: int, steps: int) -> None:
    if steps > CHAIN_STEPS_MAX:
        raise InvalidRequestError(f"chain {index} has {steps} steps, more than {CHAIN_STEPS_MAX}")


def _chain_scores(chain: ChainScores) -> pb.ChainScores:
    if chain.error:
        return pb.ChainScores(error=chain.error.value, message=chain.message)  # type: ignore[arg-type]
    return pb.ChainScores(scores=chain.scores)
