"""The simulated engine's presets: throughput as it was published for the machines that they describe."""

import asyncio
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ramify.scheduler.engines.base import StepBatch, StepParams
from ramify.scheduler.engines.registry import load_engine
from ramify.scheduler.engines.simulated import SimulatedEngine, SimulatedParams

PRESETS = Path(__file__).parents[3] / "infra" / "engines"
SLOTS = 1024
LENGTHS = ((128, 128), (128, 2048), (128, 4096), (500, 2000), (1000, 1000), (2048, 128), (2048, 2048), (5000, 500), (20000, 2000))
# Tokens a second by lengths of prompt and answer: TensorRT-LLM 0.17, see the files for the source.
PUBLISHED = {
    "h100-8b": (28836.77, 21109.38, 13593.65, 16500.69, 15244.78, 3556.73, 9488.42, 3559.36, 1401.31),
    "h200-8b": (29526.04, 25398.86, 17370.8, 21020.81, 17537.96, 3794.14, 11968.5, 3987.79, 1804.1),
    "h200-70b-tp4": (11098.63, 14156.0, 10574.06, 12452.79, 8911.29, 1358.06, 7130.44, 1811.55, 1199.68),
}
CASES = [
    pytest.param(name, *lengths, figure, id=f"{name}-{lengths[0]}-{lengths[1]}")
    for name, figures in PUBLISHED.items()
    for lengths, figure in zip(LENGTHS, figures, strict=True)
]


def apart(rows: int, prompt: int, answer: int) -> StepBatch:
    """Rows of equal lengths that have nothing in common."""
    return StepBatch(
        tokens=np.random.default_rng(0).integers(256, size=rows * prompt, dtype=np.int32),
        offsets=np.arange(rows + 1) * prompt,
        params=(StepParams(temperature=1.0, top_p=1.0, max_step_tokens=answer, delimiter=None),),
        group_params=np.zeros(rows, np.int32),
        group=np.arange(rows, dtype=np.int32),
        code=np.zeros(rows),
        seed=np.arange(rows, dtype=np.uint64),
    )


@pytest.mark.parametrize(("name", "prompt", "answer", "figure"), CASES)
async def test_throughput_is_what_was_published(name: str, prompt: int, answer: int, figure: float) -> None:
    passed_s = 0.0

    async def sleep(delay_s: float) -> None:
        nonlocal passed_s
        passed_s += delay_s
        await asyncio.sleep(0)

    options = tomllib.loads((PRESETS / f"{name}.toml").read_text())
    params = SimulatedParams(**options | {"slots": SLOTS, "context_tokens_max": prompt + answer, "end_probability": 0.0})
    engine = SimulatedEngine(params, sleep)
    rows = 2 * min(SLOTS, params.blocks_max // params.blocks(prompt + answer))  # the second half waits for slots or memory
    async for _ in engine.generate(apart(rows, prompt, answer)):
        pass
    assert engine.stats().tokens_sampled == rows * answer
    assert engine.stats().tokens_sampled / passed_s == pytest.approx(figure, rel=0.06)


def test_what_is_modelled_by_default_is_an_h100() -> None:
    options = tomllib.loads((PRESETS / "h100-8b.toml").read_text())
    defaults = SimulatedParams()
    assert {name: getattr(defaults, name) for name in options} == options
    assert {"slots", "token_ms", "token_extra_ms", "context_token_ns", "prefill_tokens_per_s", "kv_tokens_max"} == options.keys()


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.toml")), ids=lambda file: file.stem)
def test_presets_are_engines(file: Path) -> None:
    engine = load_engine(f"simulated:{file}?slots=7")
    assert isinstance(engine, SimulatedEngine)
    expected = tomllib.loads(file.read_text()) | {"slots": 7}
    assert {name: getattr(engine.params, name) for name in expected} == expected
    assert expected.keys() < {field.name for field in fields(SimulatedParams)}
    assert file.stem in PUBLISHED
