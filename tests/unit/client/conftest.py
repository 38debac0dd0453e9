from collections.abc import Iterator

import pytest

from ramify.client import Client
from tests.unit.client.fake_gateway import FakeGateway


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as fake:
        yield fake


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client(gateway.address) as connected:
        yield connected
