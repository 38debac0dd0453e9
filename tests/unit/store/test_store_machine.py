"""Hypothesis drives every kind of store beside a model; see `machine`."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from ramify.store.database import Database
from ramify.store.schema import metadata, slots
from tests.simulation.memory_kind import MemoryKind
from tests.unit.store.helpers import FILLED
from tests.unit.store.machine import StoreMachine
from tests.unit.store.stores import MEMORY, SqlStore, Store

EXAMPLES = settings(
    max_examples=15,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


async def emptied(database: Database) -> Store:
    async with database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            if table is not slots:
                await connection.execute(table.delete())
        await connection.execute(slots.update().values(epoch=0, owner="", expires_ms=0, load=0, floor=0, former=""))
    return SqlStore(database)


def test_leases_and_segments(store_place: str, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """One valid holder of each slot; a fenced writer never writes; what is recovered is what was committed; counters add up."""
    if store_place == MEMORY:
        run(runner, lambda: MemoryKind(FILLED))
        return
    database = Database(store_place)
    # The slots of a job's trees follow from its id: so that an example that fails does so again.
    monkeypatch.setattr("ramify.store.submissions.secrets.token_hex", lambda _: "the-job")
    runner.run(database.migrate())
    try:
        run(runner, lambda: runner.run(emptied(database)))
    finally:
        runner.run(database.close())


def run(runner: asyncio.Runner, fresh: Callable[[], Store]) -> None:
    machine = type("Machine", (StoreMachine,), {"fresh": lambda _: fresh(), "runner": runner})
    run_state_machine_as_test(machine, settings=EXAMPLES)
