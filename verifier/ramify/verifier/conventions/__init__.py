"""How reward models want to be asked: one small file for each convention, and which of them is a model's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ramify.chat import ChatError, read_chat
from ramify.verifier.backends.folder import open_tokenizer, read_json
from ramify.verifier.conventions.base import Convention, NoOptions, Subject
from ramify.verifier.conventions.judge import Judge, JudgeOptions
from ramify.verifier.conventions.math_shepherd import MathShepherd
from ramify.verifier.conventions.newline import Newline
from ramify.verifier.conventions.orm import Orm, OrmOptions
from ramify.verifier.conventions.qwen_math import QwenMathOptions, QwenMathPrm
from ramify.verifier.conventions.rlhflow import Rlhflow
from ramify.verifier.conventions.separated import SeparatorOptions
from ramify.verifier.conventions.skywork import Skywork
from ramify.verifier.conventions.token_classifier import TokenClassifier
from ramify.verifier.conventions.value_head import ValueHead
from ramify.verifier.conventions.vocabulary import UnknownText, Vocabulary
from ramify.verifier.errors import StartupError
from ramify.verifier.options import names_of, read_options

CONVENTIONS: Mapping[str, tuple[type[Any], type[Any]]] = {
    QwenMathPrm.name: (QwenMathPrm, QwenMathOptions),
    MathShepherd.name: (MathShepherd, NoOptions),
    Rlhflow.name: (Rlhflow, NoOptions),
    Skywork.name: (Skywork, NoOptions),
    TokenClassifier.name: (TokenClassifier, SeparatorOptions),
    ValueHead.name: (ValueHead, SeparatorOptions),
    Newline.name: (Newline, NoOptions),
    Orm.name: (Orm, OrmOptions),
    Judge.name: (Judge, JudgeOptions),
}
"""Each convention's class, made of a `Subject` and options, and the dataclass of these."""

_ARCHITECTURES = {
    "Qwen2ForProcessRewardModel": QwenMathPrm.name,
    "Qwen2ForRewardModel": Orm.name,
    "Qwen2ForPrmModel": Skywork.name,
}
_HINTS = {
    "math-shepherd": MathShepherd.name,
    "rlhflow": Rlhflow.name,
    "llama3.1-8b-prm": Rlhflow.name,
    "skywork-o1-open-prm": Skywork.name,
}

# What bears on a convention's questions, beside its options.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
    "ramify.json",
)


def read_subject(folder: Path) -> Subject:
    """What conventions have to know of the model in a folder. Raises `StartupError`."""
    config, tokenizer = read_json(folder / "config.json"), open_tokenizer(folder)
    told, there = config.get("vocab_size"), tokenizer.get_vocab_size(with_added_tokens=False)
    if told is not None and there > told:
        raise StartupError(f"the tokenizer is of another model: it has {there} tokens, and config.json says {told}")
    try:
        return Subject(Vocabulary(tokenizer), read_chat(folder), config)
    except ChatError as error:
        raise StartupError(str(error)) from error


def make_convention(name: str, subject: Subject, options: Mapping[str, Any]) -> Convention:
    """The convention of that name.

    Args:
        name: One of `CONVENTIONS`.
        subject: The model.
        options: By name; texts become numbers.

    Raises:
        StartupError: there is none of that name, an option is unknown, or the model is not of this convention.
    """
    made, kind = CONVENTIONS[check_name(name)]
    try:
        convention: Convention = made(subject, read_options(f"the convention {name}", kind, options))
    except UnknownText as error:
        raise StartupError(f"the tokenizer is of another model: {name} needs {error}") from error
    return convention


def option_names(name: str) -> list[str]:
    """The options of a convention. Raises `StartupError`."""
    return names_of(CONVENTIONS[check_name(name)][1])


def check_name(name: str) -> str:
    """The name. Raises `StartupError` where no convention has it."""
    if name not in CONVENTIONS:
        raise StartupError(f"no convention '{name}'; there is {', '.join(CONVENTIONS)}")
    return name


def recognise(folder: Path, subject: Subject) -> str:
    """The name of a model's convention, by its class in transformers, or its name.

    Args:
        folder: The model's.
        subject: The model.

    Raises:
        StartupError: it can't be told.
    """
    architecture = subject.architecture
    if found := _ARCHITECTURES.get(architecture):
        return found
    if architecture.endswith("ForTokenClassification"):
        return ValueHead.name if subject.labels == 1 else TokenClassifier.name
    if architecture.endswith("ForSequenceClassification"):
        return Orm.name
    resolved = folder.resolve()  # in the hub's cache: models--OWNER--NAME/snapshots/COMMIT
    named = resolved.parents[1].name if resolved.parent.name == "snapshots" else resolved.name
    called = f"{subject.config.get('_name_or_path', '')} {named}".lower()
    for hint, name in _HINTS.items():
        if hint in called:
            return name
    raise StartupError(
        f"'{folder}' ({architecture or 'of no architecture'}) does not say how it wants to be asked: add convention=NAME, one of"
        f" {', '.join(CONVENTIONS)}"
    )
