"""Answers compared in processes of their own: real workers, the real math-verify, and rules that misbehave."""

import asyncio
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from ramify.scheduler.actors.comparing import COMMANDS_MAX, Comparing
from ramify.scheduler.commands import Compare
from ramify.scheduler.comparers import UnknownRule, check_rule, comparer, known_rules
from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.events import AnswersGrouped, Event
from ramify.scheduler.plan import Generator, JobPlan, Verifier
from ramify.scheduler.policies.best_of_n import BestOfN
from ramify.scheduler.policies.compare import groups, numbers

TOWER = "9^{9^{9^9}}"  # sympy would write its digits down
WAIT_S = 120.0  # for an event; only a test that fails waits so long

RULES = '''
import os, signal, sys, time

def fold(a, b):
    return a.casefold() == b.casefold()

def truthy(a, b):
    return (lambda: "no bool, and can't be pickled") if a[0] == b[0] else []

def crash(a, b):
    if "boom" in (a, b):
        os._exit(3)
    return a[0] == b[0]

def leave(a, b):
    sys.exit("bye")

def broken(a, b):
    raise Exception(lambda: "can't be pickled")

def stubborn(a, b):
    """Survives its own alarm, and SIGTERM."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while "hang" in (a, b):
        signal.pause()
    return a[0] == b[0]
'''
NAMES = ("fold", "truthy", "crash", "leave", "broken", "stubborn")


class Harness:
    """A `Comparing` and the events it posts."""

    def __init__(self, comparing: Comparing, inbox: "asyncio.Queue[Event]") -> None:
        self.comparing, self.inbox = comparing, inbox

    async def groups(self, rule: str, *trees: list[str]) -> list[list[int]]:
        """The groups of the answers of some trees."""
        lengths = [len(tree) for tree in trees]
        command = Compare(
            plan(rule),
            np.repeat(np.arange(7, 7 + len(trees), dtype=np.uint64), lengths),
            np.arange(sum(lengths), dtype=np.uint64)[::-1].copy(),
            [answer for tree in trees for answer in tree],
        )
        self.comparing.add(command)
        self.comparing.pump()
        assert self.comparing.busy
        event = await asyncio.wait_for(self.inbox.get(), WAIT_S)
        assert isinstance(event, AnswersGrouped)
        assert event.tree_id is command.tree_id
        assert event.node_id is command.node_id
        assert event.group.dtype == np.int32
        return [part.tolist() for part in np.split(event.group, np.cumsum(lengths)[:-1])]


def plan(rule: str) -> JobPlan:
    return JobPlan("job", BestOfN(4, 4), StepParams(1.0, 1.0, 8, None), (Generator("g"),), (Verifier("v"),), "", compare=rule)


@asynccontextmanager
async def harness(pair_s: float = 20.0, workers: int = 2) -> AsyncIterator[Harness]:
    inbox: asyncio.Queue[Event] = asyncio.Queue()
    comparing = Comparing(inbox.put_nowait, workers, pair_s)
    try:
        yield Harness(comparing, inbox)
    finally:
        await asyncio.wait_for(comparing.close(), WAIT_S)
    assert not comparing.busy
    assert workers_alive() == []


