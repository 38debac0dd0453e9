"""Answers compared by the real math-verify in real worker processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.errors import ProblemError
from ramify.verifier.rules import RULES
from ramify.verifier.rules.math import REFERENCE_CHARS_MAX, MathRule

TOWER = r"\boxed{9^{9^{9^9}}}"  # sympy would write its digits down

RIGHT = [
    (r"So \boxed{\frac{1}{2}}.", "0.5"),
    (r"So \boxed{0.5}.", r"\frac{1}{2}"),
    (r"So $\boxed{1/2}$.", r"$\frac{1}{2}$"),
    (r"\boxed{\{2, 1\}}", r"\{1,2\}"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{1024}", "2**10"),
    (r"\boxed{5}", "x=5"),
    (r"\boxed{1e3}", "1000"),
    (r"\boxed{1000}", "1e3"),
    (r"\boxed{\frac{3}{2}}", "1 1/2"),
    (r"\boxed{-1 1/2}", "-1.5"),
    (r"\boxed{12\text{ cm}}", "12"),
    ("The answer is 42.", "42"),
    ("The answer is 7. Hence 8.", "7"),
    ("6 * 7 = 42", "42"),
    ("They have 1,000 eggs.", "Of 20 dozen, ... = 1000 eggs.\n#### 1,000"),
    (r"So \boxed{1}. Wait, that is wrong." + "\n\n" + r"It is \boxed{2}.", "2"),
    (r"$x=\boxed{1}$ or $x=\boxed{2}$", r"\{1,2\}"),
    (r"<think>Maybe \boxed{3}? The final answer is 3.</think>" + "\n\nThe answer is 4.", "4"),
    (r"\boxed{\text{Evelyn}}", "Evelyn"),
    (r"\boxed{evelyn}", r"\text{Evelyn}"),
    (r"\boxed{\text{No}}", "no"),
    ("The answer is B.", "B"),
    ("**Answer: C**", "C"),
    (r"\boxed{B}", "(B)"),
    (r"\boxed{\foo{1}{!}}", r"\foo{1}{!}"),  # no formula, but the same text
    ("Jaké? \N{SNOWMAN} Je to 5.", "5"),
]
WRONG = [
    (r"\boxed{0.51}", "0.5"),
    (r"\boxed{[1,2]}", "(1,2)"),
    (r"\boxed{1}", "1 1/2"),
    (r"So \boxed{2}. Wait, that is wrong." + "\n\n" + r"It is \boxed{1}.", "2"),
    (r"<think>\boxed{3}</think> I give up.", "3"),
    (r"\boxed{\text{silent}}", "listen"),
    (r"\boxed{silent}", "listen"),
    ("I do not know.", "5"),
    ("", "5"),
    (r"\boxed{}", "5"),
    (r"\boxed{\frac{1}{0}}", "5"),
    (r"\boxed{(((((}", "5"),
    ("The answer is A.", "B"),
    ("x" * 100_000, "5"),
    ("5 " + " " * 5_000, "5"),  # too far from the end
]


@pytest.fixture(scope="module")
def scorer() -> Iterator[RuleScorer]:
    scorer = RuleScorer(MathRule(cpu_s=20.0))
    yield scorer
    scorer.close()


def workers_alive() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid and child.name == "pebble_pool_worker"]


def test_right_answers(scorer: RuleScorer) -> None:
    found = scorer.score([Chain("p", (text,), reference) for text, reference in RIGHT])
    assert [pair for pair, scores in zip(RIGHT, found, strict=True) if scores != ChainScores([1.0])] == []


def test_wrong_answers(scorer: RuleScorer) -> None:
    found = scorer.score([Chain("p", (text,), reference) for text, reference in WRONG])
    assert [pair for pair, scores in zip(WRONG, found, strict=True) if scores != ChainScores([0.0])] == []


def test_steps_before_the_last_are_not_judged(scorer: RuleScorer) -> None:
    steps = ("It is ", "\\boxed{4", "2}.", " Done.")
    found = scorer.score([Chain("p", steps[:count], "42") for count in (1, 2, 3, 4)])
    assert [list(each.scores) for each in found] == [[0.0], [1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]


@pytest.mark.parametrize("reference", ["", " \n", "x" * (REFERENCE_CHARS_MAX + 1), "$$", "####"])
def test_a_reference_that_is_missing_or_unreadable(scorer: RuleScorer, reference: str) -> None:
    (found,) = scorer.score([Chain("p", ("5",), reference)])
    assert found.error is ChainError.INVALID
    assert "reference answer" in found.message


def test_references_are_checked_at_submission() -> None:
    before = set(workers_alive())
    RULES["math"].check_reference("5")
    assert RULES["math"].normalise_problem("How many?") == "How many?"
    with pytest.raises(ProblemError, match="the problem has no reference answer, which the rule 'math' compares with"):
        RULES["math"].check_reference(" ")
    assert set(workers_alive()) == before, "the gateway has no use for them"


def test_a_hostile_answer_costs_its_own_chain() -> None:
    before = set(workers_alive())
    scorer = RuleScorer(MathRule(cpu_s=1.0))
    texts = [TOWER, r"\boxed{5}", TOWER, r"\boxed{\int_0^1 e^{x^{x^x}} dx}", r"\boxed{6}"]
    found = scorer.score([Chain("p", (text,), "5") for text in texts])
    scorer.close()
    assert [each.error for each in found] == [ChainError.MODEL, 0, ChainError.MODEL, ChainError.MODEL, 0]
    assert [list(found[1].scores), list(found[4].scores)] == [[1.0], [0.0]]
    assert found[0].message == "the comparison of the answer with the reference took more than 1 s, or its worker died"
    assert set(workers_alive()) == before


def test_what_is_nested_too_deep_is_no_wrong_answer(scorer: RuleScorer) -> None:
    deep = r"\sqrt{" * 200 + "1" + "}" * 200
    (found,) = scorer.score([Chain("p", (rf"\boxed{{{deep}}}",), "1")])
    assert found.error is ChainError.MODEL
    assert found.message.startswith("the answer cannot be compared with the reference: RecursionError: ")


def test_a_hostile_reference_is_no_wrong_answer() -> None:
    scorer = RuleScorer(MathRule(cpu_s=1.0))
    (found,) = scorer.score([Chain("p", (r"\boxed{5}",), "9^{9^{9^9}}")])
    scorer.close()
    assert found.error is ChainError.MODEL


def test_workers_that_die_while_they_have_nothing_to_do_are_replaced(scorer: RuleScorer) -> None:
    chains = [Chain("p", (r"\boxed{\frac12}",), "0.5"), Chain("p", ("2",), "3")]
    before = scorer.score(chains)
    assert workers_alive()
    for pid in workers_alive():
        os.kill(pid, signal.SIGKILL)
    assert scorer.score(chains) == before == [ChainScores([1.0]), ChainScores([0.0])]


def test_after_closing_it_can_be_used_again() -> None:
    rule, before = MathRule(), set(workers_alive())
    for _ in range(2):
        assert rule.score("p", ["2"], "2") == [1.0]
        assert set(workers_alive()) > before
        rule.close()
        assert set(workers_alive()) == before


ORPHANS = f"""
import multiprocessing
from ramify.verifier.rules.math import MathRule

if __name__ == "__main__":
    rule = MathRule(cpu_s=3.0)
    rule.score("p", ["1"], "1")
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    rule.score("p", [{TOWER!r}], "5")
"""


def test_a_killed_verifier_leaves_no_worker_behind(tmp_path: Path) -> None:
    """It has no chance to kill one that hangs."""
    (tmp_path / "orphans.py").write_text(ORPHANS)
    with subprocess.Popen([sys.executable, tmp_path / "orphans.py"], stdout=subprocess.PIPE, text=True) as verifier:
        assert verifier.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in verifier.stdout.readline().split()]
        assert workers
        while not any(worker.cpu_percent(0.05) > 10 for worker in workers):
            pass
        verifier.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
