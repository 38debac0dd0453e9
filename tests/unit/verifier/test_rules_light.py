import subprocess
import sys


def test_rules_import_neither_grpc_nor_onnxruntime_nor_algebra() -> None:
    """The gateway imports them; in a fresh interpreter, for this one has imported everything."""
    heavy = ("grpc", "onnxruntime", "numpy", "sympy", "math_verify", "pebble", "multiprocessing")
    program = f"import sys, ramify.verifier.rules; print(sorted({set(heavy)} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
