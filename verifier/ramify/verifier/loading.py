"""Models and rules by what a command line says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ramify.verifier.backends.base import Scorer
from ramify.verifier.backends.folder import content_hash, read_json
from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.errors import StartupError
from ramify.verifier.options import names_of, read_options, unknown
from ramify.verifier.reading import Head, Reader
from ramify.verifier.rules import load_rule

MODEL_HELP = (
    "a reward model: a folder in Hugging Face's layout, with options as in prm=FOLDER?backend=transformers&convention=orm;"
    " NAME=simulated?base_ms=2&token_us=5 is one that only hashes; see docs/verifier.md"
)
BACKENDS = ("onnx", "transformers", "vllm")


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """See `OnnxReader`."""

    threads: int
    cache_bytes_max: int = 256 << 20


@dataclass(frozen=True, slots=True)
class TransformersOptions:
    """See `TransformersReader`."""

    threads: int
    dtype: str = "auto"
    device: str = "auto"


def load_scorers(models: Sequence[str], rules: Sequence[str], threads: int) -> list[Scorer]:
    """Loads models and rules, in that order.

    Args:
        models: Each "NAME=FOLDER" or "NAME=simulated", and maybe "?OPTION=VALUE&..." behind.
        rules: Names of rules.
        threads: Threads of each model that runs on the CPU; its option `threads` goes over it.

    Raises:
        StartupError: one cannot be loaded, two have one name, or there are none.
    """
    names = [model.partition("=")[0] for model in models] + list(rules)
    if len(set(names)) < len(names):
        raise StartupError(f"two models have one name: {', '.join(names)}")
    scorers: list[Scorer] = []
    judges = [RuleScorer(load_rule(rule)) for rule in rules]
    for model in models:
        name, equals, spec = model.partition("=")
        if not (name and equals and spec):
            raise StartupError(f"--model '{model}' is not NAME=FOLDER")
        scorers.append(load_model(name, spec, threads))
    scorers += judges
    if not scorers:
        raise StartupError("nothing to serve: give --model NAME=FOLDER or --rule NAME")
    return scorers


def load_model(name: str, spec: str, threads: int = 1) -> Scorer:
    """Loads a model.

    Args:
        name: Its name in requests.
        spec: "FOLDER?OPTION=VALUE&..." with the options `backend` (by default "onnx" where the folder has `model.onnx`, else
            "transformers"), `convention` (by default what the folder's `ramify.json` says, else what `recognise` finds), those of
            the convention and those of the backend; or "simulated", with options of its own. A real folder of that name is
            "./simulated".
        threads: See `load_scorers`.

    Raises:
        StartupError: it cannot be loaded.
    """
    folder, _, query = spec.partition("?")
    if folder == "simulated":
        from ramify.verifier.backends.simulated import load_simulated

        return load_simulated(name, spec)
    try:
        return _load_folder(name, Path(folder), dict(parse_qsl(query, keep_blank_values=True)), threads)
    except StartupError as error:
        raise StartupError(f"model '{name}': {error}") from error


def _load_folder(name: str, folder: Path, options: dict[str, Any], threads: int) -> Scorer:
    # Only here: rules alone need no tokenizers.
    from ramify.verifier import conventions
    from ramify.verifier.backends.model import ModelScorer

    if not folder.is_dir():
        raise StartupError(f"there is no folder '{folder}'")
    exported = any((folder / name).is_file() for name in ("model.onnx", "onnx/model.onnx"))
    backend = options.pop("backend", None) or ("onnx" if exported else "transformers")
    if backend not in BACKENDS:
        raise StartupError(f"no backend '{backend}'; there is {', '.join(BACKENDS)}")
    told, told_options = _told(folder)
    subject = conventions.read_subject(folder)
    convention = options.pop("convention", None) or told or conventions.recognise(folder, subject)
    own = conventions.option_names(convention)
    asked = dict(told_options) if convention == told else {}
    asked |= {option: _text(options.pop(option)) for option in own if option in options}
    made = conventions.make_convention(convention, subject, asked)
    reader = _reader(backend, folder, made.head, {"threads": threads, **options}, own)
    texts = f"{sorted(asked.items())} {content_hash(folder, conventions.FILES)}"
    return ModelScorer(name, made, reader, texts=texts)


def _told(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The convention that `ramify.json` names, if it does, and its options."""
    told = read_json(folder / "ramify.json")
    name, options = told.get("convention", ""), told.get("options", {})
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise StartupError(f"{folder / 'ramify.json'}: convention must be a name, and options an object")
    return name, options


def _reader(backend: str, folder: Path, head: Head, options: Mapping[str, Any], others: Sequence[str]) -> Reader:
    """The model itself. What only one backend needs is only imported for it."""
    if backend == "vllm":
        from ramify.verifier.backends.vllm import VllmReader

        reader: Reader = VllmReader(
            str(folder), head, arguments={name: value for name, value in options.items() if name != "threads"}
        )
        return reader
    kind = OnnxOptions if backend == "onnx" else TransformersOptions
    for name in options:
        if name not in names_of(kind):
            raise StartupError(unknown(f"the backend {backend}", name, ["backend", "convention", *others, *names_of(kind)]))
    if backend == "onnx":
        from ramify.verifier.backends.onnx import OnnxReader

        onnx = read_options("the backend onnx", OnnxOptions, options)
        return OnnxReader(folder, head, threads=onnx.threads, cache_bytes_max=onnx.cache_bytes_max)
    from ramify.verifier.backends.transformers import TransformersReader

    given = read_options("the backend transformers", TransformersOptions, options)
    return TransformersReader(folder, head, threads=given.threads, dtype=given.dtype, device=given.device)


def _text(value: str) -> str:
    """An option's value: what is in the file, where it begins with an "@"."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StartupError(f"the file '{value[1:]}' can't be read: {error}") from error
