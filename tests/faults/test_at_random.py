"""One fault after the other, and several at once, at random, all through a job."""

import contextlib
import os
import random
import threading
from collections.abc import Callable

import psutil
import pytest

from tests.faults.conftest import Place
from tests.faults.runs import Run, problems, running
from tests.faults.system import System, end
from tests.waiting import until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True, scope="module"),
]

PROBLEMS = 64
FAULTS = 16
PAUSE_S = 6.0  # of a process, at most; twice a lease
REST_S = 3.0  # between two faults, at most
SEED = "RAMIFY_FAULTS_SEED"


class Faults:
    """Faults at random; a seed makes the same ones, at other moments of the job."""

    def __init__(self, place: Place, run: Run, seed: int) -> None:
        self._place, self._run, self._chance = place, run, random.Random(seed)
        self.told: list[str] = []
        self._over = threading.Event()

    def go_on(self) -> None:
        """Harm the system again and again, for as long as the job runs."""
        kinds: list[Callable[[], None]] = [
            self.kill,
            self.kill,
            self.kill_both,
            self.pause,
            self.pause,
            self.kill_node,
            self.scale,
        ]
        if self._place.server is not None:
            kinds.append(self.stop_database)
        for _ in range(FAULTS):
            if self._run.steps >= self._run.expected_steps:
                break
            self._chance.choice(kinds)()
            self._over.wait(self._chance.uniform(0, REST_S))

    @property
    def _system(self) -> System:
        return self._place.system

    def _processes(self, count: int) -> list[psutil.Process]:
        """Some of its services and actors, as far as they are there just now."""
        found = {name: process for name, process in self._system.named().items() if not name.startswith("node:")}
        chosen = self._chance.sample(sorted(found), min(count, len(found)))
        self.told[-1] += f" {', '.join(chosen)}"
        return [found[name] for name in chosen]

    def kill(self) -> None:
        self.told.append("kill")
        end(*self._processes(1))

    def kill_both(self) -> None:
        self.told.append("kill at once")
        end(*self._processes(2))

    def pause(self) -> None:
        pause_s = self._chance.uniform(0.2, PAUSE_S)
        self.told.append(f"pause for {pause_s:.1f} s")
        for process in (processes := self._processes(1)):
            process.suspend()
        self._over.wait(pause_s)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def kill_node(self) -> None:
        self.told.append("kill the node")
        end(*self._system.tree("a"))
        self._over.wait(self._chance.uniform(0, REST_S))
        self._system.call("replace", node="a")

    def scale(self) -> None:
        shards = self._chance.choice([1, 2, 3])
        self.told.append(f"scale to {shards}")
        until(lambda: self._system.processes()["actors"].get("ramify:supervisor", {}).get("state") == "ALIVE")
        self._system.call("scale", shards=shards)

    def stop_database(self) -> None:
        assert self._place.server is not None
        self.told.append("stop the database")
        self._place.server.stop(self._chance.choice(["fast", "immediate"]))
        self._over.wait(self._chance.uniform(0, PAUSE_S))
        self._place.server.start()


def test_guarantee_07_faults_at_random(place: Place, system: System) -> None:
    with running(system, 1, problems(PROBLEMS)) as run:
        expected = run.end()
    seed = int(os.environ.get(SEED) or random.randrange(2**32))
    print(f"{SEED}={seed}")
    with running(system, run.steps, problems(PROBLEMS)) as harmed:
        harm = Faults(place, harmed, seed)
        try:
            harm.go_on()
            found = harmed.end()
        finally:
            print(*harm.told, sep="\n")
    assert found == expected
    harmed.report("faults at random", faults=len(harm.told))
    system.call("scale", shards=system.setup.shards)
    system.until_well()
