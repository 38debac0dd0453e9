"""Every guarantee has a test that bears its number, and docs/guarantees.md names tests that there are."""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUARANTEES = range(1, 11)

Named = dict[int, set[str]]


def in_tests() -> Named:
    """The tests of each guarantee, as file::name."""
    found: Named = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for number, name in re.findall(r"^(?:async )?def (?=test_guarantee_)(?=\w+?_(\d\d)_)(\w+)", path.read_text(), re.M):
            found[int(number)].add(f"{path.relative_to(ROOT)}::{name}")
    return found


def in_docs() -> Named:
    """The tests that each section names, likewise."""
    sections = re.split(r"^## (\d+)\. ", (ROOT / "docs" / "guarantees.md").read_text(), flags=re.M)[1:]
    return {
        int(number): set(re.findall(r"`(tests/\S+::\w+)`", text))
        for number, text in zip(sections[::2], sections[1::2], strict=True)
    }


def test_every_guarantee_is_shown_by_a_test() -> None:
    found = in_tests()
    assert [number for number in GUARANTEES if not found[number]] == []
    assert set(found) == set(GUARANTEES), "a test bears a number that is none"


def test_the_docs_name_the_tests_that_there_are() -> None:
    tests, docs = in_tests(), in_docs()
    assert list(docs) == list(GUARANTEES)
    for number in GUARANTEES:
        assert docs[number], f"nothing shows guarantee {number}"
        assert docs[number] <= tests[number], f"of guarantee {number} the docs name tests that are not there"
