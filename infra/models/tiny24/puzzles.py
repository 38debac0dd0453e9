"""Game of 24 and Countdown, exactly: text format, rules, solver and the fixed held-out split.

A problem is N numbers and a target; every number must be used exactly once. As text, one step a line:

    4 5 6 10>24
    10-4=6:5 6 6
    5*6=30:6 30
    30-6=24:24

A step is `operation=result:numbers left`, the numbers in ascending order. Values are exact rationals that are
never negative (a subtraction takes the smaller from the larger); a fraction is written `8|3`.
Values are `int` where they are whole and `Fraction` where not: the two compare and hash alike, and whole
numbers, which are nearly all, stay fast.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from itertools import combinations_with_replacement
from pathlib import Path

Number = int | Fraction
State = tuple[Number, ...]

OPERATORS = "+-*/"
HIGHEST = 13
HELDOUT_COUNT = 200
HELDOUT_SEED = 24
HELDOUT_FILE = Path(__file__).resolve().parent / "heldout.txt"

_NUMBER = r"(?:0|[1-9]\d*)(?:\|[1-9]\d*)?"
_STEP = re.compile(rf"({_NUMBER})([-+*/])({_NUMBER})=({_NUMBER}):({_NUMBER}(?: {_NUMBER})*)")
_PROBLEM = re.compile(rf"({_NUMBER}(?: {_NUMBER})*)>({_NUMBER})")


@dataclass(frozen=True)
class Step:
    """One legal step: `left op right = result`, and the state after it."""

    left: Number
    op: str
    right: Number
    result: Number
    state: State

    def text(self) -> str:
        """The step's line, without its newline."""
        operation = f"{format_number(self.left)}{self.op}{format_number(self.right)}"
        return f"{operation}={format_number(self.result)}:{format_state(self.state)}"


@dataclass(frozen=True)
class Problem:
    """Numbers in ascending order and the target that they must make."""

    numbers: State
    target: Number

    def line(self) -> str:
        """The problem's line, with its newline: the prompt of both models."""
        return f"{format_state(self.numbers)}>{format_number(self.target)}\n"

    def solvable(self) -> bool:
        """Whether the target can be made at all."""
        return can_reach(self.numbers, self.target)


def whole(value: Number) -> Number:
    """`value` as an `int` where it is whole."""
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value


def format_number(value: Number) -> str:
    """`6` or, in lowest terms, `8|3`."""
    return str(value) if isinstance(value, int) else f"{value.numerator}|{value.denominator}"


def format_state(state: State) -> str:
    """The numbers, separated by single spaces, in the order given."""
    return " ".join(format_number(value) for value in state)


def parse_number(text: str) -> Number | None:
    """The value of `6` or `8|3`; None where it is not written in lowest terms."""
    top, bar, bottom = text.partition("|")
    if not bar:
        return int(top)
    value = Fraction(int(top), int(bottom))
    return value if format_number(whole(value)) == text else None


def parse_problem(line: str) -> Problem | None:
    """The problem that a line (with or without its newline) states; None where it is malformed."""
    match = _PROBLEM.fullmatch(line.removesuffix("\n"))
    if match is None:
        return None
    numbers = [parse_number(part) for part in match[1].split(" ")]
    target = parse_number(match[2])
    known = [value for value in numbers if value is not None]
    if target is None or len(known) != len(numbers) or known != sorted(known):
        return None
    return Problem(tuple(known), target)


def compute(left: Number, op: str, right: Number) -> Number | None:
    """`left op right`; None where the rules forbid it (negative, or division by zero)."""
    if op == "+":
        return whole(left + right)
    if op == "-":
        return whole(left - right) if left >= right else None
    if op == "*":
        return whole(left * right)
    return whole(Fraction(left) / right) if right else None


def take(state: State, *values: Number) -> list[Number] | None:
    """What is left of `state` once `values` are taken out; None where one of them is not there."""
    rest = list(state)
    for value in values:
        if value not in rest:
            return None
        rest.remove(value)
    return rest


@cache
def _pair_steps(small: Number, large: Number) -> tuple[tuple[Number, str, Number, Number], ...]:
    """The distinct operations on a pair (`small <= large`), the larger first save in a division."""
    found: list[tuple[Number, str, Number, Number]] = []
    operations = [(large, op, small) for op in OPERATORS] + [(small, "/", large)]
    for left, op, right in operations:
        value = compute(left, op, right)
        if value is not None and (left, op, right, value) not in found:
            found.append((left, op, right, value))
    return tuple(found)


