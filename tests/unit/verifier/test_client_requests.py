import pytest

from ramify.verifier import client
from ramify.verifier.chains import Chain
from ramify.verifier.errors import InvalidRequestError


def test_requests_keep_order_and_the_servers_limit() -> None:
    chains = [Chain(str(index), ("a\n", "b"), "r") for index in range(2 * client.REQUEST_CHAINS_MAX + 1)]
    parts = client._requests("m", chains)
    assert all(part.model == "m" and len(part.chains) <= client.REQUEST_CHAINS_MAX for part in parts)
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
