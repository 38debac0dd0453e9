import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.cli.verifier.solutions import LINE_BYTES_MAX, Broken, Solution, cut, read_solutions


def read(*lines: object, delimiter: str = "\n\n") -> list[Solution | Broken]:
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return [*read_solutions(io.BytesIO(b"\n".join(raw)), delimiter)]


@pytest.mark.parametrize(
    ("text", "delimiter", "steps"),
    [
        ("a\n\nb", "\n\n", ("a\n\n", "b")),
        ("a\n\nb\n\n", "\n\n", ("a\n\n", "b\n\n")),
        ("a\nb", "\n\n", ("a\nb",)),
        ("\n\na\n\n\n\n \n\nb", "\n\n", ("\n\na\n\n\n\n \n\n", "b")),
        ("a b", "", ("a b",)),
        ("ščř;☃;", ";", ("ščř;", "☃;")),
        ("a\n\n\nb", "\n\n", ("a\n\n", "\nb")),
        (" \n\n ", "\n\n", ()),
        ("...", ".", ("...",)),
        ("a... b.", ".", ("a...", " b.")),
    ],
)
def test_a_solution_is_cut_behind_its_delimiters(text: str, delimiter: str, steps: tuple[str, ...]) -> None:
    assert cut(text, delimiter) == steps


@given(st.text("ab \n", max_size=30), st.sampled_from(["", "\n", "\n\n", "ab"]))
def test_the_steps_are_the_text_and_none_is_blank(text: str, delimiter: str) -> None:
    steps = cut(text, delimiter)
    assert "".join(steps) == (text if text.strip() else "")
    assert all(step.strip() for step in steps)
    pieces = [piece for piece in (text.split(delimiter) if delimiter else [text]) if piece.strip()]
    assert len(steps) == len(pieces) or (steps, pieces) == ((text,), [])


def test_lines_as_people_have_them() -> None:
    found = read(
        b'\xef\xbb\xbf{"problem": "p", "solution": "a\\n\\nb"}',
        b"  ",
        {"problem": [4, 5, 6], "steps": ["a\n", "", "b"], "reference": 1.5, "id": 7},
        delimiter="\n\n",
    )
    assert [(each.line, each.chain) for each in found if isinstance(each, Solution)] == [
        (1, ("p", ("a\n\n", "b"), "")),
        (3, ("4 5 6", ("a\n", "", "b"), "1.5")),
    ]
    assert found[1].record["id"] == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nope", "is not JSON: Expecting value at column 1"),
        (b'{"problem": NaN}', "is not JSON: NaN is no number there"),
        (b'{"problem": "\xff"}', "byte 14 of the line is not UTF-8"),
        (b"[" * 200_000, "is not JSON: the brackets are nested too deep"),
        (b"1" * 5_000, "Exceeds the limit"),
        ([1], "is no JSON object"),
        ({}, "has no field 'problem', only an empty object"),
        ({"problem": "p", "text": "t"}, "has no field 'solution', only 'problem', 'text'"),
        ({"problem": " ", "solution": "s"}, "field 'problem' is empty"),
        ({"problem": {}, "solution": "s"}, "field 'problem' is an object; it must be text"),
        ({"problem": "p", "solution": "\n"}, "field 'solution' is empty"),
        ({"problem": "p", "solution": "s", "steps": ["s"]}, "has both 'steps' and 'solution'"),
        ({"problem": "p", "steps": []}, "field 'steps' is no list of texts, at least one"),
        ({"problem": "p", "steps": ["a", 5]}, "field 'steps' is no list of texts, at least one"),
        ({"problem": "p", "steps": ["\ud800"]}, "field 'steps': a step has half of a surrogate pair"),
        ({"problem": "p", "steps": ["s"] * 4_097}, "has 4,097 steps; at most 4,096 are scored"),
        ({"problem": "p", "solution": "s", "reference": []}, "is an empty list"),
        (b'{"problem": "' + b"x" * LINE_BYTES_MAX + b'"}', "is longer than 8,388,608 bytes"),
    ],
)
def test_a_broken_line_says_why_and_the_next_is_read(line: object, message: str) -> None:
    broken, good = read(line, {"problem": "p", "solution": "s"})
    assert isinstance(broken, Broken)
    assert (broken.line, good.line) == (1, 2)
    assert message in broken.message
    assert isinstance(good, Solution)
