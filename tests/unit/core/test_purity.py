"""The core knows no clock, no chance, no I/O and no neighbour."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ramify.scheduler import shard

HERE = Path(shard.__file__).parent
SINGLE = (
    *("shard", "asking", "deciding", "landing", "spending", "collapse", "commits", "journal"),
    *("plan", "events", "commands", "placement", "errors", "slots", "snapshots", "remarks", "allocation", "autoscaling"),
)
CORE = [
    *sorted(HERE.glob("forest/*.py")),
    *sorted(HERE.glob("policies/*.py")),
    *(HERE / f"{name}.py" for name in SINGLE),
    HERE / "engines" / "base.py",
]
DATA_MODULES = {
    "abc",
    "__future__",
    "collections",
    "dataclasses",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "itertools",
    "math",
    "re",
    "typing",
}
LIBRARIES = {"numpy", "re2"}  # RE2 has no clock and does no I/O
PURE = ("forest", "policies", *SINGLE)
HEAVY = ("ray", "grpc", "google", "sqlalchemy", "pyarrow", "onnxruntime", "pydantic", "tokenizers", "typer", "rich", "torch")


def imports(file: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(HERE)))
def test_a_core_module_imports_numpy_data_modules_and_the_core(file: Path) -> None:
    for name in imports(file):
        root, *rest = name.split(".")
        if root == "ramify":
            assert rest[0] == "scheduler"
            assert rest[1] in PURE or rest[1:3] == ["engines", "base"], name
        else:
            assert root in DATA_MODULES | LIBRARIES, name


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(HERE)))
def test_a_core_module_calls_no_chance_and_no_clock_of_numpys(file: Path) -> None:
    """NumPy has a generator of its own, and Python an `open`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            assert node.attr not in ("random", "datetime64", "load", "save", "memmap", "fromfile"), node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "exec", "eval", "id", "hash", "set", "frozenset"), node.func.id


def test_importing_the_core_loads_nothing_heavy() -> None:
    modules = [f"ramify.scheduler.{name}" for name in ("shard", "journal", "placement", "policies.knobs")]
    code = f"import json, sys\nimport {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = json.loads(done.stdout)
    assert "ramify.scheduler.forest.forest" in loaded
    assert [name for name in loaded if name.split(".")[0] in (*HEAVY, "asyncio", "logging")] == []
    ours = [name for name in loaded if name.startswith("ramify.")]
    allowed = ("ramify.scheduler", "ramify.scheduler.engines", "ramify.scheduler.engines.base")
    assert [name for name in ours if name not in allowed and name.split(".")[2] not in PURE] == []


def test_there_are_core_modules() -> None:
    assert len(CORE) > 25
    assert all(file.is_file() for file in CORE)
    assert not (HERE.parent / "__init__.py").exists(), "ramify is a namespace package"
