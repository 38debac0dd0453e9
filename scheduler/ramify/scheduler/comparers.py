"""Rules by which answers are compared, by name, and what a worker process runs of them.

A rule is one of `exact`, `number` (see `policies.compare`) and `math`, or the user's own: an entry point of the group
`ramify.compare` that loads a function `(a: str, b: str) -> bool`. This module imports little, as each worker imports it.
"""

import difflib
import logging
import math
import re
import resource
import signal
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, get_args

from ramify.scheduler.errors import SchedulerError
from ramify.scheduler.policies.compare import CompareRule, Same, number, numbers, plain, same_by

GROUP = "ramify.compare"
OURS = (*get_args(CompareRule), "math")

LOAD_S = 30.0  # in which a rule must have been imported
ERROR_CHARS_MAX = 300
MATH_CHARS_MAX = 1000  # longer texts are no formulas, and parsing takes time that grows fast with them
MATH_BYTES_MAX = 2 << 30  # of address space: sympy turns a power tower into digits as long as there is memory
FORMULAS_MAX = 256  # kept parsed in a worker

# math-verify reads a word as the product of its letters, and so would hold "listen" equal to "silent".
PROSE = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_][^\d\\^_=<>+*/(){}\[\]|$%]*", re.DOTALL)
MARKED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


class UnknownRule(SchedulerError):
    """A rule of comparison that isn't known here: the user's fault at submission; the message says which are."""


def known_rules() -> tuple[str, ...]:
    """Names of all rules, ours first. Nothing of the user's is imported for it."""
    return (*OURS, *sorted({entry.name for entry in entry_points(group=GROUP)} - {*OURS}))


def check_rule(name: str) -> None:
    """Raises `UnknownRule`, which lists the known rules, if `name` is none of them."""
    if name in OURS or name in (known := known_rules()):
        return
    close = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UnknownRule(f"compare is {name!r}{hint}, but must be one of {', '.join(known)}, or an entry point of the group {GROUP}")


def comparer(name: str, tolerance: float) -> Same:
    """The rule of that name. Imports what the rule needs: for a worker, not for a service.

    Args:
        name: one of `known_rules`; ours hide those of the user that have the same name.
        tolerance: of numbers, see `policies.compare.numbers`; a rule of the user's isn't told.

    Raises:
        UnknownRule: there is no such rule.
        Exception: whatever the import of a rule of the user's raises.
    """
    if name in get_args(CompareRule):
        return lambda a, b: same_by(name, tolerance)(a, b)  # type: ignore[arg-type]  # it is one of them
    if name == "math":
        return formulas(tolerance)
    check_rule(name)
    (entry, *_) = entry_points(group=GROUP, name=name)
    return _rule_of(entry.load())


def formulas(tolerance: float) -> Same:
    r"""Compares answers as formulas, by math-verify: `\frac{1}{2}` is `0.5`, and `\{1,2\}` is `\{2,1\}`.

    Two plain numbers are compared by `policies.compare.numbers`, and texts in words as texts whatever their case. Formulas that
    math-verify doesn't hold equal, but that have values, are the same if their values are within the tolerance. What can't be
    parsed equals only the same text. Not symmetric in a few cases: `a` is the reference, so `x=5` as `a` admits `5`.
    """
    from math_verify import verify  # type: ignore[import-untyped]  # slow to import: 1 s

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no time limit of its own

    def same(a: str, b: str) -> bool:
        a, b = (MARKED.sub(r"\1", text) if MARKED.fullmatch(text.strip()) else text for text in (a, b))
        if number(a) is not None and number(b) is not None:
            return numbers(tolerance)(a, b)
        if plain(a) == plain(b):
            return True
        if PROSE.fullmatch(a.strip()) or PROSE.fullmatch(b.strip()):
            return plain(a).casefold() == plain(b).casefold()
        if max(len(a), len(b)) > MATH_CHARS_MAX:
            return False
        parsed_a, parsed_b = _formula(a), _formula(b)
        if not parsed_a or not parsed_b:
            return False
        return bool(verify(list(parsed_a), list(parsed_b), timeout_seconds=0)) or _near(parsed_a[0], parsed_b[0], tolerance)

    return same


def ask(name: str, tolerance: float, a: str, b: str, pair_s: float) -> tuple[bool, str]:
    """In a worker: whether `a` and `b` are the same by the rule of that name, or else what went wrong; never raises.

    A worker that takes longer ends itself: the alarm is the kernel's, so neither a rule that hangs in C nor a scheduler that was
    killed meanwhile keeps it alive.
    """
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, LOAD_S)
        same = _loaded(name, tolerance)
        signal.setitimer(signal.ITIMER_REAL, pair_s)
        return (_with_little_memory(same, a, b) if name == "math" else same(a, b)), ""
    except BaseException as error:  # a rule of the user's may raise SystemExit as well
        return False, "".join(traceback.format_exception_only(error)).strip()[:ERROR_CHARS_MAX]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@lru_cache(maxsize=16)
def _loaded(name: str, tolerance: float) -> Same:
    return comparer(name, tolerance)


def _rule_of(loaded: Any) -> Same:
    # What is not a bool, as an array's `==` is not, must not travel back.
    rule: Callable[[str, str], Any] = loaded
    return lambda a, b: bool(rule(a, b))


def _with_little_memory(same: Same, a: str, b: str) -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MATH_BYTES_MAX if hard < 0 else min(hard, MATH_BYTES_MAX), hard))
    try:
        return same(a, b)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@lru_cache(maxsize=FORMULAS_MAX)
def _formula(text: str) -> tuple[Any, ...]:
    """What math-verify reads in `text`; empty: nothing."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Rational  # type: ignore[import-untyped]

    value = number(text)
    if value is not None:  # as formulas, 1e3 would be a product with Euler's number, and 1 1/2 would be 1
        return (Rational(value.numerator, value.denominator),)
    # It looks for formulas in a text. An answer is one; only where it is marked as such is there a text around it.
    if text.count("$") < 2 and not re.search(r"\\[(\[]", text):
        text = f"${text.replace('$', '').replace('**', '^')}$"
    return tuple(parse(text, [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=0))


def _near(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two expressions have values, and these are within the tolerance."""
    try:
        return math.isclose(float(a.doit()), float(b.doit()), rel_tol=tolerance, abs_tol=tolerance)
    except (AttributeError, TypeError, ValueError, OverflowError, ArithmeticError):
        return False
