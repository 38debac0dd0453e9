"""An adapter, applied to all that is generated."""

import json
from pathlib import Path
from typing import Any

import pytest

from ramify.scheduler.engines.registry import load_engine
from tests.unit.engines.helpers import MODEL, PROBLEMS, STEP, Job, collect, encode
from tests.vllm.conftest import OPTIONS

RANK, WIDTH, LAYERS = 8, 128, 4


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter that bends the model a lot."""
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]

    generator, weights = torch.Generator().manual_seed(0), {}
    for layer in range(LAYERS):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=generator)
            weights[f"{prefix}.lora_B.weight"] = torch.randn(WIDTH, RANK, generator=generator)
    config: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": str(MODEL), "lora_dropout": 0.0}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


async def test_an_adapter_changes_what_is_sampled(adapter: Path, make: Any) -> None:
    plain = make()
    bent = load_engine(f"vllm:{MODEL}?{OPTIONS}&lora={adapter}&max_lora_rank={RANK}&name=bent")
    try:
        assert bent.info.name == "bent"
        assert bent.info.revision != plain.info.revision
        jobs = [Job(encode(plain, problem), seed, STEP) for problem in PROBLEMS for seed in range(4)]
        assert [row.tokens for row in await collect(bent, jobs)] != [row.tokens for row in await collect(plain, jobs)]
    finally:
        await bent.close()
