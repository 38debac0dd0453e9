"""Processes that are not to outlive the one that has started them; vLLM's are stood in for by ones that sleep."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import pytest

from tests.waiting import until

PATIENCE_S = 20
# The sleepers stand for processes that never end by themselves, but for a test that was killed. "slow" lets some looks of the
# guard go by while they start: it looks at its own times.
PARENT = """
import subprocess, sys, time
from ramify.verifier.backends.vllm_guard import Guard

def sleeper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL).pid

before = sleeper()
guard = Guard()
inside = sleeper()
if "slow" in sys.argv:
    time.sleep(2)
else:
    guard.settle()
if "close" in sys.argv:
    guard.close()
print(before, inside, sleeper(), flush=True)
time.sleep(60)
"""


@contextmanager
def killed(*how: str) -> Iterator[list[psutil.Process]]:
    """What such a process has started before it was guarded, within and after, and the process is killed."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *how], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    sleepers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()
    guards = [each for each in children if each not in sleepers]
    assert len(guards) == ("close" not in how)
    assert psutil.wait_procs(guards, timeout=PATIENCE_S)[1] == []
    try:
        yield sleepers
    finally:
        for each in sleepers:
            if each.is_running():
                each.kill()


@pytest.mark.parametrize(
    ("how", "alive"), [(["settled"], [True, False, True]), (["slow"], [True, False, None]), (["close"], [True, True, True])]
)
def test_what_was_started_under_guard_ends_with_its_parent(how: list[str], alive: list[bool | None]) -> None:
    with killed(*how) as sleepers:
        for each, wanted in zip(sleepers, alive, strict=True):
            if wanted is False:
                until(partial(ended, each), PATIENCE_S)
            elif wanted:
                assert not ended(each)


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
