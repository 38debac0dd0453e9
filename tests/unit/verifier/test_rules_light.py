import subprocess
import sys


def test_rules_import_neither_grpc_nor_onnxruntime() -> None:
    """The gateway imports them; in a fresh interpreter, for this one has imported everything."""
    program = "import sys, ramify.verifier.rules; print(sorted({'grpc', 'onnxruntime', 'numpy'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
