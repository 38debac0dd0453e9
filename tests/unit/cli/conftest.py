from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ramify.cli.main import run
from tests.unit.client.fake_gateway import FakeGateway


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


#: Runs one command line in this process.
Ramify = Callable[..., Outcome]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGateway]:
    with FakeGateway(finish_at_once=True) as fake:
        monkeypatch.setenv("RAMIFY_ADDRESS", fake.address)
        yield fake


@pytest.fixture
def ramify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ramify:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("RAMIFY_DEBUG", raising=False)

    def call(*arguments: str | Path) -> Outcome:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def puzzles(tmp_path: Path) -> Path:
    """Three problems."""
    path = tmp_path / "puzzles.jsonl"
    path.write_text("".join(f'{{"id": "p{i}", "puzzle": [4, 5, 6, {i}]}}\n' for i in (10, 11, 12)))
    return path
