"""Which answers are the same, and how they are divided into groups."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.policies.compare import NUMBER_CHARS_MAX, exact, groups, number, numbers, plain, same_by

NUMBERS = {
    "12": 12,
    " -12 ": -12,
    "+1": 1,
    "− 3": -3,
    "007": 7,
    "1,234": 1234,
    "-1,234,567.5": Fraction(-2469135, 2),
    ".5": Fraction(1, 2),
    "5.": 5,
    "1.2e-5": Fraction(12, 10**6),
    "1E5": 10**5,
    r"1.2 \times 10^{-5}": Fraction(12, 10**6),
    "2×10^3": 2000,
    "2 * 10**3": 2000,
    "1/2": Fraction(1, 2),
    "-3 / 4": Fraction(-3, 4),
    "0.5/0.25": 2,
    "1 1/2": Fraction(3, 2),
    "-1 1/2": Fraction(-3, 2),
    "50%": Fraction(1, 2),
    r"12.5 \%": Fraction(1, 8),
    "9" * NUMBER_CHARS_MAX: 10**NUMBER_CHARS_MAX - 1,
}
NO_NUMBERS = [
    "",
    ".",
    "-",
    "1/0",
    "1,23",
    "12,34,567",
    "1 000",
    "1_000",
    "0x10",
    "nan",
    "inf",
    "1e100",
    "1e",
    "٣",
    "x",
    "1 2",
    "$5",
]
SAME_NUMBERS = [("1/2", "0.5"), ("33.3%", "0.333"), ("1,000", "1e3"), ("3", "3.0"), ("0", "-0.0"), ("yes", " yes ")]
OTHER_NUMBERS = [("1", "1.001"), ("1", "-1"), ("1", "one"), ("yes", "Yes"), ("1,23", "123"), ("0", "")]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_exactly(text: str) -> None:
    assert number(text) == NUMBERS[text]


@pytest.mark.parametrize("text", [*NO_NUMBERS, "9" * (NUMBER_CHARS_MAX + 1)])
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


def test_the_widest_numbers_fit_a_float() -> None:
    for text in ("9" * 61 + "e99", "1e-99", "9" * 61 + "/.1", "." + "0" * 57 + "1/9999"):
        assert len(text) <= NUMBER_CHARS_MAX
        value = number(text)
        assert value is not None
        assert 0 < float(value) < math.inf


@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_numbers_are_compared_by_value_and_texts_as_texts(tolerance: float) -> None:
    same = numbers(tolerance)
    assert [pair for pair in SAME_NUMBERS if not (same(*pair) and same(*pair[::-1]))] == []
    assert [pair for pair in OTHER_NUMBERS if same(*pair) or same(*pair[::-1])] == []


def test_tolerance_is_relative_and_near_zero_absolute() -> None:
    same = numbers(0.01)
    assert same("1000", "1009")
    assert not same("1000", "1011")
    assert same("0.001", "-0.008")
    assert not same("0", "0.011")
    assert not numbers(0.0)("1e20", "100000000000000000001")


@given(st.decimals(-1000, 1000, places=3), st.decimals(-1000, 1000, places=3), st.sampled_from([0.0, 1e-6, 0.1, 1.0]))
def test_tolerance_is_that_of_isclose(a: Decimal, b: Decimal, tolerance: float) -> None:
    wanted = math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance)
    assert numbers(tolerance)(f"{a:f}", f"{b:f}") == wanted


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**15))
def test_thousands_fractions_and_percent_say_the_same_number(over: int, under: int) -> None:
    assert number(f"{over:,}") == number(str(over)) == over
    assert number(f"{over:,}/{under}") == Fraction(over, under)
    assert number(f"{over}%") == Fraction(over, 100)


def test_exact_minds_all_but_white_space() -> None:
    assert exact("  a\n b\t", "a b")
    assert not exact("a b", "ab")
    assert not exact("A", "a")
    assert not exact("ﬁ", "fi")
    assert not exact("\u00e9", "e\u0301")
    assert plain(" a \u00a0 b ") == "a b"


def test_a_tolerance_makes_groups_by_their_first_answer() -> None:
    """1.0 equals 1.1, and 1.1 equals 1.2, but 1.0 does not equal 1.2: the order decides."""
    same = numbers(0.1)
    assert groups(["1.0", "1.1", "1.2"], same) == [0, 0, 1]
    assert groups(["1.1", "1.0", "1.2"], same) == [0, 0, 0]
    assert groups(["1.2", "1.0", "1.1"], same) == [0, 1, 0]


def test_no_answer_is_in_no_group() -> None:
    assert groups(["", "a", "", "b", "a"], exact) == [-1, 0, -1, 1, 0]
    assert groups(["", "1", "", "1.0"], numbers(0.0)) == [-1, 0, -1, 0]
    assert groups([], exact) == []
    assert groups([" \n", "a"], exact) == [-1, 0]


def test_no_pair_is_compared_twice_and_no_text_with_itself() -> None:
    asked: list[tuple[str, str]] = []

    def same(a: str, b: str) -> bool:
        asked.append((a, b))
        return a[0] == b[0]

    assert groups(["a1", "b1", "a1", "a2", "c1", "b1", "a2"], same) == [0, 1, 0, 0, 2, 1, 0]
    assert asked == [("a1", "b1"), ("a1", "a2"), ("a1", "c1"), ("b1", "c1")]


def plain_groups(answers: list[str], same: Callable[[str, str], bool]) -> list[int]:
    """The definition, without memory or short cuts."""
    heads: list[str] = []
    found = []
    for answer in answers:
        if not answer:
            found.append(-1)
            continue
        equal = [group for group, head in enumerate(heads) if head == answer or same(head, answer)]
        if not equal:
            heads.append(answer)
        found.append(equal[0] if equal else len(heads) - 1)
    return found


ANSWERS = st.lists(st.sampled_from(["", "1", "1.0", "1.04", "1.09", "1.2", "110%", "6/5", "0", "a", "a ", "A", "b  c", "b c"]))


@given(ANSWERS, st.sampled_from([0.0, 0.05, 0.1]))
def test_groups_are_those_of_the_definition(answers: list[str], tolerance: float) -> None:
    assert groups(answers, same_by("number", tolerance)) == plain_groups(answers, numbers(tolerance))
    assert groups(answers, same_by("exact", tolerance)) == plain_groups(answers, exact)
    assert groups(answers, exact) == groups(answers, lambda a, b: exact(a, b))
