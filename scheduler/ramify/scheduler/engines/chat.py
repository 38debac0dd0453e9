"""A model's chat template, for engines."""

from pathlib import Path

from ramify.chat import ChatError, ChatFormat
from ramify.chat import read_chat as read_chat_format
from ramify.scheduler.errors import EngineError


def read_chat(folder: Path) -> ChatFormat:
    """As `ramify.chat` has it. Raises `EngineError`."""
    try:
        return read_chat_format(folder)
    except ChatError as error:
        raise EngineError(str(error)) from error
