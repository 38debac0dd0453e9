"""Countdown and the Game of 24, exactly: combine all the numbers, each once, with + - * / to make the target.

A problem is `4 5 6 10>24`; a step is `operation=result:numbers left`, one a line, numbers in ascending order:

    10-4=6:5 6 6
    5*6=30:6 30
    30-6=24:24

Values are exact rationals and never negative; a fraction is written in lowest terms, as `8|3`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from ramify.verifier.errors import ProblemError
from ramify.verifier.rules.base import Rule

Number = int | Fraction
"""An `int` where it is whole: whole numbers are nearly all, and ten times as fast. The two compare and hash alike."""

State = tuple[Number, ...]
"""The numbers that are left, in ascending order."""

NUMBERS_MIN, NUMBERS_MAX = 2, 6
NUMBER_MAX = 999
TARGET_MAX = 9999
TARGET_DEFAULT = 24

EXPECTED = "write 2 to 6 positive whole numbers, e.g. '4 5 6 10' or '4 5 6 10>24'"

# Six numbers of at most 999 make no value of more than 25 digits, above or below the bar. The bound keeps `int`
# cheap on hostile text. [0-9] and not \d, which admits every script's digits.
_DIGITS = r"[1-9][0-9]{0,24}"
_NUMBER = rf"(?:0|{_DIGITS}(?:\|{_DIGITS})?)"
_STEP = re.compile(rf"({_NUMBER})([-+*/])({_NUMBER})=({_NUMBER}):({_NUMBER}(?: {_NUMBER}){{0,4}})")

# Longer than anything legal: nothing longer is parsed, nor kept in a cache.
_TEXT_CHARS_MAX = 512
_QUOTE_CHARS_MAX = 60


@dataclass(frozen=True, slots=True)
class Puzzle:
    """The numbers in ascending order, and the target that they must make."""

    numbers: State
    target: Number

    @property
    def prompt(self) -> str:
        """The canonical form: `4 5 6 10>24`."""
        return f"{_format_state(self.numbers)}>{_format(self.target)}"


class CountdownRule(Rule):
    """The rule "countdown", a checker of whole chains.

    A step that is not the last scores 1.0 if it and all before it are right, else 0.0. The last scores 1.0 only if
    the chain is a solution: every step is right and the one number left is the target.
    """

    name = "countdown"
    revision = "1"

    def normalise_problem(self, text: str) -> str:
        """See `Rule`: `4,10 5 6` becomes `4 5 6 10>24`."""
        return parse_problem(text).prompt

    def score(self, problem: str, steps: Sequence[str], reference: str) -> list[float]:
        """See `Rule`. The problem states the target, so the reference is not needed."""
        puzzle = parse_problem(problem)
        right, state = _walk(puzzle, steps)
        scores = [float(step) for step in right]
        if scores and state != (puzzle.target,):
            scores[-1] = 0.0
        return scores


def check_steps(puzzle: Puzzle, steps: Sequence[str]) -> list[bool]:
    """For each step, with or without its newline, whether it and all before it are right."""
    return _walk(puzzle, steps)[0]


def is_solution(puzzle: Puzzle, steps: Sequence[str]) -> bool:
    """Whether all steps are right and leave the target alone."""
    return _walk(puzzle, steps)[1] == (puzzle.target,)


def parse_problem(text: str) -> Puzzle:
    """The puzzle that a text states, as people type it: `4 5 6 10`, `4,5,6,10 > 24`; the default target is 24.

    Raises:
        ProblemError: it states none; the message says what is wrong, where, and what is expected.
    """
    if len(text) > _TEXT_CHARS_MAX:
        raise _problem_error(text, f"it has {len(text)} characters, more than {_TEXT_CHARS_MAX}")
    return _parse_problem(text)


@lru_cache(maxsize=1 << 14)
def _parse_problem(text: str) -> Puzzle:
    numbers_text, bar, target_text = text.partition(">")
    words = numbers_text.replace(",", " ").split()
    numbers = [_parse_whole(text, word, NUMBER_MAX, "number") for word in words]
    if not NUMBERS_MIN <= len(numbers) <= NUMBERS_MAX:
        raise _problem_error(text, f"it has {len(numbers)} numbers" if len(numbers) != 1 else "it has 1 number")
    if not bar:
        return Puzzle(tuple(sorted(numbers)), TARGET_DEFAULT)
    targets = target_text.split()
    if len(targets) != 1:
        raise _problem_error(text, f"one target must follow '>', not {_quote(target_text.strip())}")
    return Puzzle(tuple(sorted(numbers)), _parse_whole(text, targets[0], TARGET_MAX, "target"))


def _parse_whole(text: str, word: str, highest: int, noun: str) -> int:
    if not (word.isascii() and word.isdigit()):
        kind = "positive whole number" if any(map(str.isdigit, word)) else "number"
        raise _problem_error(text, f"{_quote(word)} is not a {kind}")
    # `int` refuses thousands of digits; leading zeros are what people type.
    digits = word.lstrip("0")
    if len(digits) > len(str(highest)) or not 1 <= int(digits or "0") <= highest:
        raise _problem_error(text, f"the {noun} {_quote(word)} is not between 1 and {highest}")
    return int(digits)


def _problem_error(text: str, fault: str) -> ProblemError:
    return ProblemError(f"{_quote(text.strip())} is no puzzle: {fault}; {EXPECTED}")


def _quote(text: str) -> str:
    return repr(text if len(text) <= _QUOTE_CHARS_MAX else f"{text[: _QUOTE_CHARS_MAX - 1]}…")


def _walk(puzzle: Puzzle, steps: Sequence[str]) -> tuple[list[bool], State | None]:
    """For each step whether all is right so far, and the state at the end; None if a step is wrong."""
    state: State | None = puzzle.numbers
    right = []
    for step in steps:
        state = None if state is None or len(step) > _TEXT_CHARS_MAX else _state_after(state, step)
        right.append(state is not None)
    return right, state


# Chains that grow are sent again and again, and siblings share their prefix.
@lru_cache(maxsize=1 << 16)
def _state_after(state: State, step: str) -> State | None:
    """The numbers left after a step; None if it is wrong in any respect."""
    match = _STEP.fullmatch(step.removesuffix("\n"))
    if match is None:
        return None
    left, right, result = _parse(match[1]), _parse(match[3]), _parse(match[4])
    if left is None or right is None or result is None or _compute(left, match[2], right) != result:
        return None
    rest = list(state)
    for operand in (left, right):
        if operand not in rest:
            return None
        rest.remove(operand)
    after = tuple(sorted((*rest, result)))
    return after if _format_state(after) == match[5] else None


def _compute(left: Number, operator: str, right: Number) -> Number | None:
    """`left operator right`; None where it is negative or a division by zero."""
    if operator == "+":
        return left + right
    if operator == "*":
        return left * right
    if operator == "-":
        return left - right if left >= right else None
    return Fraction(left) / right if right else None


def _parse(text: str) -> Number | None:
    """The value of `6` or `8|3`; None if it is not in lowest terms."""
    above, bar, below = text.partition("|")
    if not bar:
        return int(above)
    numerator, denominator = int(above), int(below)
    if denominator == 1 or math.gcd(numerator, denominator) != 1:
        return None
    return Fraction(numerator, denominator)


def _format(value: Number) -> str:
    return str(value).replace("/", "|")


def _format_state(state: State) -> str:
    return " ".join(map(_format, state))