@lru_cache(maxsize=400_000)
def steps(state: State) -> tuple[Step, ...]:
    """Every distinct legal step from a state, in a fixed order."""
    found: dict[tuple[Number, str, Number], Step] = {}
    for i, small in enumerate(state):
        for j in range(i + 1, len(state)):
            rest = state[:i] + state[i + 1 : j] + state[j + 1 :]
            for left, op, right, value in _pair_steps(small, state[j]):
                if (left, op, right) not in found:
                    after = tuple(sorted((*rest, value)))
                    found[left, op, right] = Step(left, op, right, value, after)
    return tuple(found.values())


def _pair_makes(pair: State, target: Number) -> bool:
    """Whether one operation on two numbers gives the target: where every search for it ends."""
    small, large = pair
    if small + large == target or large - small == target or small * large == target:
        return True
    # Division the other way round: no quotient need be computed.
    return bool(small and large == target * small) or bool(large and small == target * large)


@lru_cache(maxsize=3_000_000)
def can_reach(numbers: State, target: Number) -> bool:
    """Whether the numbers, each used exactly once, can make the target."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, small in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            if not rest:
                return _pair_makes(numbers, target)
            for _, _, _, value in _pair_steps(small, numbers[j]):
                after = tuple(sorted((*rest, value)))
                if _pair_makes(after, target) if len(after) == 2 else can_reach(after, target):
                    return True
    return False


@lru_cache(maxsize=400_000)
def good_steps(state: State, target: Number) -> tuple[Step, ...]:
    """The legal steps after which the target can still be reached."""
    return tuple(step for step in steps(state) if can_reach(step.state, target))


def apply_step(state: State, line: str) -> State | None:
    """The state after a step's line, or None where the step is malformed or wrong in any respect."""
    match = _STEP.fullmatch(line.removesuffix("\n"))
    if match is None:
        return None
    left, right, result = (parse_number(match[group]) for group in (1, 3, 4))
    if left is None or right is None or result is None or compute(left, match[2], right) != result:
        return None
    rest = take(state, left, right)
    if rest is None:
        return None
    after = tuple(sorted((*rest, result)))
    return after if format_state(after) == match[5] else None


def solves(problem: Problem, text: str) -> bool:
    """Whether the step lines in `text` are all right and end at the target alone."""
    state: State | None = problem.numbers
    for line in text.splitlines():
        state = apply_step(state, line) if state is not None else None
    return state == (problem.target,)


def labels(problem: Problem, lines: list[str]) -> list[bool]:
    """The PRM's label at each newline: all steps right so far, and the target within reach.

    One for the problem's own line, then one for each step: `len(lines) + 1` in all.
    """
    state: State | None = problem.numbers
    found = [problem.solvable()]
    for line in lines:
        state = apply_step(state, line) if state is not None else None
        found.append(state is not None and can_reach(state, problem.target))
    return found


def random_solution(problem: Problem, rng: random.Random) -> list[Step]:
    """A solution that at each state picks evenly among the steps that keep the target within reach."""
    state, chosen = problem.numbers, []
    while len(state) > 1:
        step = rng.choice(good_steps(state, problem.target))
        chosen.append(step)
        state = step.state
    return chosen


@lru_cache(maxsize=1)
def hands() -> tuple[State, ...]:
    """All 1,820 multisets of four numbers of 1..13."""
    return tuple(combinations_with_replacement(range(1, HIGHEST + 1), 4))


@lru_cache(maxsize=1)
def heldout() -> tuple[Problem, ...]:
    """The 200 puzzles that neither model is trained on, drawn from the solvable 1,362 by a fixed seed."""
    solvable = [Problem(hand, 24) for hand in hands() if can_reach(hand, 24)]
    drawn = random.Random(HELDOUT_SEED).sample(solvable, HELDOUT_COUNT)
    return tuple(sorted(drawn, key=lambda problem: problem.numbers))


@lru_cache(maxsize=1)
def heldout_hands() -> frozenset[State]:
    """The held-out multisets: kept out of training whatever the target."""
    return frozenset(problem.numbers for problem in heldout())


if __name__ == "__main__":
    HELDOUT_FILE.write_text("".join(problem.line() for problem in heldout()), encoding="utf-8")
