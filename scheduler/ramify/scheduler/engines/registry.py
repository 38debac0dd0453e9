"""Engines by name, for configuration files and command lines."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError

from ramify.scheduler.engines.base import Engine
from ramify.scheduler.errors import EngineError
from ramify.scheduler.policies.knobs import nearest

P = TypeVar("P")


def load_engine(spec: str | Mapping[str, Any]) -> Engine:
    """Make an engine.

    Args:
        spec: `onnx:FOLDER`, `vllm:MODEL`, `openai:URL`, `simulated` or `simulated:FILE`, any of them followed by options as
            in `simulated?slots=64&time_scale=0`; or the same as a mapping: `{"engine": "onnx", "folder": FOLDER, "slots": 32}`,
            `{"engine": "openai", "url": URL}`, `{"engine": "simulated", "file": FILE}`. Options are the fields of
            `OnnxParams`, `OpenAIParams`, `SimulatedParams` and `VllmParams`; vLLM gets all others as its engine arguments.
            Those of a simulated engine's FILE hold where nothing else is said.

    Raises:
        EngineError: the engine, an option or its value is unknown, or a model can't be loaded.
    """
    return _maker(spec)()


def check_engine(spec: str) -> None:
    """Refuse a spec that is wrong by itself, see `load_engine`; no model is looked at, and of vLLM no option.

    Raises:
        EngineError: the engine, an option or its value is unknown.
    """
    _maker(spec)


def is_simulated(spec: str) -> bool:
    """Whether an engine has no model."""
    return bool(_parse(spec)["engine"] == "simulated")


def _maker(spec: str | Mapping[str, Any]) -> Callable[[], Engine]:
    """What makes an engine."""
    options = _parse(spec) if isinstance(spec, str) else dict(spec)
    engine, folder = options.pop("engine", None), options.pop("folder", None)
    if engine == "simulated" and folder != "":
        from ramify.scheduler.engines.simulated import SimulatedEngine
        from ramify.scheduler.engines.simulated_params import SimulatedParams, read_options

        file = options.pop("file", folder)
        preset = {} if file is None else read_options(Path(file))
        return partial(SimulatedEngine, _params(engine, SimulatedParams, preset | options))
    if engine == "onnx" and folder:
        # A process that only simulates need not load ONNX Runtime.
        from ramify.scheduler.engines.onnx import OnnxEngine, OnnxParams

        return partial(OnnxEngine, Path(folder), _params(engine, OnnxParams, options))
    if engine == "vllm" and folder:
        return partial(_load_vllm, str(folder), options)
    if engine == "openai" and (url := options.pop("url", folder)):
        from ramify.scheduler.engines.openai import OpenAIEngine
        from ramify.scheduler.engines.openai_params import OpenAIParams

        return partial(OpenAIEngine, str(url), _params(engine, OpenAIParams, options))
    raise EngineError(f"no engine is meant by {spec!r}: it is onnx:FOLDER, vllm:MODEL, openai:URL or simulated")


def gpus_of(spec: str | Mapping[str, Any]) -> int:
    """How many GPUs an engine takes where there are any."""
    options = _parse(spec) if isinstance(spec, str) else spec
    if options.get("engine") != "vllm":
        return 0
    sizes = [str(options.get(name, 1)) for name in ("tensor_parallel_size", "pipeline_parallel_size")]
    return prod(int(size) if size.isdecimal() else 1 for size in sizes)  # what is no number, vLLM will refuse


def _load_vllm(model: str, options: dict[str, Any]) -> Engine:
    try:
        from ramify.scheduler.engines.vllm import VllmParams, load_vllm
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"vLLM can't be imported ({error}): install it with `pip install 'ramify[vllm]'`") from error
    own = {field.name for field in fields(VllmParams)}
    params = _params("vllm", VllmParams, {name: value for name, value in options.items() if name in own})
    return load_vllm(model, params, {name: value for name, value in options.items() if name not in own})


def _parse(spec: str) -> dict[str, Any]:
    name, _, query = spec.partition("?")
    engine, colon, folder = name.partition(":")
    return {"engine": engine, **({"folder": folder} if colon else {}), **dict(parse_qsl(query, keep_blank_values=True))}


def _params(engine: str, kind: type[P], options: dict[str, Any]) -> P:
    """Options as a dataclass of parameters; texts become numbers."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise EngineError(f"{engine} has no option {name}{nearest(name, known)}")
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg'].lower()}" for each in error.errors()]
        raise EngineError(f"{engine}: {'; '.join(told)}") from error
