"""What the release before says on a wire, this one understands, and the other way round."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.upgrade.releases import ROOT, previous


def test_no_message_or_method_has_changed_its_meaning(tmp_path: Path) -> None:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    if buf is None:
        pytest.skip("no buf (pip install -e '.[dev]')")
    before = previous(tmp_path).root / "protos"
    told = subprocess.run([buf, "breaking", ROOT / "protos", "--against", before], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