def workers_alive() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid and child.name == "pebble_pool_worker"]


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with rules of the user's, as pip would install it."""
    (tmp_path / "users_rules.py").write_text(RULES)
    info = tmp_path / "users_rules-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: users-rules\nVersion: 1\n")
    entries = [f"{name} = users_rules:{name}" for name in NAMES]
    lines = ["[ramify.compare]", *entries, "math = users_rules:fold", "gone = users_rules:gone"]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    ("0.5", "1/2"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("1e3", r"\frac{2000}{2}"),
    ("1 1/2", r"\frac{3}{2}"),
    ("x=5", "5"),
    (r"$\sqrt{2}/2$", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{7}", "7"),
    ("2**10", "1024"),
    (r"\pi", "3.14159265"),  # by the tolerance
    (r"\frac{1}{3}", "0.3333333"),
    (r"\text{Paris}", "paris"),
    (r"50\%", r"\frac{1}{2}"),
]
DIFFERENT = [
    (r"\frac{1}{2}", "0.51"),
    ("(1,2)", "[1,2]"),
    (r"\pi", "3.14"),
    ("listen", "silent"),
    ("50%", "50"),
    ("x+1", "x+2"),
    ("1 1/2", "1"),
    ("x" * 2000, "y" * 2000),
    ("(" * 300, "1"),
    (r"\frac{1}{0}", "1"),
]


async def test_formulas_are_compared_by_what_they_mean() -> None:
    async with harness() as it:
        found = await it.groups("math", *(list(pair) for pair in [*SAME, *DIFFERENT]))
    assert [pair for pair, group in zip(SAME, found, strict=False) if group != [0, 0]] == []
    assert [pair for pair, group in zip(DIFFERENT, found[len(SAME) :], strict=True) if group != [0, 1]] == []


async def test_groups_are_in_order_and_of_one_tree() -> None:
    async with harness() as it:
        trees = [["0.5", "", r"\frac12", "3", "", "1/2", "3.0"], ["3"], ["", ""], ["4", "3", "4"]]
        assert await it.groups("math", *trees) == [[0, -1, 0, 1, -1, 0, 1], [0], [-1, -1], [0, 1, 0]]
        assert await it.groups("math", []) == [[]]


async def test_a_power_tower_costs_its_comparisons_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with harness(pair_s=1.0, workers=1) as it:
        answers = [TOWER, "1/2", TOWER, "0.5", "2", "4/2", "7"]
        assert await it.groups("math", answers) == [[0, 1, 0, 1, 2, 2, 3]]
        assert await it.groups("math", ["x", "1", "1.0"]) == [[0, 1, 1]]
    # It is compared with 1/2 and 0.5, and then no more.
    assert [message for message in caplog.messages if "2 pairs of answers count as different" in message] != []


async def test_the_groups_are_those_of_the_core() -> None:
    chance = random.Random(0)
    trees = [
        [chance.choice(["", "1", "1.0", "2", "4/2", "200%", "a", "b"]) for _ in range(chance.randrange(9))] for _ in range(60)
    ]
    trees = [tree for tree in trees if tree]
    async with harness() as it:
        assert await it.groups("number", *trees) == [groups(tree, numbers(1e-6)) for tree in trees]


@pytest.mark.usefixtures("rules")
async def test_a_rule_of_the_users() -> None:
    async with harness() as it:
        assert await it.groups("fold", ["Yes", "no", "YES", "", "No"]) == [[0, 1, 0, -1, 1]]
        assert await it.groups("truthy", ["a1", "b1", "a2"]) == [[0, 1, 0]]


@pytest.mark.usefixtures("rules")
async def test_a_rule_that_crashes_costs_only_the_pair() -> None:
    async with harness() as it:
        assert await it.groups("crash", ["a1", "boom", "a2", "b1", "boom", "b2"], ["a1", "a2"]) == [[0, 1, 0, 2, 1, 2], [0, 0]]


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("rule", ["leave", "broken", "gone"])
async def test_a_rule_that_raises_or_can_not_be_loaded_leaves_the_texts(rule: str, caplog: pytest.LogCaptureFixture) -> None:
    async with harness() as it:
        assert await it.groups(rule, ["a", "A", "a"]) == [[0, 1, 0]]
        workers = workers_alive()
        assert await it.groups(rule, ["a", "b"]) == [[0, 1]]
        assert workers_alive() == workers, "an exception ends no worker"
    said = {"leave": "SystemExit: bye", "broken": "Exception: ", "gone": "AttributeError: "}[rule]
    assert said in caplog.text


@pytest.mark.usefixtures("rules")
async def test_a_rule_that_can_not_be_interrupted_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramify.scheduler.actors.comparing.LOAD_S", 0.5)
    async with harness(pair_s=0.5, workers=1) as it:
        assert await it.groups("stubborn", ["a1", "hang", "a2"]) == [[0, 1, 0]]
        assert await it.groups("stubborn", ["b1", "b2"]) == [[0, 0]]


async def test_a_rule_that_is_missing_here_leaves_the_texts(caplog: pytest.LogCaptureFixture) -> None:
    async with harness() as it:
        assert await it.groups("moth", ["1", "1.0", "1"], ["a", ""]) == [[0, 1, 0], [0, -1]]
        assert workers_alive() == []
    assert "did you mean math?" in caplog.text


async def test_workers_that_die_while_they_have_nothing_to_do_are_replaced() -> None:
    async with harness() as it:
        assert await it.groups("math", ["1", "x"]) == [[0, 1]]
        for pid in workers_alive():
            os.kill(pid, signal.SIGKILL)
        assert await it.groups("math", [r"\frac12", "0.5"]) == [[0, 0]]


async def test_equal_texts_need_no_worker() -> None:
    async with harness() as it:
        assert await it.groups("math", ["x", "", "x"], [TOWER]) == [[0, -1, 0], [0]]
        assert workers_alive() == []


async def test_commands_beyond_the_bound_wait_for_the_next_pump() -> None:
    async with harness() as it:
        for number in range(COMMANDS_MAX + 3):
            it.comparing.add(Compare(plan("math"), np.array([number], np.uint64), np.array([1], np.uint64), ["x"]))
        for wanted in (range(COMMANDS_MAX), range(COMMANDS_MAX, COMMANDS_MAX + 3)):
            assert it.comparing.busy
            it.comparing.pump()
            seen = [await asyncio.wait_for(it.inbox.get(), WAIT_S) for _ in wanted]
            assert sorted(int(event.tree_id[0]) for event in seen if isinstance(event, AnswersGrouped)) == [*wanted]
            assert it.inbox.empty()


def until_one_works(workers: list[int]) -> None:
    while not any(psutil.Process(pid).cpu_percent(0.05) > 10 for pid in workers):
        pass


async def test_closing_does_not_wait_for_a_comparison() -> None:
    async with harness(pair_s=60.0) as it:
        await it.groups("math", ["1", "x"])
        it.comparing.add(Compare(plan("math"), np.array([1, 1], np.uint64), np.array([1, 2], np.uint64), [TOWER, "5"]))
        it.comparing.pump()
        await asyncio.wait_for(asyncio.to_thread(until_one_works, workers_alive()), WAIT_S)
        await asyncio.wait_for(it.comparing.close(), 30)
        assert it.inbox.empty()


ORPHANS = """
import asyncio, multiprocessing
from ramify.scheduler.actors.comparing import Pairs

async def main():
    pairs = Pairs(2, 3.0)
    await pairs.compare("math", 0.0, "1", "x")
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    await pairs.compare("math", 0.0, "9^{9^{9^9}}", "5")

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_killed_scheduler_leaves_no_worker_behind(tmp_path: Path) -> None:
    """It has no chance to kill one that hangs."""
    (tmp_path / "orphans.py").write_text(ORPHANS)
    with subprocess.Popen([sys.executable, tmp_path / "orphans.py"], stdout=subprocess.PIPE, text=True) as scheduler:
        assert scheduler.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in scheduler.stdout.readline().split()]
        assert len(workers) == 2
        until_one_works([worker.pid for worker in workers])
        scheduler.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_the_rules_are_known_by_name_without_a_look_inside(rules: Path) -> None:
    (rules / "users_rules.py").write_text("raise ImportError('not now')")
    assert known_rules() == ("exact", "number", "math", *sorted([*NAMES, "gone"]))
    for name in known_rules():
        check_rule(name)
    with pytest.raises(ImportError, match="not now"):
        comparer("fold", 0.0)


def test_an_unknown_rule_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnknownRule, match=re.escape("'numbr' (did you mean number?), but must be one of exact, number, math")):
        check_rule("numbr")
    with pytest.raises(UnknownRule):
        comparer("numbr", 0.0)
    assert comparer("exact", 0.0)("a ", "a")
    assert comparer("number", 0.0)("1/2", "0.5")


def test_a_service_does_not_load_the_algebra() -> None:
    code = "import json, sys\nimport ramify.scheduler.actors.comparing\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S)
    loaded = json.loads(done.stdout)
    assert "ramify.scheduler.comparers" in loaded
    assert [name for name in loaded if name.split(".")[0] in ("math_verify", "sympy", "latex2sympy2_extended", "antlr4")] == []
