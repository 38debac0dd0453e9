"""Files that are read again when they change."""

from pathlib import Path

import pytest

from ramify.watched import Watched


def test_what_changes_is_read_and_what_can_t_be_used_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("20")
    found = Watched(lambda: int(first.read_text()) + int(second.read_text()), lambda _: [first, second], ValueError)
    assert (found.value, found.look()) == (21, False)
    second.write_text("30")
    assert (found.look(), found.value, found.look()) == (True, 31, False)
    second.write_text("many")
    assert (found.look(), found.look(), found.value) == (False, False, 31)
    assert caplog.text.count("all stays as it was") == 1
    second.unlink()
    assert (found.look(), found.value) == (False, 31)
    second.write_text("30")
    assert (found.look(), found.value) == (False, 31), "it says what it said"
    with pytest.raises(ValueError, match="many"):
        Watched(lambda: int("many"), lambda _: [], ValueError)
