"""A real system: `ramify up` as a user starts it, in a process of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

MODELS = Path(__file__).parents[2] / "infra" / "models" / "tiny24"
RAMIFY = [sys.executable, "-c", "from ramify.cli.main import main; main()"]
STOP_S = 30


class Up:
    """A running `ramify up`."""

    def __init__(self, home: Path, *options: str, listen: str = "127.0.0.1:0") -> None:
        command = [*RAMIFY, "up", "--home", str(home), "--listen", listen, "--no-dashboard", *options]
        self.home = home
        environment = {"RAY_metrics_report_interval_ms": "1000", **os.environ}  # in place of 10 s
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        self.said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if "Ctrl-C" in line:
                break
        found = re.search(r"^ +gateway +(\S+)", self.said, re.MULTILINE)
        if found is None:
            pytest.fail(f"`ramify up` did not start: {self.said}")
        self.address = found[1]

    def processes(self) -> list[psutil.Process]:
        """The command's process and all that it has started, down to Ray's workers."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def kill_everything(self) -> None:
        """SIGKILL every process at once: nothing gets a chance to save anything."""
        victims = self.processes()
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=STOP_S)
        self.process.communicate(timeout=STOP_S)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, list[psutil.Process]]:
        """End it as a user would; its exit code, and the processes that it left behind."""
        started = self.processes()
        self.process.send_signal(number)
        self.said += self.process.communicate(timeout=STOP_S)[0]
        _, alive = psutil.wait_procs(started, timeout=STOP_S)
        return self.process.returncode, [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def ramify(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a `ramify` command against the system."""
        return ramify(*arguments, address=self.address, **options)


def ramify(*arguments: str, address: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Run a `ramify` command to its end."""
    env = {**os.environ, "RAMIFY_ADDRESS": address} if address else dict(os.environ)
    return subprocess.run([*RAMIFY, *arguments], capture_output=True, text=True, timeout=120, env=env, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="session")
def puzzles() -> list[str]:
    """The held-out puzzles."""
    return (MODELS / "heldout.txt").read_text().strip().split("\n")


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One system for all tests that do it no harm."""
    system = Up(tmp_path_factory.mktemp("home"))
    yield system
    code, left = system.stop()
    assert code == 0, system.said
    assert left == []
