"""What answer a text gives, by example and against Python's own regular expressions."""

import pickle
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.scheduler.policies.extract import PROGRAM_MAX, TEXT_CHARS_MAX, Extract

BOXED = {
    r"\boxed{5}": "5",
    r"so \( x = \boxed{ \frac{1}{2} } \).": r"\frac{1}{2}",
    r"\boxed{1}, no, \boxed{2}; done": "2",
    r"\fbox{7} and {braces}": "7",
    r"\boxed {8}": "8",
    r"\boxed{\{1,2\}}": r"\{1,2\}",
    r"\boxed{\left\{ x : x > 0 \right.}": r"\left\{ x : x > 0 \right.",
    r"\boxed{\text{say \boxed{5}}}": "5",  # the one that begins last
    r"\boxed 5": "5",
    r"$\boxed 5$, as was to be shown": "5",
    r"\(\boxed -3\)": "-3",
    r"an escaped one, \\boxed{9}": "9",
    r"a } too many { and \boxed{4}": "4",
    r"\boxed{3} then \boxed{2": "3",  # the second is never closed
    r"\boxed{6}, put in \boxed{} as asked": "6",
    r"\boxed{ }": "",
    r"\boxed{1": "",
    r"\boxedminipage{1}": "",
    r"\boxed5": "",
    "no box": "",
    "": "",
}
PATTERNS: list[tuple[str, str, str]] = [
    (r"-?\d+(?:\.\d+)?", "1 and 23 and -4.5 apples", "-4.5"),
    (r"(?i)answer is:? (.+)", "The answer is 1.\nThe ANSWER IS: 2 \n", "2"),
    (r"(?P<unit>\w+)=(?P<answer>\d+)", "a=1 b=2", "2"),
    (r"A(\d)|B", "A1 B", "1"),  # the group took no part in the last match
    (r"#### (.*)", "#### 5\n#### ", ""),  # it took part and said nothing
    (r"(?m)^(\d+)$", "12\nx 13\n", "12"),
    (r"^\d+", "12 13", "12"),
    (r"(?s)<a>(.*?)</a>", "<a>1</a><a>2\n3</a>", "2\n3"),
    (r"[^\s]+", "größer 東京", "東京"),
    (r"\d", "none", ""),
    (r"\b", "a", ""),
]
BAD_PATTERNS = {
    "foo(?=a)": ["invalid perl operator", "character 4", "'(?='", "no look-around"],
    r"(a)\1": ["invalid escape sequence", "character 4", "no back-references"],
    "ab**": ["bad repetition operator", "character 3", "'**'"],
    "(a": ["missing )"],
    "a)(b": ["unexpected )"],
    r"x\Z": ["invalid escape sequence", r"\z for \Z"],
    r"\d*": ["matches where nothing is"],
    "a|": ["matches where nothing is"],
    r"\pL{1,200}": ["too large"],
    ".{1,900}": ["too large"],
    "a" * 513: ["has 513 characters", "512"],
}


@pytest.mark.parametrize("text", BOXED)
def test_boxed(text: str) -> None:
    assert Extract("boxed")(text) == BOXED[text]


@pytest.mark.parametrize(("pattern", "text", "wanted"), PATTERNS)
def test_pattern(pattern: str, text: str, wanted: str) -> None:
    assert Extract("pattern", pattern)(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("a\nb\n", "b"), ("a\n  b c \n \n\t\n", "b c"), ("a\r\nb\r\n", "b"), ("", ""), (" \n ", "")]
)
def test_last_line(text: str, wanted: str) -> None:
    assert Extract("last_line")(text) == wanted


