"""The verifier's reader on a real vLLM: what it reads, against plain transformers code."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ramify.verifier.backends.vllm import VllmReader
from ramify.verifier.backends.vllm_model import Classifier
from ramify.verifier.reading import Pair, Row
from tests.vllm.conftest import BLOCK
from tests.vllm.reward_models import ARGUMENTS, CLOSE, CONTEXT, KINDS, POISON, VOCABULARY, RewardModel, agree, chain, first


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return RewardModel(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def reader(model: RewardModel) -> Iterator[VllmReader]:
    reader = VllmReader(str(model.folder), model.head, arguments=ARGUMENTS)
    yield reader
    reader.close()


def test_numbers_are_those_of_transformers(model: RewardModel, reader: VllmReader) -> None:
    rows = [chain(seed, steps) for seed, steps in enumerate((1, 2, 3, 5, 8, 13, 21, 40))]
    wanted = [model.log_odds(row) for row in rows]
    assert min(np.ptp(numbers) for numbers in wanted[1:]) > 10 * CLOSE  # they tell positions apart
    agree(reader.read(rows), wanted)
    agree(reader.read(rows), wanted)  # that vLLM holds by now, with all that is read of them
    assert (reader.backend, reader.reads_cache, reader.failure) == ("vllm", True, "")


def test_a_chain_that_grows_is_read_as_if_it_were_new(model: RewardModel, reader: VllmReader) -> None:
    whole = [chain(seed, 20) for seed in range(100, 104)]
    wanted = [model.log_odds(row) for row in whole]
    for steps in range(1, 21):
        found = reader.read([first(row, steps) for row in whole])
        agree(found, [numbers[steps - 1 : steps] for numbers in wanted])


def test_only_what_is_new_is_computed(model: RewardModel, reader: VllmReader) -> None:
    row = chain(200, 20)
    parent, child = first(row, 19), first(row, 20)
    reader.read([parent])
    asker: Any = reader._model
    if isinstance(asker, Classifier):
        cached = reader._wait(asker._ask(child.tokens, "mine", 0, cached=True)).cached
    else:
        cached = reader._wait(last(asker._llm.generate(prompt(child), asker._params, "mine"))).num_cached_tokens
    assert cached == len(parent.tokens) // BLOCK * BLOCK


def test_calls_may_be_open_at_once(model: RewardModel, reader: VllmReader) -> None:
    calls = [[chain(300 + 4 * call + at, 3 + at) for at in range(4)] for call in range(reader.calls_max)]
    with ThreadPoolExecutor(reader.calls_max) as pool:
        for rows, found in zip(calls, pool.map(reader.read, calls), strict=True):
            agree(found, [model.log_odds(row) for row in rows])


def test_the_longest_chain_is_read_and_one_that_vllm_refuses_is_told_of(
    model: RewardModel, reader: VllmReader, caplog: pytest.LogCaptureFixture
) -> None:
    assert reader.context_tokens_max == CONTEXT - isinstance(model.head, Pair)
    longest = chain(500, 1, reader.context_tokens_max - 40)
    other, strange = chain(501, 2), chain(502, 2)
    strange.tokens[7] = VOCABULARY + 100
    found = reader.read([longest, other, strange])
    agree(found[:2], [model.log_odds(longest), model.log_odds(other)])
    assert np.isnan(found[2]).all()
    assert "the model has 512 tokens, none with the number 612" in caplog.text


def test_what_is_no_number_comes_as_it_is(model: RewardModel, reader: VllmReader) -> None:
    # The last test of a model: on a CPU, what vLLM keeps of such a chain may reach others that take its memory.
    good, bad = chain(400, 2), chain(401, 6)
    bad.tokens[bad.reads[2] + 1] = POISON
    found = reader.read([good, bad])
    agree(found[:1], [model.log_odds(good)])
    assert np.isnan(found[1][3:]).all()


def prompt(row: Row) -> Any:
    from vllm.inputs.engine import tokens_input  # pyright: ignore[reportMissingImports]

    return tokens_input(row.tokens.tolist())


async def last(outputs: Any) -> Any:
    return [output async for output in outputs][-1]
