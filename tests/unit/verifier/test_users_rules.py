"""Rules of the user's, as pip would install them: a package and its entry points."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import StartupError
from ramify.verifier.rules import RULES, known_rules, load_rule, rule_here

DOCS = Path(__file__).parents[3] / "docs" / "verifier.md"

ODD = """
from ramify.verifier.rules import Rule

class Named(Rule):
    revision = "1"

    def __init__(self, name, answer):
        self.name, self.answer = name, answer

    def score(self, problem, steps, reference):
        return self.answer(steps)

class Bare(Rule):
    name = "bare"

    def score(self, problem, steps, reference):
        return [1.0]

class Unfinished(Rule):
    name, revision = "unfinished", "1"

few = Named("few", lambda steps: [1.0])
nan = Named("nan", lambda steps: [float("nan")] * len(steps))
high = Named("high", lambda steps: [1.5] * len(steps))
text = Named("text", lambda steps: ["good"] * len(steps))
crash = Named("crash", lambda steps: 1 / 0)
math = Named("math", lambda steps: [0.0] * len(steps))
other = Named("another", lambda steps: [0.0] * len(steps))
number = 5
"""
NAMES = ("few", "nan", "high", "text", "crash", "math", "other", "number", "gone", "bare", "unfinished")
CLASSES = {"bare": "Bare", "unfinished": "Unfinished"}


def install(folder: Path, module: str, source: str, entries: list[str]) -> None:
    """Lay a package out as pip does."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text("\n".join(["[ramify.rules]", *entries]) + "\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    load_rule.cache_clear()
    yield tmp_path
    load_rule.cache_clear()
    for module in ("my_rules", "odd_rules"):
        sys.modules.pop(module, None)


@pytest.fixture
def odd(site: Path) -> Path:
    install(site, "odd_rules", ODD, [f"{name} = odd_rules:{CLASSES.get(name, name)}" for name in NAMES])
    return site


def test_the_example_of_the_docs(site: Path) -> None:
    """The package that the docs show is installed as it stands there, and judges."""
    shown = DOCS.read_text(encoding="utf-8")
    source = re.search(r"```python\n# my_rules\.py\n(.*?)```", shown, re.DOTALL)
    entry = re.search(r'\[project\.entry-points\."ramify\.rules"\]\n(\w+) = "(.*?)"', shown)
    assert source is not None
    assert entry is not None
    assert len(source[1].strip().splitlines()) <= 15
    install(site, "my_rules", source[1], [f"{entry[1]} = {entry[2]}"])
    scorer = RuleScorer(load_rule(entry[1]))
    chains = [Chain("p", ("ab\n", "abc")), Chain("p", ("a" * 300, "b"))]
    assert scorer.score(chains) == [ChainScores([1.0, 1.0]), ChainScores([0.0, 1.0])]
    assert scorer.name == entry[1]
    assert scorer.revision == "1"


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no rule 'nothing'; there is countdown, math, bare, crash, "),
        ("gone", "rule 'gone' (odd_rules:gone) cannot be loaded: AttributeError: "),
        ("unfinished", "rule 'unfinished' (odd_rules:Unfinished) cannot be loaded: TypeError: Can't instantiate abstract class"),
        ("number", "rule 'number' (odd_rules:number) is int, which does not derive from ramify.verifier.rules.base.Rule"),
        ("bare", "rule 'bare' (odd_rules:Bare) lacks the text 'revision'"),
        ("other", "rule 'other' (odd_rules:other) calls itself 'another'; give the entry point and the rule one name"),
    ],
)
def test_what_is_no_rule_says_why(name: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StartupError, match=re.escape(message)):
        load_rule(name)
    assert rule_here(name) is None
    assert (message in caplog.text) == (name != "nothing"), "the gateway may know fewer rules than the verifier"


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few", "rule 'few' failed: it gave 1 scores for 2 steps"),
        ("nan", "the model gave nan for step 1, no number from 0 to 1"),
        ("high", "the model gave 1.5 for step 1, no number from 0 to 1"),
        ("text", "rule 'text' failed: ValueError: could not convert string to float: 'good'"),
        ("crash", "rule 'crash' failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_rule_that_fails_is_an_error_of_the_chain(name: str, message: str) -> None:
    good, bad = RuleScorer(load_rule("few")), RuleScorer(load_rule(name))
    assert good.score([Chain("p", ("a",))]) == [ChainScores([1.0])]
    chains = ChainColumns.of([Chain("p", ("a", "b"))])
    (found,) = bad.score_columns(chains).checked(chains).faults
    assert found.error is ChainError.MODEL
    assert found.message.startswith(message)


def test_nothing_is_imported_before_it_is_asked_for(odd: Path) -> None:
    (odd / "odd_rules.py").write_text("raise ImportError('not now')")
    assert known_rules() == ("countdown", "math", *sorted(set(NAMES) - {"math"}))
    assert load_rule("math") is rule_here("math") is RULES["math"], "ours hide the user's"
    with pytest.raises(StartupError, match="cannot be loaded: ImportError: not now"):
        load_rule("few")
    assert rule_here("") is None
