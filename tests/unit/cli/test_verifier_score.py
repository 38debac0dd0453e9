"""`ramify verifier score` in this process, with the simulated model, rules, and servers that misbehave."""

import asyncio
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ramify.cli.verifier import scoring
from ramify.cli.verifier.desk import Desk, Opening, Source, named, there
from ramify.cli.verifier.interrupts import Interrupts
from ramify.cli.verifier.scoring import Scoring
from ramify.verifier.backends.base import Scorer
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.columns import ChainColumns, ColumnScores
from ramify.verifier.errors import OverloadedError, RevisionError, UnavailableError
from ramify.verifier.server import VerifierServer
from tests.unit.cli.conftest import Ramify
from tests.unit.verifier.fakes import PATIENCE_S, FakeScorer

GOOD = "10-4=6:5 6 6\n5*6=30:6 30\n30-6=24:24"
POOR = "10-4=6:5 6 6\n5+6=11:6 11\n6+11=17:17"
RAMIFY = [sys.executable, "-c", "from ramify.cli.main import main; main()"]


def write(path: Path, *records: object) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "solutions.jsonl",
        {"id": 1, "problem": "4 5 6 10", "solution": POOR},
        {"id": 2, "problem": "4 5 6 10", "solution": GOOD, "score": 7, "message": "of an earlier run"},
        {"id": 3, "problem": "4 5 six", "solution": GOOD},
        "nope",
        {"id": 4, "problem": "3 3 8 8", "steps": ["8/3=8|3:8|3 3 8"]},
        {"id": 5, "problem": "4 5 6 10", "solution": GOOD},
    )


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_comes_back_in_order(ramify: Ramify, file: Path) -> None:
    code, out, err = ramify("verifier", "score", file, "--rule", "countdown", "--delimiter", r"\n")
    assert code == 1
    expected = (
        "'4 5 six' is no puzzle: 'six' is not a number; write 2 to 6 positive whole numbers, e.g. '4 5 6 10' or '4 5 6 10>24'"
    )
    assert records(out) == [
        {"id": 1, "problem": "4 5 6 10", "solution": POOR, "scores": [1.0, 1.0, 0.0], "score": 0.0},
        {"id": 2, "problem": "4 5 6 10", "solution": GOOD, "scores": [1.0, 1.0, 1.0], "score": 1.0},
        {"id": 3, "problem": "4 5 six", "solution": GOOD, "error": "invalid", "message": expected, "line": 3},
        {"error": "line", "message": "is not JSON: Expecting value at column 1", "line": 4},
        {"id": 4, "problem": "3 3 8 8", "steps": ["8/3=8|3:8|3 3 8"], "scores": [0.0], "score": 0.0},
        {"id": 5, "problem": "4 5 6 10", "solution": GOOD, "scores": [1.0, 1.0, 1.0], "score": 1.0},
    ]
    *faults, summary = err.splitlines()
    assert faults == [f"line 3: {expected}", "line 4: is not JSON: Expecting value at column 1"]
    assert summary.startswith("5 chains · 13 steps · 2 errors (1 invalid, 1 line) · ")
    assert summary.endswith(" · countdown 1")


def test_the_best_of_each_problem(ramify: Ramify, file: Path, tmp_path: Path) -> None:
    output = tmp_path / "best.jsonl"
    code, out, _ = ramify("verifier", "score", file, "--rule", "countdown", "--delimiter", r"\n", "--best", "-o", output)
    assert (code, out) == (1, "")
    assert [(each["id"], each.get("score")) for each in records(output.read_text())] == [(2, 1.0), (3, None), (4, 0.0)]


def test_all_is_well(ramify: Ramify, tmp_path: Path) -> None:
    file = write(tmp_path / "file", {"problem": "p", "solution": "a\n\nb"})
    code, out, err = ramify("verifier", "score", file, "--model", "sim=simulated")
    (record,) = records(out)
    assert code == 0
    assert len(record["scores"]) == 2
    assert record["score"] == record["scores"][-1]
    assert err.startswith("1 chain · 2 steps · ")


