import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import text

from ramify.cli.doctor import sqlite
from ramify.cli.doctor.command import patient, tell
from ramify.cli.doctor.findings import Finding, Level, listed, made, ranges
from ramify.cli.doctor.home import Home
from ramify.cli.doctor.running import Service
from ramify.client.errors import InvalidRequest
from ramify.store.database import Database
from ramify.store.jobs import Jobs, ModelRow
from ramify.store.schema import segments
from tests.unit.cli.conftest import Outcome, Ramify, ramify  # noqa: F401 - a fixture
from tests.unit.doctor.defects import a_job, execute, put_shard, spoil


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local system's folder with a store in which a job is under way."""
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path))
    monkeypatch.setenv("RAMIFY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(sqlite, "FREE_WARN", 0)  # the disk of a machine that tests is nobody's business

    async def fill() -> None:
        database = Database(Home(tmp_path).store_url)
        await database.migrate()
        await Jobs(database).put_models([ModelRow("generator", "tiny24", "1", "\n", "")])
        await a_job(database)
        await put_shard(database, "shard:0@2e", ends_in_s=3600)
        await database.close()

    asyncio.run(fill())
    return tmp_path


def change(home: Path, statement: str) -> None:
    async def run() -> None:
        database = Database(Home(home).store_url)
        await execute(database, text(statement))
        await database.close()

    asyncio.run(run())


def damage(home: Path) -> None:
    async def run() -> None:
        database = Database(Home(home).store_url)
        await spoil(database, segments.c.nodes, segments.c.segment_id == 1)
        await database.close()

    asyncio.run(run())


def test_all_is_well(home: Path, ramify: Ramify) -> None:  # noqa: F811
    outcome = ramify("doctor")
    path = home / "state.db"
    assert outcome.out.splitlines() == [
        f"all is well: 14 checks of {path}",
        "skipped  gateway          none answers at 127.0.0.1:1, and none has to",
    ]
    assert outcome.code == 0
    assert ramify("doctor", "--deep").out.startswith(f"all is well: 15 checks of {path}")


def test_what_is_wrong_why_it_matters_and_what_to_do(home: Path, ramify: Ramify) -> None:  # noqa: F811
    damage(home)
    outcome = ramify("doctor")
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("bad      segments         1 segment of 2 damaged"))
    assert lines[at + 1].startswith("         segment 1: its checksum is ")
    assert lines[at + 3].startswith("         why: steps in them are lost")
    assert lines[at + 4].startswith("         do: ")
    assert lines[-1] == f"1 bad in 14 checks of {home / 'state.db'}"
    assert any(line.startswith("ok       slots            all 64 are held") for line in lines)


def test_as_json_each_finding_is_a_line(home: Path, ramify: Ramify) -> None:  # noqa: F811
    damage(home)
    outcome = ramify("doctor", "--json")
    assert outcome.code == 1
    findings = [json.loads(line) for line in outcome.out.splitlines()]
    (bad,) = [finding for finding in findings if finding["level"] == "bad"]
    assert bad["name"] == "segments"
    assert set(bad) == {"name", "level", "summary", "details", "why", "remedy"}
    assert outcome.err == ""


def test_tables_of_another_version_are_not_looked_into(home: Path, ramify: Ramify) -> None:  # noqa: F811
    change(home, "UPDATE alembic_version SET version_num = '0001'")
    outcome = ramify("doctor")
    assert outcome.code == 1
    assert "other checks     can't be made on tables of another version" in outcome.out
    assert "`ramify up`" in outcome.out


