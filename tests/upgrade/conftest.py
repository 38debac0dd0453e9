import pytest

from tests.conftest import STORES


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of a store of each kind that has no tables yet: here each test says which ones it gets."""
    return str(request.getfixturevalue(f"bare_{STORES[request.param]}"))
