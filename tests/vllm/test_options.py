"""Options as vLLM's engine arguments; nothing is loaded."""

from pathlib import Path
from typing import Any

import pytest

from ramify.scheduler.engines.registry import gpus_of
from ramify.scheduler.engines.vllm_args import VllmParams, engine_args
from tests.unit.engines.helpers import MODEL


def args_of(params: VllmParams | None = None, /, **options: Any) -> Any:
    return engine_args(str(MODEL), params or VllmParams(), options)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("dtype", "float32", "float32"),
        ("max_model_len", "128", 128),
        ("gpu_memory_utilization", "0.5", 0.5),
        ("enable_prefix_caching", "false", False),
        ("enforce_eager", "true", True),
        ("quantization", "fp8", "fp8"),
        ("max_num_queued_reqs", "7", 7),
        ("hf_overrides", '{"rope_theta": 5000.0}', {"rope_theta": 5000.0}),
        ("lora_target_modules", '["q_proj"]', ["q_proj"]),
        (
            "speculative_config",
            '{"method": "ngram", "num_speculative_tokens": 2}',
            {"method": "ngram", "num_speculative_tokens": 2},
        ),
        ("scheduling_policy", "fcfs", "fcfs"),
        ("max_lora_rank", "32", 32),
        ("served_model_name", "123", "123"),
    ],
)
def test_texts_become_what_vllm_takes(name: str, text: str, value: object) -> None:
    for given in (text, value):
        options: dict[str, Any] = {name: given}
        assert getattr(args_of(**options), name) == value


def test_structures_are_json() -> None:
    assert args_of(compilation_config='{"mode": 0}').compilation_config.mode == 0
    assert args_of(kv_events_config='{"enable_kv_cache_events": true}').kv_events_config.enable_kv_cache_events


def test_what_a_search_needs_is_the_default() -> None:
    args = args_of()
    assert (args.enable_prefix_caching, args.scheduling_policy, args.logprobs_mode) == (True, "priority", "processed_logprobs")


def test_own_options_set_what_they_stand_for() -> None:
    args = args_of(VllmParams(slots=3, lora="somewhere"))
    assert (args.max_num_seqs, args.enable_lora) == (3, True)
    assert args_of(VllmParams(slots=3), max_num_seqs="5").max_num_seqs == 5


def test_several_gpus_are_run_by_processes_of_the_actor() -> None:
    assert args_of(tensor_parallel_size="2").distributed_executor_backend == "mp"
    assert args_of(tensor_parallel_size="2", distributed_executor_backend="ray").distributed_executor_backend == "ray"
    assert args_of().distributed_executor_backend is None


@pytest.mark.parametrize(
    ("spec", "gpus"),
    [
        ("vllm:model", 1),
        ("vllm:model?tensor_parallel_size=4&pipeline_parallel_size=2", 8),
        ("vllm:model?tensor_parallel_size=many", 1),
        ({"engine": "vllm", "folder": Path("model"), "tensor_parallel_size": 2}, 2),
        ("simulated?slots=4", 0),
    ],
)
def test_gpus_are_counted(spec: Any, gpus: int) -> None:
    assert gpus_of(spec) == gpus
