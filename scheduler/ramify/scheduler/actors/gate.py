"""Lets calls work together, or one of them alone."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """See the module. Who wants to be alone goes before those that come after it, and waits for those that are inside."""

    def __init__(self) -> None:
        self._inside = 0
        self._alone = False  # whether who is inside is to be alone
        self._door: deque[tuple[bool, asyncio.Future[None]]] = deque()  # who waits, in order: whether alone

    @asynccontextmanager
    async def passed(self, *, alone: bool) -> AsyncIterator[None]:
        """Be inside, alone or with others."""
        if self._door or not self._may_enter(alone):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._door.append((alone, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                else:
                    self._door.remove((alone, turn))
                    self._open()
                raise
        else:
            self._enter(alone)
        try:
            yield
        finally:
            self._leave()

    def _may_enter(self, alone: bool) -> bool:
        return not self._alone and not (alone and self._inside)

    def _enter(self, alone: bool) -> None:
        self._inside, self._alone = self._inside + 1, alone

    def _leave(self) -> None:
        self._inside, self._alone = self._inside - 1, False
        self._open()

    def _open(self) -> None:
        while self._door and self._may_enter(self._door[0][0]):
            alone, turn = self._door.popleft()
            if not turn.cancelled():
                self._enter(alone)
                turn.set_result(None)
