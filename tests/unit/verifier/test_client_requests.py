import pytest

from ramify.verifier import client
from ramify.verifier.chains import Chain
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import InvalidRequestError
from ramify.verifier.messages import REQUEST_CHAINS_MAX, columns_of


def test_requests_keep_order_and_the_servers_limit() -> None:
    chains = [Chain(str(index), ("a\n", "b"), "r") for index in range(2 * REQUEST_CHAINS_MAX + 1)]
    parts = client._requests("m", chains)
    assert all(part.model == "m" and len(part.chains) <= REQUEST_CHAINS_MAX for part in parts)
    found = [Chain(each.problem, tuple(each.steps), each.reference) for part in parts for each in part.chains]
    assert found == chains


def test_large_chains_are_spread_over_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REQUEST_BYTES_MAX", 1000)
    parts = client._requests("m", [Chain("p" * 300, ("a",))] * 10)
    assert sum(len(part.chains) for part in parts) == 10
    assert all(part.ByteSize() <= 1000 for part in parts)
    with pytest.raises(InvalidRequestError, match="one chain has 1"):
        client._requests("m", [Chain("p" * 1000, ("a",))])


def test_no_chains_are_one_request() -> None:
    assert len(client._requests("m", [])) == 1


def test_column_requests_keep_order_and_the_servers_limit() -> None:
    chains = [Chain(str(index), ("a\n", "b")[: 1 + index % 2], str(index)) for index in range(2 * REQUEST_CHAINS_MAX + 1)]
    parts = client._column_requests("m", ChainColumns.of(chains), "r", True)
    assert all((part.model, part.revision, part.last_only) == ("m", "r", True) for _, part in parts)
    found = [columns_of(part).chains() for _, part in parts]
    assert [start for start, _ in parts] == [sum(map(len, found[:index])) for index in range(len(found))]
    assert [chain for each in found for chain in each] == chains


def test_large_columns_are_spread_over_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REQUEST_BYTES_MAX", 1000)
    parts = client._column_requests("m", ChainColumns.of([Chain("p" * 300, ("a",))] * 10), "", False)
    assert sum(len(columns_of(part)) for _, part in parts) == 10
    assert all(part.ByteSize() <= 1000 for _, part in parts)
    with pytest.raises(InvalidRequestError, match="one chain has 1"):
        client._column_requests("m", ChainColumns.of([Chain("p" * 1000, ("a",))]), "", False)


def test_no_columns_are_one_request() -> None:
    assert len(client._column_requests("m", ChainColumns.of([]), "", False)) == 1
