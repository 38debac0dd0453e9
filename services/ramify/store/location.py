"""Where the store is, as commands and processes are told: its URL holds a password, and so need not be an argument."""

import os
from pathlib import Path

from ramify.store.errors import CannotOpen

VARIABLE = "RAMIFY_STORE"


def store_url(url: str | None = None, file: Path | None = None) -> str | None:
    """The store's URL: the one given, else what `file` holds, else what the environment says; None if nobody says.

    Raises:
        CannotOpen: the file can't be read, or is empty; or both are given.
    """
    if url and file:
        raise CannotOpen(f"--store and --store-file both say where the store is: give one of them, or {VARIABLE}")
    if file is None:
        return url or os.environ.get(VARIABLE) or None
    try:
        found = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotOpen(f"--store-file {file}, which is to hold the store's URL, can't be read: {error}") from error
    if not found:
        raise CannotOpen(f"--store-file {file} is empty, and is to hold the store's URL")
    return found