def test_a_delimiter_that_occurs_nowhere_is_told(ramify: Ramify, tmp_path: Path) -> None:
    file = write(tmp_path / "file", {"problem": "p", "solution": "a\nb"})
    hint = "every solution was one step: if that is wrong, say with --delimiter what ends one\n"
    assert hint in ramify("verifier", "score", file, "--model", "simulated").err
    for sure in (r"\n", ""):
        assert hint not in ramify("verifier", "score", file, "--model", "simulated", "--delimiter", sure).err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing says what is to score them: give one of --model, --rule, --address"),
        (["--rule", "math", "--model", "m"], "--model and --rule are given: give one of --model, --rule, --address"),
        (["--rule", "math", "--name", "m"], "--name and --tls are about a verifier that runs: say which with --address"),
        (["--rule", "chess"], "no rule 'chess'; there is countdown, math"),
        (["--model", "nowhere"], "there is no folder 'nowhere'"),
        (["--model", "simulated?speed=3"], "simulated has no option speed"),
        (["--rule", "countdown", "--aggregate", "median"], "'--aggregate'"),
        (["--rule", "countdown", "-o", "/nowhere/file"], "--output /nowhere/file: No such file or directory"),
        (["--address", "127.0.0.1:1", "--tls-ca", "/nowhere/ca"], "/nowhere/ca"),
        (["--address", "127.0.0.1:1", "--tls-cert", "/nowhere/cert"], "belong together"),
    ],
)
def test_wrong_usage(ramify: Ramify, file: Path, options: list[str], message: str) -> None:
    code, out, err = ramify("verifier", "score", file, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) <= 2


def test_wrong_files(ramify: Ramify, tmp_path: Path, file: Path) -> None:
    assert ramify("verifier", "score", tmp_path / "none", "--rule", "math").err.endswith("none: No such file or directory\n")
    assert ramify("verifier", "score", tmp_path, "--rule", "math") == (2, "", f"ramify: {tmp_path}: Is a directory\n")
    empty = write(tmp_path / "empty")
    assert ramify("verifier", "score", empty, "--rule", "math").err == f"ramify: {empty} is empty; each line is one solution\n"
    before = file.read_text()
    code, _, err = ramify("verifier", "score", file, "--rule", "math", "-o", file)
    assert (code, file.read_text()) == (2, before)
    assert "is the file that is read; write to another" in err


