import importlib

import pytest

from tests.vllm.conftest import VLLM


@pytest.mark.skipif(not VLLM, reason="vLLM is not installed here: `make test-vllm` runs its tests in an environment of their own")
def test_vllm_is_there() -> None:
    assert importlib.import_module("vllm").__version__
