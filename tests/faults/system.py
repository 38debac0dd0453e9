"""A system on a cluster of its own, as the tests see it: what it consists of, and how each part dies."""

import contextlib
import json
import queue
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from ramify.scheduler.slots import SLOTS
from tests.faults.cluster import Setup
from tests.waiting import until

SLOTS_AN_ENGINE = 48
STEPS = "step_lengths=uniform&step_tokens_min=16&step_tokens_max=48&end_probability=0.05"
ENGINE = f"simulated?slots={SLOTS_AN_ENGINE}&token_ms=10&time_scale=0.5&{STEPS}&crash_on=POISON"
MODEL = "sim-prm"
START_S = 120.0
ANSWER_S = 60.0
STOP_S = 60.0


class System:
    """A running cluster with a system on it, in a process that this one has started."""

    def __init__(self, home: Path, store_url: str, **options: Any) -> None:
        """Start it on a store; `options` are of `Setup`."""
        self.ray_folder = Path(tempfile.mkdtemp(prefix="ramify-ray-"))
        self.setup = Setup(str(home), str(self.ray_folder), store_url, ENGINE, f"{MODEL}=simulated", **options)
        self.log = home / f"cluster-{secrets.token_hex(2)}.log"
        self._started: dict[int, psutil.Process] = {}  # all that were seen
        command = [sys.executable, "-m", "tests.faults.cluster", json.dumps(asdict(self.setup))]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self._answer(START_S)["gateway"]  # it stays
        self.look()

    # --- what there is ------------------------------------------------------------------------------------------------

    def look(self) -> list[psutil.Process]:
        """All processes that belong to it now, its own first."""
        try:
            top = psutil.Process(self._process.pid)
            found = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        # Of a node that has died, what it had started may be nobody's child.
        known = [process for process in self._started.values() if process.is_running() and process not in found]
        self._started |= {process.pid: process for process in found}
        return [*found, *known]

    def processes(self) -> dict[str, Any]:
        """See `Cluster.processes`."""
        return dict(self.call("processes"))

    def process(self, name: str) -> psutil.Process:
        """Of an actor (`shard:0`, `engine:1`, `supervisor`), a child (`verifier`, `gateway`) or a node (`node:a`)."""
        found = self.named()
        assert name in found, f"{name} is not there"
        return found[name]

    def named(self) -> dict[str, psutil.Process]:
        """All that are there now by their names, see `process`."""
        told = self.processes()
        pids = {f"node:{node}": pid for node, pid in told["nodes"].items()} | told["children"]
        pids |= {name.removeprefix("ramify:"): actor["pid"] for name, actor in told["actors"].items()}
        # Of one that has died its number may be somebody else's by now, who is not to be harmed.
        mine = {process.pid: process for process in self.look()}
        return {name: mine[pid] for name, pid in pids.items() if pid in mine}

    def node_of(self, actor: str) -> str:
        """The node that an actor runs on."""
        return str(self.processes()["actors"][f"ramify:{actor}"]["node"])

    def stats(self) -> dict[str, Any]:
        """See `Cluster.stats`."""
        return dict(self.call("stats"))

    # --- how it dies --------------------------------------------------------------------------------------------------

    def tree(self, node: str) -> list[psutil.Process]:
        """A node's process and all that it has started."""
        top = self.process(f"node:{node}")
        return [top, *top.children(recursive=True)]

    def kill_everything(self) -> None:
        """SIGKILL every process at once: nothing gets a chance to save anything."""
        end(*self.look())
        self._process.wait(STOP_S)
        self._close()
        shutil.rmtree(self.ray_folder)

    # --- what it is told ----------------------------------------------------------------------------------------------

    def call(self, do: str, **arguments: Any) -> Any:
        """Ask its process to do something; see `Cluster`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer(ANSWER_S)

    def stop(self) -> dict[str, Any]:
        """End it in order, as SIGTERM does; what `Cluster.stop` says. Fails if it leaves a process behind."""
        self.look()
        assert self._process.stdin is not None
        self._process.stdin.close()
        told = dict(self._answer(STOP_S))
        code = self._process.wait(STOP_S)
        self._close()
        _, alive = psutil.wait_procs(list(self._started.values()), timeout=STOP_S)
        left = [process for process in alive if not gone(process)]
        end(*left)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
        assert (code, left) == (0, []), self.log.read_text()[-4000:]
        assert not self.ray_folder.exists()
        return told

    def until_well(self) -> None:
        """Wait until all that it is to consist of is there, and works."""
        try:
            until(lambda: not self.ills())
        except AssertionError:
            pytest.fail(f"it does not become well: {', '.join(self.ills())}; its log: {self.log.read_text()[-4000:]}")

    def ills(self) -> list[str]:
        """What is not there, or does not work."""
        stats, size = self.stats(), SLOTS // self.setup.shards
        found = [f"node {name} is away" for name, there in self.processes()["nodes"].items() if not there]
        if len(stats["engines"]) != self.setup.engines:
            found.append(f"of {self.setup.engines} engines {[*stats['engines']]} answer")
        if len(stats["shards"]) != self.setup.shards:
            found.append(f"of {self.setup.shards} shards {[*stats['shards']]} are there")
        for name, each in stats["shards"].items():
            shard = each["shell"]
            if not shard or shard["state"] != "working" or shard["settling"] or shard["slots"] != size:
                found.append(f"shard {name} is not settled: {shard}")
            elif not all(lane["alive"] for lane in shard["lanes"]):
                found.append(f"shard {name} does without engines: {shard['lanes']}")
        return found

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._reader.join(STOP_S)
        self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, timeout_s: float) -> Any:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            line = ""
        answer = json.loads(line) if line else {"error": "it does not answer"}
        if "error" in answer:
            pytest.fail(f"the cluster failed: {answer['error']}; its log: {self.log.read_text()[-4000:]}")
        return answer["is"]


def end(*victims: psutil.Process) -> None:
    """SIGKILL processes, and wait until they are gone."""
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    until(lambda: all(gone(victim) for victim in victims))


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