def test_standard_input(ramify: Ramify, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert len(records(ramify("verifier", "score", "-", "--rule", "countdown").out)) == 6


def test_what_nobody_scores_comes_back_whatever_it_is(ramify: Ramify, tmp_path: Path) -> None:
    file = write(
        tmp_path / "file", r'{"problem": "p", "solution": "s", "big": 123456789012345678901, "half": "\ud800", "š": [null]}'
    )
    (record,) = records(ramify("verifier", "score", file, "--model", "simulated").out)
    assert (record["big"], record["half"], record["š"]) == (123456789012345678901, "\ud800", [None])


@pytest.mark.parametrize(
    ("model", "name"),
    [("a/b/prm", "prm=a/b/prm"), ("a/prm?backend=onnx", "prm=a/prm?backend=onnx"), ("m=a/b?c=d", "m=a/b?c=d"), ("/", "model=/")],
)
def test_a_model_without_a_name_has_that_of_its_folder(model: str, name: str) -> None:
    assert named(model) == name


class Served:
    """A server and the client's end of it, in one event loop; the server can go away for a while."""

    def __init__(self, make: Callable[[], Scorer]) -> None:
        self._make = make
        self._address = "127.0.0.1:0"
        self._server: VerifierServer  # made in the loop in which it runs

    async def start(self) -> None:
        self._server = VerifierServer()
        self._address = await self._server.start(self._address)
        await self._server.serve([self._make()])

    @asynccontextmanager
    async def opened(self, away_at: int = -1) -> AsyncIterator[Source]:
        """The source; at that call the server goes, and comes back while it is waited for."""
        await self.start()
        calls = itertools.count()
        try:
            async with there(self._address, "", None) as source:

                async def score(chains: ChainColumns) -> ColumnScores:
                    if next(calls) == away_at:
                        await self._server.stop(drain_s=0)
                        asking = asyncio.ensure_future(source.score(chains))
                        await asyncio.wait([asking], timeout=0.2)
                        assert not asking.done()
                        await self.start()
                        return await asking
                    return await source.score(chains)

                yield source._replace(score=score)
        finally:
            await self._server.stop(drain_s=0)


def scored(lines: list[object], opening: Opening, aggregate: str = "last") -> list[dict[str, Any]]:
    source, out = io.BytesIO("\n".join(map(json.dumps, lines)).encode()), io.BytesIO()
    with Interrupts() as interrupts, Desk(opening) as desk:
        assert Scoring(desk, "\n\n", aggregate, best=False).run(source, out, interrupts)
    return records(out.getvalue().decode())


@pytest.mark.parametrize(("aggregate", "score"), [("last", 0.5), ("min", 0.25), ("mean", 0.5833333), ("prod", 0.125)])
def test_what_the_scores_come_to(aggregate: str, score: float) -> None:
    lines: list[object] = [{"problem": "p", "steps": ["x" * 1024, "x" * 256, "x" * 512]}]
    (found,) = scored(lines, Served(FakeScorer).opened(), aggregate)
    assert found["scores"] == [1.0, 0.25, 0.5]
    assert found["score"] == pytest.approx(score, abs=1e-7)


def test_a_verifier_that_comes_back_costs_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_LINES", 2)
    lines: list[object] = [{"problem": f"p{at}", "steps": ["a", "b" * at]} for at in range(40)]
    calm = scored(lines, Served(lambda: SimulatedScorer("sim")).opened())
    assert [line["problem"] for line in calm] == [f"p{at}" for at in range(40)]
    assert scored(lines, Served(lambda: SimulatedScorer("sim")).opened(away_at=7)) == calm


def test_another_revision_is_no_part_of_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_LINES", 2)
    models = itertools.count()

    def other() -> Scorer:
        scorer = SimulatedScorer("sim")
        scorer.revision = str(next(models))
        return scorer

    lines: list[object] = [{"problem": f"p{at}", "steps": ["a"]} for at in range(40)]
    with pytest.raises(RevisionError, match="is of revision 1 here, not 0"):
        scored(lines, Served(other).opened(away_at=7))


def test_a_batch_on_which_the_model_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_LINES", 2)
    lines: list[object] = [{"problem": each, "steps": ["x" * 512]} for each in ("a", "b", "c", "fail", "d")]
    found = scored(lines, Served(FakeScorer).opened())
    assert [each.get("score") for each in found[:2]] == [0.5, 0.5]
    assert {each.get("error") for each in found[2:4]} == {"model"}
    assert "the fake was told to" in found[2]["message"]


def test_nobody_at_the_address(ramify: Ramify, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramify.cli.verifier.desk.GREETING_MS", 200)
    code, out, err = ramify("verifier", "score", file, "--address", "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.startswith("ramify: no verifier answers at 127.0.0.1:1: ")


async def test_an_overloaded_verifier_is_asked_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    refusals = iter([OverloadedError("full", 1), *[UnavailableError("away")] * 3, OverloadedError("full", 1)])

    async def score_columns(self: object, model: str, chains: ChainColumns, **options: Any) -> ColumnScores:
        if refusal := next(refusals, None):
            raise refusal
        return ColumnScores(chains.length.astype("f4"), [])

    monkeypatch.setattr("ramify.cli.verifier.desk.VerifierClient.score_columns", score_columns)
    server = VerifierServer()
    address = await server.start("127.0.0.1:0")
    try:
        await server.serve([SimulatedScorer("sim")])
        async with there(address, "sim", None) as source:
            assert isinstance(source, Source)
            assert (await source.score(ChainColumns.of([]))).faults == []
    finally:
        await server.stop(drain_s=0)
    assert next(refusals, None) is None
    assert [line for line in caplog.messages if "waiting" in line] == ["waiting for the verifier: away"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_lines(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out.jsonl"
    command = [*RAMIFY, "verifier", "score", "-", "--rule", "countdown", "--delimiter", r"\n", "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        line = json.dumps({"problem": "4 5 6 10", "solution": GOOD}).encode() + b"\n"
        while not (out.exists() and out.stat().st_size):
            process.stdin.write(line * 100)
            process.stdin.flush()
        process.send_signal(number)
        said = process.stderr.read().decode()
        assert process.wait(PATIENCE_S) == 130
        with pytest.raises(BrokenPipeError):  # what it has not read
            os.write(process.stdin.fileno(), line * 10_000)
    assert said.startswith("stopped: ")
    assert len(said.splitlines()) == 1
    text = out.read_text()
    assert text.endswith("\n")
    assert {each["score"] for each in records(text)} == {1.0}


def test_what_is_held_is_not_cut_short() -> None:
    with Interrupts() as interrupts:
        done = []
        with pytest.raises(KeyboardInterrupt), interrupts.held():  # noqa: PT012 - what comes after the signal is the point
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")
        assert done
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_serve_takes_the_options_of_the_verifier(ramify: Ramify) -> None:
    code, out, _ = ramify("verifier", "serve", "--help")
    assert code == 0
    assert out.startswith("usage: ramify verifier serve [-h] [--model NAME=FOLDER]")
    assert "countdown, math" in out
    assert ramify("verifier", "serve").err.startswith("ramify.verifier: nothing to serve")
    assert ramify("verifier", "serve", "--listen").code == 2
    code, _, err = ramify("verifier", "serve", "--rule", "chess", "--listen", "127.0.0.1:0")
    assert (code, "no rule 'chess'; there is countdown, math" in err) == (2, True)
