"""Systems on SQLite and PostgreSQL for tests that break them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.runs import Outcome, running
from tests.faults.system import System
from tests.postgres import Postgres

LONG_LEASE_MS = 300_000  # longer than any job here


@dataclasses.dataclass(slots=True)
class Place:
    """A store, and a system on it; a test that ends everything starts another one."""

    home: Path
    store_url: str
    server: Postgres | None  # None: it is SQLite
    system: System
    steps: int  # of the job
    expected: Outcome

    def start(self, **options: Any) -> System:
        """Start a system anew, where the one before was; `options` are of `Setup`."""
        self.system = System(self.home, self.store_url, listen=self.system.address, **options)
        return self.system


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A system on a store of the kind `request.param`, and what the job comes to on it that nothing disturbs.

    At the end nothing of it is left.
    """
    before = {process.pid for process in psutil.Process().children()}
    home = tmp_path_factory.mktemp("faults")
    server = Postgres() if request.param == "postgresql" else None
    if server is not None:
        server.start()
    store_url = server.url if server is not None else f"sqlite+aiosqlite:///{home / 'state.db'}"
    system = System(home, store_url)
    system.until_well()
    with running(system, 1) as run:
        expected = run.end()
    run.report("none")
    assert run.paid_again == 0
    found = Place(home, store_url, server, system, run.steps, expected)
    yield found
    found.system.stop()
    if server is not None:
        server.stop("immediate")
        server.__exit__(None, None, None)
    assert {process.pid for process in psutil.Process().children()} <= before


@pytest.fixture
def patient(place: Place) -> System:
    """A system whose leases outlast whatever stands still on a busy machine: who takes slots over has not waited for them."""
    if place.system.setup.lease_ms != LONG_LEASE_MS:
        place.system.stop()
        place.start(lease_ms=LONG_LEASE_MS)
    place.system.until_well()
    return place.system


@pytest.fixture
def system(place: Place) -> System:
    """The system, in good health."""
    place.system.until_well()
    return place.system
