"""What docs/operate tells operators to type and to look at is there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ramify.cli.main import run

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "operate").glob("*.md"))
GROUPS = {"keys", "tenants", "verifier"}  # of commands
OF_RAY = re.compile(r"ray_node_\w+")


@pytest.fixture(params=PAGES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> str:
    return str(request.param.read_text())


@pytest.mark.parametrize("file", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(file: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", file.read_text()) if "://" not in link]
    assert links
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_metrics_are_told_by_somebody(page: str) -> None:
    """docs/metrics.md is held against a running system."""
    told = (DOCS / "metrics.md").read_text()
    names = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:ray|ramify)_[a-z]+_\w+", page)}
    assert {name for name in names if f"`{name}`" not in told and not OF_RAY.fullmatch(name)} == set()


def test_alerts_are_raised_by_somebody(page: str) -> None:
    groups = yaml.safe_load((ROOT / "infra" / "prometheus" / "rules.yaml").read_text())["groups"]
    raised = {rule.get("alert") for group in groups for rule in group["rules"]}
    assert {*re.findall(r"\[(Ramify\w+)\]", page)} <= raised


def test_values_are_the_charts(page: str) -> None:
    values = yaml.safe_load((ROOT / "helm" / "ramify" / "values.yaml").read_text())
    named = re.findall(r"`((?:%s)\.[\w.]+)" % "|".join(values), page)  # noqa: UP031 # braces
    assert [path for path in named if not path.startswith("engines.groups.") and _at(values, path) is KeyError] == []


def test_commands_of_ramify_are_there(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    there = capsys.readouterr().out
    for line in re.findall(r"(?:^|-- |operator |`)(ramify [a-z][^`\n|>]*)", page, re.MULTILINE):
        words = shlex.split(line)[1:]
        assert f"\n  {words[0]} " in there, line
        if options := [word.partition("=")[0] for word in words if word.startswith("--")]:
            assert run([*words[: 2 if words[0] in GROUPS else 1], "--help"]) == 0, line
            told = capsys.readouterr().out
            assert [option for option in options if option not in told] == [], line


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(values, dict) or name not in values:
            return KeyError
        values = values[name]
    return values
