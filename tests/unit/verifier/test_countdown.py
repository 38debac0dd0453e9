import contextlib
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ramify.verifier.errors import ProblemError
from ramify.verifier.rules import RULES
from ramify.verifier.rules.countdown import Puzzle, check_steps, is_solution, parse_problem

PUZZLE = parse_problem("4 5 6 10")
SOLUTION = ["10-4=6:5 6 6\n", "5*6=30:6 30\n", "30-6=24:24"]
ALPHABET = "0123456789+-*/=:| \n>"

Walk = tuple[Puzzle, list[str]]


def written(value: Fraction) -> str:
    return str(value).replace("/", "|")


def joined(state: list[Fraction]) -> str:
    return " ".join(written(value) for value in sorted(state))


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    """Legal steps at random until one number is left; the target is what it comes to."""
    state = [Fraction(number) for number in draw(st.lists(st.integers(1, 25), min_size=2, max_size=6))]
    numbers, steps = tuple(sorted(state)), []
    while len(state) > 1:
        left = state.pop(draw(st.integers(0, len(state) - 1)))
        right = state.pop(draw(st.integers(0, len(state) - 1)))
        results = {"+": left + right, "*": left * right}
        if left >= right:
            results["-"] = left - right
        if right:
            results["/"] = left / right
        operator = draw(st.sampled_from(sorted(results)))
        state.append(results[operator])
        steps.append(f"{written(left)}{operator}{written(right)}={written(state[-1])}:{joined(state)}\n")
    return Puzzle(numbers, state[0]), steps


def independent(puzzle: Puzzle, steps: list[str]) -> list[bool]:
    """`check_steps` told again, by splitting text and writing every value anew."""
    right: list[bool] = []
    state = [Fraction(number) for number in puzzle.numbers]
    for step in steps:
        right.append((not right or right[-1]) and independent_step(state, step.removesuffix("\n")))
    return right


def independent_step(state: list[Fraction], step: str) -> bool:
    """Whether a step is right; if so, does it to `state`."""
    try:
        terms = step.split("=")[0]
        operator = next(character for character in terms if character in "+-*/")
        left, right = (Fraction(text.replace("|", "/")) for text in terms.split(operator))
        result = {"+": left + right, "-": left - right, "*": left * right}[operator] if operator != "/" else left / right
    except (ValueError, ZeroDivisionError, StopIteration):
        return False
    after = list(state)
    for operand in (left, right):
        if operand not in after:
            return False
        after.remove(operand)
    after.append(result)
    if result < 0 or step != f"{written(left)}{operator}{written(right)}={written(result)}:{joined(after)}":
        return False
    state[:] = after
    return True


@given(walks())
def test_legal_walks_are_right(walk: Walk) -> None:
    puzzle, steps = walk
    assert check_steps(puzzle, steps) == [True] * len(steps) == independent(puzzle, steps)
    assert is_solution(puzzle, steps)
    assert not is_solution(puzzle, steps[:-1])
    assert not is_solution(Puzzle(puzzle.numbers, puzzle.target + 1), steps)


@given(walks(), st.data())
def test_corruptions_are_judged_as_an_independent_evaluation_does(walk: Walk, data: st.DataObject) -> None:
    puzzle, steps = walk
    which = data.draw(st.integers(0, len(steps) - 1))
    line = steps[which].removesuffix("\n")
    at = data.draw(st.integers(0, len(line)))
    inserted, removed = data.draw(st.sampled_from(["", *ALPHABET])), data.draw(st.integers(0, 1))
    steps[which] = line[:at] + inserted + line[at + removed :] + "\n"
    assert check_steps(puzzle, steps) == independent(puzzle, steps)


@given(st.lists(st.text(ALPHABET, max_size=20), max_size=4))
@example(["10-4=6:5 6 6"])
def test_noise_is_judged_as_an_independent_evaluation_does(steps: list[str]) -> None:
    assert check_steps(PUZZLE, steps) == independent(PUZZLE, steps)