def test_a_check_that_breaks_says_why_and_the_others_are_made(home: Path, ramify: Ramify) -> None:  # noqa: F811
    change(home, "DROP TABLE snapshots")
    outcome = ramify("doctor")
    assert outcome.code == 1
    assert "warn     snapshots        could not be checked: no such table: snapshots" in outcome.out
    assert "ok       archives" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_no_store_at_all(tmp_path: Path, ramify: Ramify, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("RAMIFY_ADDRESS", "127.0.0.1:1")
    outcome = ramify("doctor", "--home", tmp_path)
    assert outcome.code == 1
    assert f"there is no store at {tmp_path / 'state.db'}" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage(ramify: Ramify) -> None:  # noqa: F811
    outcome = ramify("doctor", "--address", "http://x")
    assert outcome.code == 2
    assert "an address is HOST:PORT" in outcome.err
    assert ramify("doctor", "--nope").code == 2


def test_what_is_named_alone_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAMIFY_ADDRESS", raising=False)
    usual = Service("127.0.0.1:8700", expected=False)
    local = patient(tmp_path, None, None, None, deep=False)
    assert (local.store_url, local.gateway, local.verifier) == (Home(tmp_path).store_url, usual, None)
    store = patient(None, "sqlite+aiosqlite:////x.db", None, "host:1", deep=True)
    assert (store.store_url, store.gateway, store.verifier) == (
        "sqlite+aiosqlite:////x.db",
        usual,
        Service("host:1", expected=True),
    )
    remote = patient(None, None, "host:2", None, deep=False)
    assert (remote.store_url, remote.gateway, remote.verifier) == ("", Service("host:2", expected=True), None)
    with pytest.raises(InvalidRequest):
        patient(None, None, "nothing", None, deep=False)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that has the arguments of a gateway and does nothing until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()", "-m", "ramify.gateway"], stdin=subprocess.PIPE) as process:
        yield process
        assert process.stdin is not None
        process.stdin.write(b"\n")


def test_a_home_tells_where_its_services_are(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    home = Home(tmp_path)
    assert not home.runs
    ready = tmp_path / "gateway.ready"
    ready.write_text(json.dumps({"address": "127.0.0.1:4", "pid": process.pid}))
    assert (home.gateway, home.verifier, home.runs) == ("127.0.0.1:4", "", True)
    for left in (json.dumps({"address": "127.0.0.1:4", "pid": os.getpid()}), "{}", "", "[]"):
        ready.write_text(left)
        assert not home.runs, "a file that a system has left behind"


async def test_a_check_that_lasts_too_long_is_given_up() -> None:
    finding = await made("x", asyncio.Event().wait(), 0.0)  # type: ignore[arg-type]
    assert (finding.level, finding.summary) == (Level.WARN, "could not be checked: it took longer than 0 s")


def test_long_lines_stand_below_their_beginning() -> None:
    out = io.StringIO()
    findings = [Finding("slots", Level.BAD, "a " * 40 + "end", ("detail " * 15,), why="because", remedy="do it")]
    tell(Console(file=out, width=80), findings, "x")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("bad      slots            a a a")
    assert lines[1].strip().endswith("end")
    assert lines[1].startswith(" " * 26)
    assert lines[2].startswith(" " * 9 + "detail")
    assert lines[3].startswith(" " * 9 + "detail")
    assert max(map(len, lines)) <= 80


def test_words() -> None:
    assert ranges([]) == ""
    assert ranges([3, 0, 1, 2, 7, 63, 62]) == "0-3, 7, 62-63"
    assert listed([str(number) for number in range(12)])[-1] == "and 2 more"
    assert listed(["a"], 5) == ("a", "and 4 more")
    assert listed(["a"]) == ("a",)


def test_a_store_on_postgresql(postgres_store: str, ramify: Ramify, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("RAMIFY_ADDRESS", "127.0.0.1:1")

    async def fill() -> None:
        database = Database(postgres_store)
        await database.migrate()
        await a_job(database)
        await database.close()

    asyncio.run(fill())
    outcome = ramify("doctor", "--store", postgres_store, "--deep", "--json")
    found = {finding["name"]: finding["level"] for finding in map(json.loads, outcome.out.splitlines())}
    assert {name for name, level in found.items() if level == "ok"} >= {
        "store", "schema", "isolation", "connections", "notices", "transactions", "clock", "waits", "progress", "segments",
        "snapshots", "archives", "upkeep", "counters",
    }  # fmt: skip
    assert found["server"] == "bad", "the tests' server is made to be fast"
    assert outcome.code == 1
