"""The verifier's reader on a real vLLM: its arguments, its cache, its life."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.verifier.backends.vllm import VllmReader
from ramify.verifier.backends.vllm_model import Classifier
from ramify.verifier.errors import ModelError, StartupError
from ramify.verifier.reading import Head, Labels, Pair, Value
from tests.vllm.reward_models import ARGUMENTS, CONTEXT, TAG, RewardModel, agree, chain, first


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return RewardModel("process", tmp_path_factory.mktemp("process"))


@pytest.fixture(scope="module")
def stepwise(model: RewardModel) -> Iterator[VllmReader]:
    """With vLLM's default for process reward models."""
    pooler = f'{{"tok_pooling_type": "STEP", "step_tag_id": {TAG}}}'
    arguments = {**ARGUMENTS, "pooler_config": pooler, "max_num_batched_tokens": str(CONTEXT)}
    reader = VllmReader(str(model.folder), model.head, arguments=arguments)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def half(model: RewardModel) -> Iterator[VllmReader]:
    reader = VllmReader(str(model.folder), model.head, arguments={**ARGUMENTS, "dtype": "bfloat16"})
    yield reader
    reader.close()


class Twisted:
    """An AsyncLLM whose answers to what reads the prefix cache are changed on their way."""

    def __init__(self, llm: Any, twist: Callable[[Any], None]) -> None:
        self._llm = llm
        self._twist = twist

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def encode(self, prompt: Any, params: Any, *rest: Any, **options: Any) -> Any:
        async for output in self._llm.encode(prompt, params, *rest, **options):
            if params.skip_reading_prefix_cache is False:
                self._twist(output)
            yield output


def lose(output: Any) -> None:
    del output.num_cached_tokens


def shift(output: Any) -> None:
    output.outputs.data = output.outputs.data.roll(1, 0)


def cut(output: Any) -> None:
    output.outputs.data = output.outputs.data[1:]


def forget(output: Any) -> None:
    output.num_cached_tokens = 0


def test_step_pooling_is_read_too(model: RewardModel, stepwise: VllmReader, caplog: pytest.LogCaptureFixture) -> None:
    assert not stepwise.reads_cache
    rows = [chain(seed, steps) for seed, steps in ((1, 1), (2, 12))]
    untagged = chain(3, 4)
    untagged.tokens[untagged.reads] = 1
    for _ in range(2):
        found = stepwise.read([*rows, untagged, first(rows[1], 5)])
        agree([*found[:2], found[3]], [model.log_odds(row) for row in (*rows, first(rows[1], 5))])
        assert np.isnan(found[2]).all()
    assert "of the 4 that are wanted, it gave 0 others" in caplog.text


@pytest.mark.parametrize("head", [Value(), Labels(good=2, bad=0)])
def test_a_model_without_such_a_head_is_refused(stepwise: VllmReader, head: Head) -> None:
    with pytest.raises(StartupError, match="the model gives 2"):
        stepwise._wait(Classifier(stepwise._model._llm, head).start())


def test_an_engine_that_died_says_so(stepwise: VllmReader) -> None:
    for process in stepwise._model._llm.engine_core.resources.engine_manager.processes:
        process.kill()
    for _ in range(2):
        with pytest.raises(ModelError, match="vLLM's engine has died"):
            stepwise.read([chain(1, 1)])
        assert "has died" in stepwise.failure


def test_half_precision_passes_the_check(model: RewardModel, half: VllmReader) -> None:
    assert half.reads_cache
    rows = [chain(seed, 20) for seed in range(4)]
    for found, wanted in zip(half.read(rows), map(model.log_odds, rows), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (lose, "this vLLM has other fields than 0.32"),
        (shift, "logits are others than without it"),
        (cut, "7 of 72 tokens have logits, 64 were cached"),
        (forget, "it held nothing of a row"),
    ],
)
def test_a_cache_that_misleads_is_not_read(
    model: RewardModel, half: VllmReader, twist: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    asker = Classifier(Twisted(half._model._llm, twist), model.head)
    with caplog.at_level(logging.WARNING):
        half._wait(asker.start())
    assert not asker.reads_cache
    assert f"prefix cache is not read, so each row is computed as a whole: {reason}" in caplog.text
    row = chain(7, 9)
    for _ in range(2):
        (found,) = half._wait(asker.read([row], 1))
        np.testing.assert_allclose(found, model.log_odds(row), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpu_memory_utilisation": "0.5"}, "did you mean gpu_memory_utilization"),
        ({"runner": "generate"}, "runner can't be set"),
        ({"max_model_len": "many"}, "max_model_len"),
        ({"max_model_len": "100000"}, "can't load"),
    ],
)
def test_wrong_arguments_are_explained(model: RewardModel, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        VllmReader(str(model.folder), model.head, arguments=arguments)


def test_a_folder_without_a_model_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"lacks tokenizer.json"):
        VllmReader(str(tmp_path), Pair(1, 2), arguments={})
