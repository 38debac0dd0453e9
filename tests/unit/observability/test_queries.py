"""Boards and alerts: their queries are PromQL about what docs/metrics.md knows; every alert has a page, every page an alert.

That what the page knows is what a running system tells is seen in tests/e2e/test_metrics.py.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.metrics import documented, histograms

ROOT = Path(__file__).parents[3]
BOARDS = sorted((ROOT / "infra" / "grafana").glob("*.json"))
RULES = [
    rule for group in yaml.safe_load((ROOT / "infra/prometheus/rules.yaml").read_text())["groups"] for rule in group["rules"]
]
SECTIONS = ["## Look at", "## Do", "## It is over when"]
ADDED = {"le", "instance"}  # labels by the histogram, and by Prometheus


def queries(board: Any) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"].removeprefix("label_values(").partition(",")[0]


def check(query: str) -> None:
    """It is PromQL, and asks for what there is, by labels that it has."""
    asked = set[str]()
    labels = set[str]()

    def look(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            asked.add(str(node.name))
            labels.update(matcher.name for matcher in node.matchers.matchers)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(query), look)
    known = documented()
    names = {re.sub("_(bucket|count|sum)$", "", name) if name not in known else name for name in asked}
    assert names <= known.keys(), query
    assert all(name.endswith("_bucket") for name in asked if name not in known), (
        f"{query}: sums and counts of Ray's are not exact"
    )
    assert ("histogram_quantile" in query) == bool(names & histograms()), query
    assert labels <= ADDED.union(*(known[name] for name in names)), query


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_panel_asks_for_what_there_is(path: Path) -> None:
    board = json.loads(path.read_text())
    found = list(queries(board))
    assert len(found) > 10
    for query in found:
        check(query)
    for panel in board["panels"]:
        told = [panel["type"] == "row", bool(panel.get("description")) and panel["datasource"]["uid"] == "${datasource}"]
        assert any(told), panel["title"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len({*places}) == len(places), "no panel lies on another one"
    assert len({panel["id"] for panel in board["panels"]}) == len(places)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_what_there_is_and_says_what_to_do(rule: Any) -> None:
    check(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    page = ROOT / rule["annotations"]["runbook_url"]
    assert page == ROOT / "docs" / "runbooks" / f"{rule['alert']}.md"
    text = page.read_text()
    assert text.startswith(f"# {rule['alert']}\n")
    assert re.findall("^## .*$", text, re.M) == SECTIONS


def test_every_runbook_has_its_alert_and_its_links_lead_somewhere() -> None:
    pages = {path.stem: path for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert pages.keys() == {rule["alert"] for rule in RULES}
    for path in pages.values():
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
