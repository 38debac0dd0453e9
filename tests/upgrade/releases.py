"""This release and the one before, side by side: the same commands as processes of either."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import until

ROOT = Path(__file__).parents[2]
PREVIOUS = "5b21224c4968a2341909f7451f90d25abbe0d2e0"  # the commit of 0.1, the release before
SOURCES = ("scheduler", "verifier", "services", "protos")
TESTS = "tests"  # which start systems of that release, too
START_S = 120.0
STOP_S = 120.0
SHARD = str(Path(__file__).with_name("shard.py"))


@dataclass(frozen=True, slots=True)
class Release:
    """Sources of Ramify, to run with this environment's packages."""

    name: str
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """In which its code comes before any other's."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(self.root / source) for source in SOURCES),
            "GRPC_VERBOSITY": "NONE",
        }

    def run(self, *arguments: str, timeout_s: float = START_S) -> str:
        """What a command of Python says on its output."""
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{self.name}: {done.stderr[-4000:]}"
        return done.stdout


NEW = Release("this release", ROOT)


def previous(folder: Path) -> Release:
    """The release before, extracted into a folder; skips the test where the clone does not reach back that far."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git, which has the release before")
    archive = folder / "previous.tar"
    command = [git, "archive", "--output", str(archive), PREVIOUS, *SOURCES, TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the release before, {PREVIOUS[:7]}, is not in this clone: {done.stderr.strip()}")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    return Release("the release before", folder)


@dataclass(slots=True)
class Process:
    """A process of a release, which ends when its input closes."""

    process: subprocess.Popen[str]
    log: Path
    said: list[str] = field(default_factory=list)  # after it has ended

    def stop(self) -> None:
        """Have it end in order, and wait until it has."""
        if self.process.poll() is None or not self.said:
            out, _ = self.process.communicate(timeout=STOP_S)
            self.said = out.splitlines()
        assert self.process.returncode == 0, self.log.read_text()[-4000:]


class Roles:
    """What a system consists of: processes by their roles, each of some release, each at an address that stays."""

    def __init__(self, folder: Path, store_url: str) -> None:
        self.folder, self.store_url = folder, store_url
        self.running: dict[str, Process] = {}
        self.addresses = {"gateway": "127.0.0.1:0", "verifier": "127.0.0.1:0"}
        self.sampled = self.committed = 0  # by shards that have ended

    def serve(self, role: str, release: Release, *flags: str) -> None:
        """Start a gateway or a verifier, where the one before was."""
        ready = self.folder / f"{role}.ready"
        ready.unlink(missing_ok=True)
        started = self._start(
            role,
            release,
            ["-m", f"ramify.{role}", *flags, "--listen", self.addresses[role], "--ready-file", str(ready), "--exit-with-stdin"],
        )
        until(lambda: ready.exists() or started.process.poll() is not None, START_S)
        assert ready.exists(), started.log.read_text()[-4000:]
        self.addresses[role] = json.loads(ready.read_text())["address"]

    def work(self, role: str, release: Release, owner: str, engine: str) -> None:
        """Start a shard; returns when it works."""
        started = self._start(role, release, [SHARD, self.store_url, self.addresses["verifier"], owner, engine])
        assert started.process.stdout is not None
        assert started.process.stdout.readline(), started.log.read_text()[-4000:]

    def stop(self, role: str) -> None:
        """Have a part end in order."""
        stopped = self.running.pop(role)
        stopped.stop()
        for line in stopped.said:
            told = json.loads(line)
            self.sampled, self.committed = self.sampled + told["sampled"], self.committed + told["committed"]

    def _start(self, role: str, release: Release, arguments: Sequence[str]) -> Process:
        path = self.folder / f"{role}.log"
        with path.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=release.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.running[role] = Process(process, path)
        return self.running[role]


@contextlib.contextmanager
def roles(folder: Path, store_url: str) -> Iterator[Roles]:
    """A system's processes; none of them outlives the block."""
    found = Roles(folder, store_url)
    try:
        yield found
    finally:
        for each in found.running.values():
            if each.process.poll() is None:
                each.process.kill()
            each.process.communicate()