@given(st.text(max_size=40), st.lists(st.text(max_size=30), min_size=1, max_size=3))
def test_any_text_gives_scores_or_a_problem_error(problem: str, steps: list[str]) -> None:
    with contextlib.suppress(ProblemError):
        scores = RULES["countdown"].score(problem, steps, "")
        assert len(scores) == len(steps)


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ("", "empty"),
        ("10-4=6", "no rest"),
        ("10-4=7:5 6 7", "arithmetic"),
        ("10-4=6:6 5 6", "order of the rest"),
        ("10-4=6:5 6", "a number is lost"),
        ("10-4=6:5 6 6 6", "a number is won"),
        ("10-4=6:5  6 6", "two spaces"),
        ("10-4=6: 5 6 6", "space after the colon"),
        ("10-4=6:5 6 6 ", "space at the end"),
        ("10-4=6:5 6 6\r\n", "carriage return"),
        ("10-4=6:5 6 6\n\n", "two newlines"),
        ("10 - 4=6:5 6 6", "spaces in the operation"),
        ("10-04=6:5 6 6", "leading zero"),
        ("10-4|1=6:5 6 6", "not in lowest terms"),
        ("4-10=-6:-6 5 6", "negative"),
        ("4/6=4|6:4|6 5 10", "not in lowest terms"),
        ("4/6=0.67:0.67 5 10", "decimal"),
        ("4+4=8:5 6 8 10", "an operand used twice"),
        ("7+4=11:5 6 11", "an operand that is not there"),
        ("10-４=6:5 6 6", "another script's digit"),
        ("1０-4=6:5 6 6", "another script's digit"),
        ("10-4=" + "6" * 10_000 + ":5 6 6", "endless"),
        ("10**4=10000:5 6 10000", "another operator"),
    ],
)
def test_wrong_steps(step: str, why: str) -> None:
    assert check_steps(PUZZLE, [step]) == [False], why
    assert check_steps(PUZZLE, [step, *SOLUTION[1:]]) == [False] * 3, why


def test_division_by_zero_is_wrong() -> None:
    assert check_steps(parse_problem("3 5 5"), ["5-5=0:0 3", "3/0=0:0"]) == [True, False]
    assert check_steps(parse_problem("3 5 5"), ["5-5=0:0 3", "0/3=0:0"]) == [True, True]


def test_a_step_after_the_last_is_wrong() -> None:
    assert check_steps(PUZZLE, [*SOLUTION, "24+0=24:24"]) == [True, True, True, False]
    assert not is_solution(PUZZLE, [*SOLUTION, ""])


@pytest.mark.parametrize(
    ("steps", "scores"),
    [
        (SOLUTION, [1.0, 1.0, 1.0]),
        (SOLUTION[:2], [1.0, 0.0]),  # right so far, but no solution
        (["10-4=6:5 6 6", "5+6=11:6 11", "6+11=17:17"], [1.0, 1.0, 0.0]),  # right throughout, but not 24
        (["10-4=7:5 6 7", *SOLUTION[1:]], [0.0, 0.0, 0.0]),
        ([], []),
    ],
)
def test_scores_of_whole_chains(steps: list[str], scores: list[float]) -> None:
    assert RULES["countdown"].score("4 5 6 10>24\n", steps, "ignored") == scores


def test_fractions() -> None:
    steps = ["3/4=3|4:3|4 1 6", "1-3|4=1|4:1|4 6", "6/1|4=24:24"]
    assert RULES["countdown"].score("1 3 4 6", steps, "") == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("4 5 6 10", "4 5 6 10>24"),
        ("10 6 5 4>24", "4 5 6 10>24"),
        ("4,5,6,10 > 24", "4 5 6 10>24"),
        (" 4, 5,\t6 ,10>24\n", "4 5 6 10>24"),
        ("999 1>9999", "1 999>9999"),
        ("04 5>007", "4 5>7"),
    ],
)
def test_problems_as_people_type_them(text: str, prompt: str) -> None:
    normalise = RULES["countdown"].normalise_problem
    assert normalise(text) == prompt == normalise(prompt)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("4 5 six 10", "'six' is not a number"),
        ("4 -5", "'-5' is not a positive whole number"),
        ("4 5.5", "'5.5' is not a positive whole number"),
        ("4 ５", "'５' is not a positive whole number"),
        ("", "it has 0 numbers"),
        ("4>24", "it has 1 number"),
        ("1 2 3 4 5 6 7", "it has 7 numbers"),
        ("4 0", "the number '0' is not between 1 and 999"),
        ("4 1000", "the number '1000' is not between 1 and 999"),
        ("4 5>0", "the target '0' is not between 1 and 9999"),
        ("4 5>10000", "the target '10000' is not between 1 and 9999"),
        ("4 5>", "one target must follow '>', not ''"),
        ("4 5>2 4", "one target must follow '>', not '2 4'"),
        ("4 5>2>4", "'2>4' is not a positive whole number"),
        ("4 5" + " " * 600, "it has 603 characters, more than 512"),
    ],
)
def test_bad_problems_are_explained(text: str, fault: str) -> None:
    with pytest.raises(ProblemError) as caught:
        parse_problem(text)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == (
        f"'{text.strip()}' is no puzzle: {fault}; write 2 to 6 positive whole numbers, e.g. '4 5 6 10' or '4 5 6 10>24'"
    )


def test_long_texts_are_quoted_in_part() -> None:
    with pytest.raises(ProblemError) as caught:
        parse_problem("4 " + "9" * 300)
    assert len(str(caught.value)) < 300
