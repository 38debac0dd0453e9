"""An independent check of Game of 24 chains: it shares no code with the verifier's rule, which could not hide a fault from it."""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

_NUMBER = r"(\d+(?:\|\d+)?)"
_STEP = re.compile(rf"{_NUMBER}([-+*/]){_NUMBER}={_NUMBER}:((?:\d+(?:\|\d+)?)(?: \d+(?:\|\d+)?)*)")


def solves(numbers: Sequence[int], target: int, steps: Sequence[str]) -> bool:
    """Whether the steps use every number once and end in the target, each of them right in itself."""
    have = Counter(Fraction(number) for number in numbers)
    for step in steps:
        match = _STEP.fullmatch(step)
        if match is None:
            return False
        left, operator, right, result = _value(match[1]), match[2], _value(match[3]), _value(match[4])
        used = Counter((left, right))
        if any(have[number] < count for number, count in used.items()):
            return False
        if operator == "/" and right == 0:
            return False
        exact = {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[operator]
        have = have - used + Counter((exact,))
        if exact != result or have != Counter(_value(text) for text in match[5].split()):
            return False
    return have == Counter((Fraction(target),))


def _value(text: str) -> Fraction:
    return Fraction(text.replace("|", "/"))
