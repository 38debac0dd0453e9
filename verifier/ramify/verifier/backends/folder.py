"""A model's folder, in Hugging Face's layout."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ramify.verifier.errors import StartupError


def require(folder: Path, names: Iterable[str]) -> None:
    """Raises `StartupError` that names those of the files that the folder lacks."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise StartupError(f"the folder '{folder}' lacks {', '.join(missing)}")


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object from a file; empty where there is no such file. Raises `StartupError`."""
    try:
        loaded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise StartupError(f"{file} can't be read: {error}") from error
    if not isinstance(loaded, Mapping):
        raise StartupError(f"{file} is no JSON object")
    return loaded


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `tokenizer.json`. Raises `StartupError`."""
    require(folder, ["tokenizer.json"])
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise StartupError(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error
    # Chains are text of strangers: "<eos>" in them is five characters and no token.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def content_hash(folder: Path, names: Iterable[str]) -> str:
    """A hash of those of the named files that are there, 12 hexadecimal digits.

    Args:
        folder: Where they are.
        names: Everything that bears on a score.
    """
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()[:12]
