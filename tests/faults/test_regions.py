"""The local regions as a user starts them: one is cut off in the middle of a job and comes back, engines join and leave."""

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ramify.client import Client
from ramify.v1 import job_pb2
from tests.faults.runs import KNOBS, outcome, problems
from tests.faults.system import ENGINE, MODEL, SLOTS_AN_ENGINE, STOP_S, gone
from tests.waiting import until

pytestmark = pytest.mark.faults  # tests/simulation/test_regions.py cuts regions off and joins them in every run of the suite

RUN = Path(__file__).parents[2] / "infra" / "local-regions" / "run.py"
START_S = 120.0
JOB_S = 180.0
MANY, FEW = 96, 12
CHEAP = "us-east"

FLEET = """
[regions.eu-west]
price_per_hour = 3.9
[regions.eu-north]
price_per_hour = 2.6
[regions.us-east]
price_per_hour = 2.2
"""


def entry(region: str, more: str = "", slots: int = SLOTS_AN_ENGINE) -> str:
    spec = ENGINE.replace(f"slots={SLOTS_AN_ENGINE}", f"slots={slots}")
    return f'[[engines]]\nspec = "{spec}"\nregion = "{region}"\n{more}\n'


class Local:
    """The three regions, and Ramify on them."""

    def __init__(self, home: Path) -> None:
        self.fleet = home / "fleet.toml"
        source = home / "source.toml"
        source.write_text(FLEET + entry("eu-west") + entry("eu-north") + entry(CHEAP))
        options = [
            "--home",
            str(home),
            "--fleet",
            str(source),
            "--listen",
            "127.0.0.1:0",
            "--verifier-model",
            f"{MODEL}=simulated",
        ]
        self.process = subprocess.Popen(
            [sys.executable, str(RUN), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.address = self.until_said(r"gateway +(\S+)", START_S)[1]
        self.until_said("Ctrl-C", START_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.put(line)

    def until_said(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        """Wait for a line."""
        heard = ""
        while True:
            try:
                line = self.said.get(timeout=timeout_s)
            except queue.Empty:
                pytest.fail(f"{pattern!r} was not said, but {heard}")
            heard += line
            if found := re.search(pattern, line):
                return found

    def tell(self, command: str, answer: str) -> re.Match[str]:
        """Type a command, and wait for the last line of its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.until_said(answer)

    def steps(self, engine: str) -> int:
        """That an engine has sampled since its process was started; -1: it is away."""
        found = self.tell("engines", rf"^{engine} +(is away|([\d,]+) steps)|have moved")
        steps = -1 if found[2] is None else int(found[2].replace(",", ""))
        if "moved" not in found[0]:
            self.until_said("have moved")
        return steps

    def moved(self) -> int:
        """Tokens of chains that have moved."""
        return int(self.tell("engines", r"^([\d,]+) tokens of chains have moved")[1].replace(",", ""))

    def kill_supervisor(self) -> None:
        """SIGKILL it, and wait until there is another one."""

        def there() -> list[psutil.Process]:
            every = psutil.Process(self.process.pid).children(recursive=True)
            return [each for each in every if not gone(each) and "Supervisor" in each.name()]

        (old,) = there()
        old.kill()
        until(lambda: [each for each in there() if each.pid != old.pid])
        self.moved()  # it answers

    def stop(self) -> None:
        """Ctrl-C; nothing is left."""
        top = psutil.Process(self.process.pid)
        started = [top, *top.children(recursive=True)]
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(STOP_S) == 0
        _, alive = psutil.wait_procs(started, timeout=STOP_S)
        left = [process for process in alive if not gone(process)]
        for process in left:
            process.kill()
        self.reader.join(STOP_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        assert not left


def ended(client: Client, job: job_pb2.Job) -> job_pb2.Job:
    """A job as it is once it has ended."""
    until(lambda: client.job(job.job_id).state != job_pb2.JOB_STATE_RUNNING, JOB_S)
    return client.job(job.job_id)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    started = Local(tmp_path_factory.mktemp("regions"))
    yield started
    started.stop()


def test_a_region_is_cut_off_in_the_middle_of_a_job_and_comes_back(local: Local) -> None:
    with Client(local.address) as client:
        job = client.submit(problems(MANY), **KNOBS)
        until(lambda: local.steps(f"{CHEAP}:0") > 100)
        local.tell(f"cut {CHEAP}", "is cut off")
        until(lambda: local.steps(f"{CHEAP}:0") < 0)
        local.tell(f"back {CHEAP}", "is back")
        until(lambda: local.steps(f"{CHEAP}:0") > 0)
        done = ended(client, job)
        again = ended(client, client.submit(problems(FEW), **KNOBS))
        moved = local.moved()
        print(f"of {done.progress.tokens} tokens {moved} moved, {done.progress.retries} steps were asked for again")
        assert done.state == job_pb2.JOB_STATE_DONE
        assert done.progress.retries > 0
        assert 0 < moved < done.progress.tokens
        assert outcome(client, done).first(FEW) == outcome(client, again).first(FEW), "no answer is wrong"


def test_engines_join_and_leave_while_a_job_runs(local: Local) -> None:
    with Client(local.address) as client:
        job = client.submit(problems(MANY), **KNOBS)
        until(lambda: local.steps(f"{CHEAP}:0") > SLOTS_AN_ENGINE)
        regions, before = local.fleet.read_text(), local.steps(f"{CHEAP}:0")
        local.fleet.write_text(FLEET + entry("eu-north", "count = 2") + entry(CHEAP, slots=32))
        until(lambda: local.steps("eu-north:1") > 0)
        until(lambda: local.steps("eu-west:0") < 0)
        until(lambda: 0 < local.steps(f"{CHEAP}:0") < before)  # it has changed, and is another process
        assert client.job(job.job_id).state == job_pb2.JOB_STATE_RUNNING
        local.kill_supervisor()
        assert local.steps("eu-west:0") < 0, "the next supervisor goes on with the fleet as it is, not as it was"
        assert local.steps("eu-north:1") > 0
        local.fleet.write_text("engines = 3")
        local.until_said(r"engines: input should be a valid list; all stays as it was")
        local.fleet.write_text(regions)
        done = ended(client, job)
        assert done.progress.retries == 0, "who leaves ends what it is at"
        again = ended(client, client.submit(problems(FEW), **KNOBS))
        assert outcome(client, done).first(FEW) == outcome(client, again).first(FEW)


def test_a_region_that_nobody_has_is_told_on_the_job_and_others_go_on(local: Local) -> None:
    with Client(local.address) as client:
        lost = client.submit(problems(2), **KNOBS, regions=["eu-south"])
        other = ended(client, client.submit(problems(2), **KNOBS, regions=[CHEAP]))
        assert other.state == job_pb2.JOB_STATE_DONE
        until(lambda: bool(client.job(lost.job_id).waits))
        (wait,) = client.job(lost.job_id).waits
        assert "the job allows eu-south alone; no engine belongs to eu-south" in wait.reason
        local.fleet.write_text(FLEET + "[regions.eu-south]\n" + entry(CHEAP) + entry("eu-south"))
        until(
            lambda: any("no node has the label ray.io/region=eu-south" in wait.reason for wait in client.job(lost.job_id).waits)
        )
        client.cancel(lost.job_id)
