"""Files that are read again when they change."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """What some files say, and said last while they can't be read."""

    def __init__(self, read: Callable[[], T], files: Callable[[T], Iterable[Path]], wrong: type[Exception]) -> None:
        """Read them for the first time.

        Args:
            read: reads all.
            files: which these are, by what they say.
            wrong: what `read` raises for what can't be used.

        Raises:
            Exception: `wrong`.
        """
        self._read, self._files, self._wrong = read, files, wrong
        self.value = read()
        self._held = self._content()
        self.value = read()  # which has what `_held` has, or something later that the next look finds

    def look(self) -> bool:
        """Whether they say something else than at the last look. What can't be used is logged, once, and changes nothing."""
        try:
            held = self._content()
        except OSError:  # one is being replaced
            return False
        if held == self._held:
            return False
        self._held = held
        before = self.value
        try:
            self.value = self._read()
        except self._wrong as error:
            log.error("%s; all stays as it was", error)
            return False
        return self.value != before

    def _content(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self._files(self.value)}
