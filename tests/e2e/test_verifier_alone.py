"""The verifier without a system: `ramify verifier serve` and `ramify verifier score` as a user starts them."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import MODELS, RAMIFY, STOP_S, ramify

GOOD = "10-4=6:5 6 6\n5*6=30:6 30\n30-6=24:24"
POOR = "10-4=6:5 6 6\n5+6=11:6 11\n6+11=17:17"


class Server:
    """A running `ramify verifier serve`."""

    def __init__(self, ready: Path, *options: str, listen: str = "127.0.0.1:0") -> None:
        command = [*RAMIFY, "verifier", "serve", "--listen", listen, "--ready-file", str(ready), *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if " serving " in line:
                break
        else:
            pytest.fail(f"`ramify verifier serve` did not start: {self.said}")
        self.address: str = json.loads(ready.read_text())["address"]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """End it; its exit code. Nothing of it is left."""
        started = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(number)
        self.said += self.process.communicate(timeout=STOP_S)[1]
        _, alive = psutil.wait_procs(started, timeout=STOP_S)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        return self.process.returncode


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "ready", "--model", f"tiny={MODELS / 'prm'}", "--rule", "math", "--rule", "countdown")
    yield server
    assert server.end() == 0, server.said


@pytest.fixture
def solutions(tmp_path: Path, puzzles: list[str]) -> Path:
    """Solutions of puzzles, right and wrong, and what can't be scored."""
    path = tmp_path / "solutions.jsonl"
    texts = [{"problem": "4 5 6 10>24", "solution": text} for text in (GOOD, POOR, GOOD.splitlines()[0])]
    texts += [{"problem": f"{puzzle.partition('>')[0]}>24", "solution": POOR} for puzzle in puzzles[:60]]
    texts += [{"problem": "4 5 six", "solution": GOOD}, {"problem": "4 5 6 10>24"}]
    path.write_text("".join(json.dumps(each) + "\n" for each in texts))
    return path


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_same_scores_here_and_from_a_server(server: Server, solutions: Path) -> None:
    common = ["verifier", "score", str(solutions), "--delimiter", r"\n", "--aggregate", "prod"]
    here = ramify(*common, "--model", str(MODELS / "prm"))
    there = ramify(*common, "--address", server.address)
    assert (here.returncode, there.returncode) == (1, 1), here.stderr + there.stderr
    assert here.stdout == there.stdout
    found = records(here.stdout)
    assert [each["problem"] for each in found] == [each["problem"] for each in records(solutions.read_text())]
    assert found[0]["score"] > 0.5 > found[1]["score"], "the model tells right from wrong"
    assert [each.get("error") for each in found[-2:]] == ["invalid", "line"]
    last = here.stderr.splitlines()[-1]
    assert last.startswith("64 chains · 190 steps · 2 errors (1 invalid, 1 line) · ")
    assert last.split(" · ")[-1].split()[1] == there.stderr.split()[-1], "of one revision"


def test_rules_at_a_server(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "math.jsonl"
    texts = [r"So \boxed{\frac{2}{4}}.", r"So \boxed{9^{9^{9^9}}}.", "I give up."]
    file.write_text("".join(json.dumps({"problem": "?", "solution": text, "reference": "0.5"}) + "\n" for text in texts))
    done = ramify("verifier", "score", str(file), "--address", server.address, "--name", "math")
    assert done.returncode == 1
    assert [each.get("score", each.get("error")) for each in records(done.stdout)] == [1.0, "model", 0.0]
    assert "took more than 5 s" in done.stderr


def test_a_verifier_that_is_killed_and_started_again_changes_no_score(tmp_path: Path) -> None:
    file, out = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    line = json.dumps({"problem": "4 5 6 10>24", "solution": GOOD})
    file.write_text("".join(line.replace("24:24", f"24:{at}") + "\n" for at in range(6_000)))
    model = "sim=simulated?base_ms=20"
    calm = ramify("verifier", "score", str(file), "--model", model, "--delimiter", r"\n")
    assert calm.returncode == 0, calm.stderr
    first = Server(tmp_path / "first", "--model", model)
    command = [*RAMIFY, "verifier", "score", str(file), "--address", first.address, "--delimiter", r"\n", "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as scoring:
        while scoring.poll() is None and not (out.exists() and out.stat().st_size):
            pass
        assert scoring.poll() is None, "it was done too soon"
        first.end(signal.SIGKILL)
        second = Server(tmp_path / "second", "--model", model, listen=first.address)
        said = scoring.communicate(timeout=120)[1]
        assert second.end() == 0
    assert scoring.returncode == 0, said
    assert out.read_text() == calm.stdout
