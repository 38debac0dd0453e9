"""What docs/metrics.md says there is."""

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
NAME = r"`((?:ray_|ramify_|process_)\w+)`"
OF_ALL = {"Shards": {"shard"}, "Engines": {"engine", "region", "model"}}  # labels that all metrics of a section have


@cache
def documented() -> dict[str, set[str]]:
    """The labels of each metric, by its name."""
    found: dict[str, set[str]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        for line in text.splitlines():
            cells = line.strip("|").split("|")
            row = line.startswith("| `")
            labels = re.findall("`(\\w+)`", cells[1]) if row and len(cells) > 2 else []
            for name in re.findall(NAME, cells[0] if row else line):
                found[name] = {*labels, *OF_ALL.get(title, ())}
    return found


@cache
def histograms() -> set[str]:
    """Those that are told as buckets."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `") and "| histogram: " in line]
    return {name for row in rows for name in re.findall(NAME, row.split("|")[1])}
