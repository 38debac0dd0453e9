from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ramify.cli.doctor import sqlite
from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.subject import Subject
from ramify.store.database import Database
from tests.unit.doctor.defects import a_job, deep

PAGE = 4096


@pytest.fixture
async def subject(sqlite_store: str) -> AsyncIterator[Subject]:
    database = Database(sqlite_store)
    await database.migrate()
    await a_job(database)
    yield Subject(database)
    await database.close()


async def test_a_file_that_is_sound(subject: Subject) -> None:
    assert (await sqlite.file_is_sound(subject)).level is Level.OK
    assert (await sqlite.file_is_sound(deep(subject))).level is Level.OK
    space = await sqlite.space(subject)
    assert "the store has" in space.summary + str(space.details)


async def test_pages_that_are_overwritten(subject: Subject) -> None:
    path = subject.path
    assert path is not None
    await subject.database.close()  # writes the log back into the file
    body = bytearray(path.read_bytes())
    for page in range(2, len(body) // PAGE, 3):
        body[page * PAGE : page * PAGE + 64] = b"\xff" * 64
    path.write_bytes(body)
    finding = await sqlite.file_is_sound(subject)
    assert (finding.level, finding.summary) == (Level.BAD, f"SQLite finds {path} damaged")
    assert finding.details
    assert ".recover" in finding.remedy


async def test_rows_that_refer_to_nothing(subject: Subject) -> None:
    async with subject.database.write() as connection:
        await connection.execute(text("COMMIT"))
        await connection.execute(text("PRAGMA foreign_keys=OFF"))
        await connection.execute(text("BEGIN IMMEDIATE"))
        await connection.execute(text("DELETE FROM jobs"))
    finding = await sqlite.file_is_sound(deep(subject))
    assert finding.level is Level.BAD
    assert "refers to one of jobs that is not there" in finding.details[0]


@pytest.mark.parametrize(("free", "level"), [(0, Level.BAD), (500 << 20, Level.WARN), (5 << 30, Level.OK)])
def test_space(free: int, level: Level) -> None:
    assert sqlite.space_found(Path("/var/lib/ramify"), free, stored=1 << 20, log=0).level is level


def test_a_log_that_has_grown() -> None:
    finding = sqlite.space_found(Path("/var/lib/ramify"), 100 << 30, stored=1 << 20, log=2 << 30)
    assert (finding.level, finding.summary) == (Level.WARN, "the write-ahead log has grown to 2.0 GiB")
