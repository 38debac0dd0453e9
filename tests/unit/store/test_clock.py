from ramify.store.clock import db_now_ms, now_ms
from ramify.store.database import Database

APART_MS = 60_000  # of two clocks of one machine, however busy it is


async def test_the_store_s_clock_goes_on_within_a_transaction(database: Database) -> None:
    async with database.write() as connection:
        first = await db_now_ms(connection)
        assert abs(first - now_ms()) < APART_MS
        before, later = first, await db_now_ms(connection)
        for _ in range(100_000):
            if later != first:
                break
            before, later = later, await db_now_ms(connection)
            assert later >= before
    assert later > first
