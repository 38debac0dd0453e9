"""The parts that engines are made of: sampling, the cache of prefixes, results' columns, the registry."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.scheduler.engines.base import Finish
from ramify.scheduler.engines.columns import ResultsBuilder, concatenate, take_rows
from ramify.scheduler.engines.registry import check_engine, load_engine
from ramify.scheduler.engines.sampling import sample, uniform
from ramify.scheduler.engines.simulated import SimulatedEngine
from ramify.scheduler.errors import EngineError
from ramify.scheduler.forest.ids import sibling_codes
from tests.unit.engines.helpers import MODEL, needs_model, rows_of

LOGITS = np.random.default_rng(3).normal(size=24).astype(np.float32) * 2


def draw(logits: Any, rows: int, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Any, Any]:
    code = uniform(np.arange(rows, dtype=np.uint64), np.arange(rows) % 40)
    wide = np.tile(np.asarray(logits, np.float32), (rows, 1))
    return sample(wide, code, np.full(rows, temperature), np.full(rows, top_p))[:2]


def softmax(logits: Any, temperature: float = 1.0) -> Any:
    weight = np.exp(np.asarray(logits, np.float64) / temperature)
    return weight / weight.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax(temperature: float) -> None:
    token, logprob = draw(LOGITS, 20_000, temperature)
    expected = softmax(LOGITS, temperature)
    assert np.bincount(token, minlength=24) / 20_000 == pytest.approx(expected, abs=0.012)
    assert logprob == pytest.approx(np.log(expected[token]))


def test_a_nucleus_is_the_smallest_set_of_its_mass() -> None:
    probability = [0.1, 0.4, 0.2, 0.3]
    for top_p, allowed in ((0.05, {1}), (0.5, {1, 3}), (0.75, {1, 3, 2}), (1.0, {0, 1, 2, 3})):
        token, logprob = draw(np.log(probability), 2_000, top_p=top_p)
        assert set(token.tolist()) == allowed
        mass = sum(probability[each] for each in allowed)
        assert np.exp(logprob) == pytest.approx(np.array(probability)[token] / mass, abs=1e-6)


def test_greedy_takes_the_lowest_of_the_likeliest() -> None:
    token, logprob = draw([0.0, 2.0, 2.0, 1.0], 10, temperature=0.0, top_p=0.1)
    assert set(token.tolist()) == {1}
    assert logprob == pytest.approx(np.log(softmax([0.0, 2.0, 2.0, 1.0])[1]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_without_a_maximum_has_no_token(value: float) -> None:
    logits = np.tile(LOGITS, (3, 1))
    logits[1, 5] = value
    columns = np.array([0.1, 0.5, 0.9]), np.ones(3), np.ones(3)
    token = sample(logits, *columns)[0]
    clean = sample(np.tile(LOGITS, (3, 1)), *columns)[0]
    assert token.tolist() == [clean[0], -1, clean[2]]


@pytest.mark.filterwarnings("error")
def test_extremes_draw_a_token_that_can_be() -> None:
    impossible = [-np.inf, 0.0, -np.inf, -np.inf]
    for logits, temperature in ((impossible, 1.0), ([-1e30, 1e30, 3.0, -5.0], 1.0), ([0.0, 1e-3, 0.0, 0.0], 1e-300)):
        token, logprob = draw(logits, 50, temperature)
        assert set(token.tolist()) == {1}
        assert logprob.tolist() == [0.0] * 50


def test_a_row_is_drawn_alike_in_any_company() -> None:
    rng = np.random.default_rng(5)
    for rows in (2, 3, 17, 64):
        logits = rng.normal(size=(rows, 24)).astype(np.float32)
        code = rng.random(rows)
        temperature, top_p = rng.choice([0.0, 0.7, 1.3], rows), rng.choice([0.5, 0.9, 1.0], rows)
        token, logprob, rest = sample(logits, code, temperature, top_p)
        for at in range(rows):
            one = slice(at, at + 1)
            alone = sample(logits[one], code[one], temperature[one], top_p[one])
            assert [part.tobytes() for part in alone] == [part[one].tobytes() for part in (token, logprob, rest)]


@pytest.mark.parametrize("siblings", [4, 16])
def test_siblings_share_out_what_the_model_thinks_likely(siblings: int) -> None:
    """Of n siblings a step of probability p comes n*p times, give or take one at each end of its interval."""
    rng = np.random.default_rng(11)
    for trial in range(50):
        first, second = rng.normal(size=6) * 2, rng.normal(size=(6, 6)) * 2
        parent = np.full(siblings, trial, np.uint64)
        code = sibling_codes(parent, np.arange(siblings, dtype=np.int32))
        ones = np.ones(siblings)
        begin, begin_logprob, rest = sample(np.tile(first.astype(np.float32), (siblings, 1)), code, ones, ones)
        end, end_logprob, _ = sample(second[begin].astype(np.float32), rest, ones, ones)
        for step, probability in zip(begin * 6 + end, np.exp(begin_logprob + end_logprob), strict=True):
            count = np.count_nonzero(begin * 6 + end == step)
            assert np.floor(siblings * probability - 1e-4) <= count <= np.ceil(siblings * probability + 1e-4)


def test_a_code_gives_a_chain_of_tokens_as_the_model_would() -> None:
    """Even codes: the second token is distributed as the model says, whatever the first one was."""
    code = (np.arange(40_000) + 0.5) / 40_000
    ones = np.ones(len(code))
    begin, _, rest = sample(np.tile(LOGITS, (len(code), 1)), code, ones, ones)
    end, _, _ = sample(np.tile(LOGITS[::-1], (len(code), 1)), rest, ones, ones)
    joint = np.bincount(begin * 24 + end, minlength=24 * 24).reshape(24, 24) / len(code)
    assert joint == pytest.approx(np.outer(softmax(LOGITS), softmax(LOGITS[::-1])), abs=1e-3)


def test_codes_of_siblings_lie_evenly_and_do_not_know_their_number() -> None:
    parent = np.full(64, 12345, np.uint64)
    codes = sibling_codes(parent, np.arange(64, dtype=np.int32))
    for count in (1, 2, 4, 8, 16, 32, 64):
        gaps = np.diff(np.sort(codes[:count]), append=np.sort(codes[:count])[0] + 1)
        assert gaps == pytest.approx(np.full(count, 1 / count))
    many = sibling_codes(np.arange(20_000, dtype=np.uint64), np.full(20_000, 3, np.int32))
    assert np.histogram(many, 10, (0, 1))[0] == pytest.approx(np.full(10, 2_000), rel=0.1)


def test_uniform_numbers_fill_their_range() -> None:
    u = uniform(np.repeat(np.arange(200, dtype=np.uint64), 50), np.tile(np.arange(50), 200))
    assert u.min() >= 0
    assert u.max() < 1
    assert len(np.unique(u)) == len(u)
    assert np.histogram(u, 10, (0, 1))[0] / len(u) == pytest.approx(np.full(10, 0.1), abs=0.012)


def test_results_are_picked_and_joined() -> None:
    builder = ResultsBuilder()
    for row in (4, 7, 9):
        builder.add(row, Finish.STEP, -1.0 * row, row, np.arange(row - 4, dtype=np.int32), b"x" * (9 - row))
    results = builder.build()
    rows = rows_of(results)
    assert rows[7] == (Finish.STEP, np.float32(-7).tobytes(), (0, 1, 2), 7, b"xx")
    picked = take_rows(results, np.array([2, 0]))
    assert picked.row.tolist() == [9, 4]
    assert rows_of(picked) == {9: rows[9], 4: rows[4]}
    assert rows_of(concatenate([picked, take_rows(results, np.array([1]))])) == rows


def test_engines_are_made_by_name() -> None:
    for spec in ("simulated?slots=7&time_scale=0", {"engine": "simulated", "slots": 7, "time_scale": 0}):
        engine = load_engine(spec)
        assert isinstance(engine, SimulatedEngine)
        assert (engine.params.slots, engine.params.time_scale) == (7, 0.0)


@needs_model
def test_models_are_loaded_by_folder() -> None:
    for spec in (f"onnx:{MODEL}?slots=7", {"engine": "onnx", "folder": MODEL, "slots": "7"}):
        assert load_engine(spec).info.slots == 7


def test_what_is_wrong_with_a_spec_is_told_before_a_model_is_loaded() -> None:
    for spec, message in (
        ("abacus", "no engine is meant by 'abacus': it is onnx:FOLDER, vllm:MODEL, openai:URL or simulated"),
        ("onnx:nowhere?slot=3", "onnx has no option slot (did you mean slots?)"),
        ("simulated?slots=many", "simulated: slots is 'many': input should be a valid integer, unable to parse"),
        ("simulated?slots=1.5&time_scale=x", "time_scale is 'x': input should be a valid number"),
    ):
        with pytest.raises(EngineError) as refused:
            check_engine(spec)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    for spec in ("onnx:nowhere?slots=3", "openai:http://127.0.0.1:9", "vllm:anything?at=all", "simulated"):
        check_engine(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no engine"),
        ("onnx", "no engine"),
        ("simulated:", "no engine"),
        ("simulated:there", "there is no file of options"),
        ("abacus", "no engine"),
        ("simulated?speed=3", "speed"),
        ("simulated?slots=many", "slots"),
        ("simulated?slots=0", "slots"),
        ("onnx:nowhere", "lacks config.json"),
    ],
)
def test_a_wrong_name_is_explained(spec: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match=message):
        load_engine(spec)