@pytest.mark.parametrize("pattern", BAD_PATTERNS)
def test_a_bad_pattern_is_refused_with_what_is_wrong_and_where(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern") as refused:
        Extract("pattern", pattern)
    assert [said for said in BAD_PATTERNS[pattern] if said not in str(refused.value)] == []


def test_a_rule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of last_line, boxed, pattern"):
        Extract("first_line")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pattern must be given"):
        Extract("pattern")
    with pytest.raises(ValueError, match="nowhere else"):
        Extract("boxed", r"\d+")


def test_only_the_end_of_a_text_is_looked_at() -> None:
    for extract, answer in ((Extract("boxed"), r"\boxed{1}"), (Extract("pattern", "(1)"), "1")):
        assert extract(answer + " " * (TEXT_CHARS_MAX - len(answer))) == "1"
        assert extract(answer + " " * TEXT_CHARS_MAX) == ""


@pytest.mark.parametrize(
    ("rule", "text", "wanted"),
    [
        (Extract("boxed"), r"<think>\boxed{1}</think> so \boxed{2}", "2"),
        (Extract("boxed"), r"<think>\boxed{1}</think> so 2", ""),
        (Extract("boxed"), r"</think>\boxed{1}</think>", ""),
        (Extract("pattern", r"(\d)"), "1</think>2</think> none", ""),
        (Extract("last_line"), "thoughts</think>\n", ""),
        (Extract("last_line"), "thoughts</think>it is 7", "it is 7"),
        (Extract("last_line"), "no thoughts\nit is 7", "it is 7"),
    ],
)
def test_thoughts_hold_no_answer(rule: Extract, text: str, wanted: str) -> None:
    assert replace(rule, thoughts_end="</think>")(text) == wanted
    assert replace(rule, thoughts_end="</think>")("x" * 3 * TEXT_CHARS_MAX + text) == wanted


@pytest.mark.parametrize("pattern", [r"((?:a*)*)*b", r"(a*)b|a", r"(.?){350}00000001|.", "[^a-z]{0,300}x|."])
def test_no_pattern_takes_exponential_or_quadratic_time(pattern: str) -> None:
    """Each takes more than this by Python's `re`, or if its matches are sought one by one; 0.1 s is usual."""
    extract = Extract("pattern", pattern)
    for text in ("a" * TEXT_CHARS_MAX, "0" * TEXT_CHARS_MAX):
        began_s = time.process_time()
        extract(text)
        assert time.process_time() - began_s < 2


def test_a_rule_is_a_value() -> None:
    one = Extract("pattern", r"(\d+)")
    assert pickle.loads(pickle.dumps(one)) == one == Extract("pattern", r"(\d+)")
    assert len({one, Extract("pattern", r"(\d+)"), Extract("boxed")}) == 2


def test_patterns_as_people_write_them_are_small_enough() -> None:
    for pattern in (r"(?i)(?:final answer|the answer is|answer:)\s*(?P<answer>.{1,200})", r"[\pL\pN]+\s[\pL\pN]+", r"\pL+$"):
        assert Extract("pattern", pattern)("the answer is yes or") != ""
    assert PROGRAM_MAX >= 4096


# What both syntaxes understand alike; nothing repeats what can be empty, where they differ.
ATOM = st.sampled_from(["a", "b", "[ab]", ".", r"\d", "[^a]", " "])
PIECE = st.tuples(ATOM, st.sampled_from(["", "", "+", "*", "?", "+?", "*?", "{1,2}"])).map("".join)
SEQUENCE = st.lists(PIECE, min_size=1, max_size=4).map("".join)
PATTERN = st.tuples(
    SEQUENCE, SEQUENCE, SEQUENCE, st.sampled_from(["{0}({1}){2}", "({0}|{1}){2}", "{0}|({1})", "{0}{1}|{2}"])
).map(lambda drawn: drawn[3].format(*drawn[:3]))


@given(PATTERN.filter(lambda pattern: not re.fullmatch(pattern, "")), st.text("ab1 \n", max_size=24))
def test_the_last_match_is_that_of_a_search_from_left_to_right(pattern: str, text: str) -> None:
    said = [match[match.re.groups and 1] for match in re.finditer(pattern, text)]
    took_part = [each for each in said if each is not None]
    assert Extract("pattern", pattern)(text) == (took_part[-1].strip() if took_part else "")


BALANCED = st.recursive(
    st.text("ab1 ,\n", max_size=4) | st.sampled_from([r"\{", r"\}", r"\frac", "\\\\"]),
    lambda inner: st.lists(inner, max_size=4).map("".join) | inner.map(lambda text: "{" + text + "}"),
    max_leaves=12,
)


@given(st.text("ab{}$ \n"), BALANCED, st.text("ab{}$ \n"))
def test_a_box_holds_all_that_is_balanced(before: str, content: str, after: str) -> None:
    assert Extract("boxed")(rf"{before}\boxed{{{content}}}{after}") == content.strip()


@given(
    st.text("\\{}boxedf $\n1", max_size=60), st.sampled_from([Extract("boxed"), Extract("last_line"), Extract("pattern", "(.)")])
)
def test_any_text_gives_a_part_of_itself(text: str, extract: Extract) -> None:
    found = extract(text)
    assert found in text
    assert found == found.strip()
