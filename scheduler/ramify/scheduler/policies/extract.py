r"""Extraction: the answer that the text of a chain gives.

A pattern is the user's and runs in the loop that serves every job, so it is matched by RE2 (google-re2, the binding that RE2's
own authors keep): its time is bounded whatever the pattern, where Python's `re` can take exponential time and no check of a
pattern foretells it. RE2 has no clock and does no I/O, so the core stays pure.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import re2  # type: ignore[import-untyped]

ExtractRule = Literal["last_line", "boxed", "pattern"]

TEXT_CHARS_MAX = 4096  # from the end, where answers stand
# RE2 takes time linear in the text and in the program: 0.1 s at worst with these, 0.1 ms as a rule.
PATTERN_CHARS_MAX = 512
PROGRAM_MAX = 4096  # instructions
MEMORY_BYTES_MAX = 1 << 20  # of one compiled pattern

BOX_OR_BRACE = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)(?![A-Za-z]))(?P<space>\s*)(?P<brace>\{)?|\\.|[{}]", re.DOTALL)
END_OF_MATH = re.compile(r"\$|\\[)\]]|\n|\Z")
TOO_LARGE = "pattern too large - compile failed"  # RE2's words
NO_PERL = r"; RE2 has no look-around and no back-references, and it writes \z for \Z"


@dataclass(frozen=True, slots=True)
class Extract:
    r"""A rule of extraction, checked. It looks at the last `TEXT_CHARS_MAX` characters of a text.

    - `last_line`: the last line that isn't blank.
    - `boxed`: the content of the last closed `\boxed{...}` or `\fbox{...}` that isn't empty. Braces are balanced, `\{` and `\}`
      count as text, and `\boxed 5` is read to the end of the formula or line, as by Minerva (Lewkowycz et al. 2022,
      arXiv:2206.14858).
    - `pattern`: of the last match in which it took part, the group `answer` if the pattern has one, else its first group,
      else the whole. The syntax is RE2's: https://github.com/google/re2/wiki/Syntax.

    What stands before the last `thoughts_end` is not looked at.
    """

    rule: ExtractRule
    pattern: str = ""  # for `pattern` alone
    thoughts_end: str = ""  # what ends a reasoning model's thoughts; empty: nothing does

    def __post_init__(self) -> None:
        """Check the rule.

        Raises:
            ValueError: the rule is unknown, or the pattern is missing, not wanted, or no regular expression; says what and where.
        """
        if self.rule not in get_args(ExtractRule):
            raise ValueError(f"extract is {self.rule!r}, but must be one of {', '.join(get_args(ExtractRule))}")
        if bool(self.pattern) != (self.rule == "pattern"):
            raise ValueError("a pattern must be given where extract is pattern, and nowhere else")
        if self.pattern:
            check_pattern(self.pattern)

    def __call__(self, text: str) -> str:
        """The answer that `text` gives, without white space around it; empty: none was found."""
        if self.thoughts_end:
            text = text.rpartition(self.thoughts_end)[2]
        text = text[-TEXT_CHARS_MAX:]
        if self.rule == "last_line":
            return text.rstrip().rpartition("\n")[2].strip()
        return last_box(text) if self.rule == "boxed" else last_match(self.pattern, text)


def last_box(text: str) -> str:
    r"""The content of the box that begins last, of those that are closed and not empty; empty: there is none."""
    opened: list[int] = []  # for each open brace, where the content of its box begins; -1: it is no box's
    begin, content = -1, ""
    for token in BOX_OR_BRACE.finditer(text):
        start, said = -1, ""
        if token["box"] and not token["brace"] and token["space"]:
            start = token.end()
            said = text[start : END_OF_MATH.search(text, start).start()].strip()  # type: ignore[union-attr]  # \Z always matches
        elif token["brace"] or token[0] == "{":
            opened.append(token.end() if token["box"] else -1)
        elif token[0] == "}" and opened:
            start = opened.pop()
            said = text[start : token.start()].strip() if start > begin else ""
        if said:
            begin, content = start, said
    return content


def last_match(pattern: str, text: str) -> str:
    """What the last match of a checked `pattern` says, without white space around it; empty: there is none."""
    compiled = _compile(_repeated(pattern))
    match = compiled.match(text.encode("utf-8", "replace"))
    if match is None:
        return ""
    # Group 1 is ours, around the pattern.
    said = match[compiled.groupindex.get(b"answer", min(2, compiled.groups))] or b""
    return str(said, "utf-8", "replace").strip()


def check_pattern(pattern: str) -> None:
    """Raises `ValueError`, which says what is wrong and where, if answers can't be extracted by `pattern`."""
    if len(pattern) > PATTERN_CHARS_MAX:
        raise ValueError(f"pattern has {len(pattern)} characters, but may have {PATTERN_CHARS_MAX}")
    try:
        matches_nothing = _compile(pattern).fullmatch(b"")
        size = _compile(_repeated(pattern)).programsize
    except re2.error as error:
        what, _, where = error.args[0].decode("utf-8", "replace").partition(": ")
        if what != TOO_LARGE:
            place = f" at character {pattern.find(where) + 1}, {where!r}" if where not in ("", pattern) else ""
            hint = NO_PERL if what.startswith(("invalid perl", "invalid escape")) else ""
            raise ValueError(f"pattern {pattern!r} is no regular expression: {what}{place}{hint}") from error
        matches_nothing, size = None, PROGRAM_MAX + 1
    if size > PROGRAM_MAX:
        raise ValueError(f"pattern {pattern!r} is too large: repeat less, as in {{0,20}} for {{0,200}}")
    if matches_nothing:
        raise ValueError(f"pattern {pattern!r} matches where nothing is: ask for something, as in \\d+ for \\d*")


def _repeated(pattern: str) -> str:
    """Matches what all matches of `pattern`, one after the other, and all before them match; groups keep what came last.

    To look for one match after the other would take quadratic time: each may look at all of the text that is left.
    """
    return f"(?:(?s:.*?)({pattern}))+"


def _compile(pattern: str) -> Any:
    """RE2 keeps what it has compiled last, so this is fast after the first time. Raises `re2.error`."""
    return re2.compile(pattern.encode(), _OPTIONS)


def _options() -> Any:
    options = re2.Options()
    options.max_mem, options.log_errors = MEMORY_BYTES_MAX, False
    return options


_OPTIONS = _options()
