r"""What a worker of the rule "math" does: reads two answers with math-verify and compares them.

Of a chain the last `\boxed{}` counts, with what else is boxed on its line, or what follows "the final answer is"; else "answer:";
else the last formula or number. That is math-verify's own order. What a reasoning model thinks, up to the last `</think>`, does
not count. An answer in words must be boxed, or stand as a formula.

A reference is one formula, with or without dollars, or a text in which an answer is marked so; of the form `... #### 72` what
follows the mark. This module imports little: each worker imports it.
"""

import logging
import re
import resource
import signal
import traceback
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

LOAD_S = 60.0  # in which math-verify must have been imported
BYTES_MAX = 4 << 30  # of address space
ANSWER_CHARS_MAX = 4096  # at the end of a chain
ERROR_CHARS_MAX = 300
REFERENCES_MAX = 1024  # kept parsed in a worker

# Letters, three in a row, and no operator. math-verify reads a word as the product of its letters: "listen" would equal "silent".
PROSE = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_][^\d\\^_=<>+*/(){}\[\]|$%]*", re.DOTALL)
MARKED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
FORMULA = re.compile(r"\$[^$]+\$|\\[(\[]|\\boxed")
CHOICE = re.compile(r"\(?[A-D]\)?")

# math-verify reads 1e3 as a product with Euler's number, and 1 1/2 as 1.
NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?[eE][+-]?\d{1,4})|([+-]?)(\d+) (\d+/\d+)")


class Unreadable(NamedTuple):
    """A reference answer holds nothing that could be compared."""


class Answer(NamedTuple):
    """What is read in a text."""

    formulas: list[Any]  # of sympy; none: it can't be parsed
    text: str  # as it is written


def final(text: str) -> str:
    """The end of a chain's text, where its answer is; see the module."""
    text = text.rpartition("</think>")[2][-ANSWER_CHARS_MAX:]
    box = text.rfind("\\boxed")
    # Else math-verify would take a box that was thought better of, a few lines above, as one more answer.
    return text if box < 0 else text[text.rfind("\n", 0, box) + 1 :]


def judge(text: str, reference: str, cpu_s: float) -> bool | Unreadable | str:
    """Whether the answer in `text` is that of `reference`; or why that can't be told. Never raises.

    A worker that needs more processor time is ended by the kernel, so neither what hangs in C nor a verifier that was killed
    meanwhile keeps it alive.
    """
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, LOAD_S)
        import math_verify  # type: ignore[import-untyped]  # noqa: F401 - not on the time of the chain

        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no time limit of its own
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES_MAX if hard < 0 else min(hard, BYTES_MAX), hard))
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        right = _reference(reference)
        return _same(right, _read(text, choice=bool(CHOICE.fullmatch(right.text)))) if right else Unreadable()
    except Exception as error:
        return "".join(traceback.format_exception_only(error)).strip()[:ERROR_CHARS_MAX]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@lru_cache(maxsize=REFERENCES_MAX)
def _reference(text: str) -> Answer | None:
    text = text.rpartition("####")[2].strip()
    if PROSE.fullmatch(plain := _plain(text)):
        return Answer([], plain)
    if not FORMULA.search(text):
        text = f"${text.replace('$', '').replace('**', '^')}$"
    found = _read(text)
    return found if found.formulas or found.text else None


def _read(text: str, *, choice: bool = False) -> Answer:
    """The answer that math-verify finds in a text; with `choice`, "the answer is B" has one too."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse
    from sympy import Rational  # type: ignore[import-untyped]

    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]
    if choice:
        kinds.append(StringExtractionConfig(try_extract_without_anchor=False))
    found = parse(text, kinds, parsing_timeout=0, raise_on_error=True)
    written = _plain(next((each for each in reversed(found) if isinstance(each, str)), ""))
    if (value := _number(written)) is not None:
        return Answer([Rational(value.numerator, value.denominator)], written)
    formulas = [each for each in found if not isinstance(each, str)]
    if not formulas:
        _check_limits(written)
    return Answer(formulas, written)


def _check_limits(text: str) -> None:
    """Raises what kept math-verify from reading a formula if that was this machine; it keeps all reasons to itself."""
    from latex2sympy2_extended.latex2sympy2 import latex2sympy  # type: ignore[import-untyped]

    try:
        latex2sympy(text, normalization_config=None)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # it is none
        return


def _same(right: Answer, answer: Answer) -> bool:
    from math_verify import verify

    if answer.text and right.text.casefold() == answer.text.casefold():
        return True
    try:
        return bool(verify(right.formulas, answer.formulas, timeout_seconds=0, raise_on_error=True))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # as of 1/0, which has no value and so is not the right one
        return False


def _plain(text: str) -> str:
    return " ".join(MARKED.sub(r"\1", text).split())


def _number(text: str) -> Fraction | None:
    match = NUMBER.fullmatch(text)
    if match is None:
        return None
    if match[1]:
        return Fraction(match[1])
    value = int(match[3]) + Fraction(match[4])
    return -value if match[2] == "-" else value
