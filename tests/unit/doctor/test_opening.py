from pathlib import Path

import pytest
from sqlalchemy import text

from ramify.cli.doctor.findings import Level
from ramify.cli.doctor.leases import clock, skew
from ramify.cli.doctor.opening import opened, schema
from ramify.cli.doctor.subject import Subject
from tests.unit.doctor.defects import execute


async def test_a_store_that_is_there_opens(subject: Subject) -> None:
    finding, found = await opened(subject.database.url, deep=False)
    assert finding.level is Level.OK
    assert found is not None
    await found.database.close()
    assert "***" in finding.summary or ":" not in finding.summary.removeprefix("postgresql+psycopg://postgres@")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no store at"), (b"problems,answers\n", "is no SQLite file, or its beginning is overwritten")],
)
async def test_a_file_that_is_no_store(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "state.db"
    if content is not None:
        path.write_bytes(content)
    finding, found = await opened(f"sqlite+aiosqlite:///{path}", deep=False)
    assert (finding.level, found) == (Level.BAD, None)
    assert says in finding.summary
    assert finding.remedy
    assert path.exists() == (content is not None), "a look makes no file"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("state.db", "is no address of a store"),
        ("mysql://host/db", "is no store"),
        ("postgresql+psycopg://nobody:secret@127.0.0.1:1/none?connect_timeout=2", "can't be opened: "),
    ],
)
async def test_what_does_not_open_is_said_without_the_password(url: str, says: str) -> None:
    finding, found = await opened(url, deep=False)
    assert (finding.level, found) == (Level.BAD, None)
    assert says in finding.summary
    assert "secret" not in repr(finding)


async def test_an_empty_database_has_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch()
    _, found = await opened(f"sqlite+aiosqlite:///{path}", deep=False)
    assert found is not None
    finding = await schema(found)
    assert (finding.level, finding.summary) == (Level.BAD, "the database has no tables of Ramify")
    await found.database.close()


async def test_the_schema_of_this_version_an_older_one_and_a_newer_one(subject: Subject) -> None:
    assert (await schema(subject)).level is Level.OK
    await execute(subject.database, text("UPDATE alembic_version SET version_num = '9999'"))
    finding = await schema(subject)
    assert finding.level is Level.OK, "by the tables' own word this version can work with them"
    assert finding.summary.startswith("9999, of a newer version")
    await execute(subject.database, text("UPDATE compatibility SET readable_from = '9998'"))
    for revision, says in (("0001", "older version"), ("9999", "newer version")):
        await execute(subject.database, text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        finding = await schema(subject)
        assert finding.level is Level.BAD
        assert says in finding.summary
        assert finding.remedy


async def test_clocks(subject: Subject) -> None:
    assert (await clock(subject)).level is Level.OK
    assert skew(-0.9).level is Level.OK
    assert skew(1.5).summary == "this host's clock is 1.5 s ahead of the database's"
    assert skew(-90).summary == "this host's clock is 90.0 s behind the database's"
