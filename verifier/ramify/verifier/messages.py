"""The proto's messages as columns and back, within the limits of a request."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ramify.v1 import verifier_service_pb2 as pb
from ramify.verifier.chains import ChainError, ChainScores
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import InvalidRequestError
from ramify.verifier.names import NAME_BYTES, NO_NAME
from ramify.verifier.sent import Answers, SentChains

REQUEST_CHAINS_MAX = 4_096


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

    @property
    def priority(self) -> int:
        """Whose is the lower number is scored first."""
        ...

    @property
    def names(self) -> bool:
        """Whether the chains' names are wanted."""
        ...


def chains_of(request: ScoreRequest) -> SentChains:
    """The chains of a request.

    Raises:
        InvalidRequestError: there are more of them than a request may have, or they don't hold together.
    """
    _check_count(len(request.chains))
    for index, chain in enumerate(request.chains):
        if len(chain.prefix) not in (0, NAME_BYTES):
            raise InvalidRequestError(
                f"the prefix of chain {index} has {len(chain.prefix)} bytes; a chain's name has {NAME_BYTES}"
            )
    prefixes = [chain.prefix for chain in request.chains]
    return SentChains(ChainColumns.of(request.chains), prefixes if any(prefixes) else ())


def scores_message(found: Answers) -> list[pb.ChainScores]:
    """The scores of a request's chains, a message for each."""
    names = found.names or [b""] * len(found.length)
    return [_chain_scores(each, name) for each, name in zip(found.chains(), names, strict=True)]


def columns_of(request: pb.ScoreColumnsRequest) -> SentChains:
    """The chains of a request that has them as columns already; the text is not copied again.

    Raises:
        InvalidRequestError: the columns do not fit each other, or there is more than a request may have.
    """
    length = _numbers("length", request.length)
    _check_count(len(length))
    chains = ChainColumns(
        np.frombuffer(request.text, np.uint8), _numbers("text_count", request.text_count), length, request.references
    )
    return SentChains(chains, names_of(request.prefix))


class Wish(NamedTuple):
    """What is asked of chains, see the proto."""

    revision: str = ""
    last_only: bool = False
    priority: int = 0
    names: bool = False


def columns_request(model: str, sent: SentChains, wish: Wish) -> pb.ScoreColumnsRequest:
    """The request to score some chains; see the proto."""
    chains = sent.chains
    return pb.ScoreColumnsRequest(
        model=model,
        text=chains.text.tobytes(),
        text_count=chains.text_count.astype("<i4", copy=False).tobytes(),
        length=chains.length.astype("<i4", copy=False).tobytes(),
        references=chains.references,
        prefix=b"".join(prefix or NO_NAME for prefix in sent.prefixes),
        **wish._asdict(),
    )


def columns_response(found: Answers, *, revision: str, last_only: bool) -> pb.ScoreColumnsResponse:
    """The answer to a request that had columns."""
    scores = found.last() if last_only else found.scores
    faults = [
        pb.ChainFault(chain=fault.chain, error=fault.error.value, message=fault.message)  # type: ignore[arg-type]
        for fault in found.faults
    ]
    names = b"".join([name or NO_NAME for name in found.names])
    return pb.ScoreColumnsResponse(
        scores=scores.astype("<f4", copy=False).tobytes(), faults=faults, revision=revision, names=names
    )


def scores_of(response: pb.ScoreColumnsResponse) -> ColumnScores:
    """What an answer holds; one score for each step, or for each chain if so it was asked."""
    faults = [ChainFault(fault.chain, ChainError(fault.error), fault.message) for fault in response.faults]
    return ColumnScores(np.frombuffer(response.scores, "<f4").astype(np.float32, copy=False), faults)


def names_of(data: bytes) -> list[bytes]:
    """The names of some chains; empty for those that have none.

    Raises:
        InvalidRequestError: they are no names.
    """
    if len(data) % NAME_BYTES:
        raise InvalidRequestError(f"prefix has {len(data)} bytes; it must hold names of {NAME_BYTES} bytes each")
    names = [data[at : at + NAME_BYTES] for at in range(0, len(data), NAME_BYTES)]
    return [b"" if name == NO_NAME else name for name in names]


def _numbers(name: str, data: bytes) -> NDArray[np.int32]:
    if len(data) % 4:
        raise InvalidRequestError(f"{name} has {len(data)} bytes; it must hold numbers of four bytes each")
    return np.frombuffer(data, "<i4").astype(np.int32, copy=False)


def _check_count(chains: int) -> None:
    if chains > REQUEST_CHAINS_MAX:
        raise InvalidRequestError(f"the request has {chains} chains, more than {REQUEST_CHAINS_MAX}")


def _chain_scores(chain: ChainScores, name: bytes) -> pb.ChainScores:
    if chain.error:
        return pb.ChainScores(error=chain.error.value, message=chain.message)  # type: ignore[arg-type]
    return pb.ChainScores(scores=chain.scores, name=name)
