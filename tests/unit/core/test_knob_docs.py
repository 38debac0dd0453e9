"""docs/knobs.md says what the code says."""

import re

from ramify.scheduler.policies.knobs import POLICIES
from tests.unit.core.knob_docs import PAGE, filled


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    assert filled(page) == page, "run `python -m tests.unit.core.knob_docs`"


def test_every_policy_has_its_paragraph() -> None:
    """What becomes of ended and of cut chains is prose, so that at least it can't be missing."""
    page = PAGE.read_text()
    for policy in POLICIES:
        paragraph = re.search(rf"^- \*\*{policy}\*\*: (.+?)(?=^- |^$)", page, re.MULTILINE | re.DOTALL)
        assert paragraph, f"no paragraph on {policy}"
        assert "nded" in paragraph[1], f"{policy}: what becomes of ended chains"
        assert "cut" in paragraph[1], f"{policy}: what becomes of cut chains"
