import importlib

import pytest

from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.errors import EngineError
from ramify.verifier.backends.vllm import VllmReader
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Value
from tests.vllm.conftest import VLLM


@pytest.mark.skipif(not VLLM, reason="vLLM is not installed here: `make test-vllm` runs its tests where it is")
def test_vllm_is_there() -> None:
    assert importlib.import_module("vllm").__version__


@pytest.mark.skipif(VLLM, reason="vLLM is installed here")
def test_where_vllm_is_not_there_an_engine_says_how_to_get_it() -> None:
    with pytest.raises(EngineError, match=r"pip install 'ramify\[vllm\]'"):
        load_engine("vllm:model")


@pytest.mark.skipif(VLLM, reason="vLLM is installed here")
def test_where_vllm_is_not_there_a_verifier_says_how_to_get_it() -> None:
    with pytest.raises(StartupError, match=r"pip install 'ramify\[vllm\]'"):
        VllmReader("model", Value(), arguments={})
