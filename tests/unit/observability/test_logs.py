"""Logs as text and as JSON lines, of processes as they are started."""

import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import logging
from ramify import logs

logs.configure(shard="3")
log = logging.getLogger("ramify.some")
log.info("it begins")
with logs.about(job="of the task", tenant="acme"):
    log.warning("engine %s is away: %s", "é:0", "gone", extra={"job": "its own", "tree": "7"})
try:
    raise ValueError("no")
except ValueError:
    log.exception("it failed")
"""


def said(program: str = PROGRAM, **environment: str) -> list[str]:
    """What a process logs."""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stderr.splitlines()


def test_json_lines_have_fields_for_what_they_are_about() -> None:
    lines: list[Any] = [json.loads(line) for line in said(RAMIFY_LOG_FORMAT="json", PYTHONUTF8="1")]
    first, second, third = lines
    assert {**first, "time": ""} == {"time": "", "level": "INFO", "logger": "ramify.some", "message": "it begins", "shard": "3"}
    assert first["time"].endswith("+00:00")
    assert second["message"] == "engine é:0 is away: gone"
    assert [second.get(name) for name in ("job", "tree", "tenant", "shard", "level")] == ["its own", "7", "acme", "3", "WARNING"]
    assert third["exception"].endswith("ValueError: no")
    assert "job" not in third, "the task's fields end with it"


def test_text_is_as_it_was_and_the_level_is_given() -> None:
    lines = said(RAMIFY_LOG_LEVEL="WARNING", PYTHONUTF8="1")
    assert lines[0].split(" ", 2)[2] == "WARNING ramify.some: engine é:0 is away: gone"


def test_a_setting_that_nobody_knows_is_told_and_stops_nobody() -> None:
    lines = said(RAMIFY_LOG_FORMAT="yaml", RAMIFY_LOG_LEVEL="LOUD", PYTHONUTF8="1")
    assert lines[0].endswith("RAMIFY_LOG_FORMAT is 'yaml', none of text, json: it is as if it were not set")
    assert lines[1].endswith("RAMIFY_LOG_LEVEL is 'LOUD', none of DEBUG, INFO, WARNING, ERROR: it is as if it were not set")
    assert lines[2].endswith("INFO ramify.some: it begins")


@pytest.mark.parametrize("module", ["ramify.gateway", "ramify.verifier"])
def test_services_log_json_when_told_to(module: str, tmp_path: Any) -> None:
    options = ["--log-format", "json", "--listen", "127.0.0.1:0", "--exit-with-stdin"]
    options += ["--store", f"sqlite+aiosqlite:///{tmp_path}/state.db"] if module == "ramify.gateway" else ["--rule", "countdown"]
    found = subprocess.run(
        [sys.executable, "-m", module, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    lines: list[Any] = [json.loads(line) for line in found.stderr.splitlines()]
    assert lines[-1]["logger"] == module
    assert lines[-1]["message"].startswith("stopping")
