"""An asyncio event loop with a clock of its own, in which processes live that can die, stand still, and have wrong clocks.

Nothing waits: when there is nothing to do, time goes on to the next timer. What belongs to which process is told by the context
in which a callback runs. A process that stands still runs none of its callbacks, and all of them afterwards; one that is dead
runs none, ever: as with SIGSTOP and SIGKILL no line of its code notices. What happens in a loop depends on its seed alone.
"""

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from enum import Enum, auto
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)
THREAD_S_MAX = 0.004  # that a call in a thread takes


class State(Enum):
    """How a process is."""

    RUNS = auto()
    STANDS = auto()
    DEAD = auto()


class Stuck(AssertionError):
    """Nothing will ever happen any more."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._now_s = 0.0
        self.errors: list[str] = []  # what nobody has caught
        self.handled = 0  # callbacks
        self.set_exception_handler(lambda _, context: self.errors.append(repr(context)))

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now_s

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Do it in no thread, but some time later."""
        found: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if not found.cancelled():
                try:
                    found.set_result(func(*args))
                except Exception as error:
                    found.set_exception(error)

        self.call_later(self._chance.uniform(0, THREAD_S_MAX), work)
        return found

    def _run_once(self) -> None:
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        ready = self._ready  # type: ignore[attr-defined]
        while not ready and not self._stopping:  # type: ignore[attr-defined]
            if not scheduled:
                raise Stuck("no timer is set and nothing is ready")
            self._now_s = max(self._now_s, scheduled[0].when())
            while scheduled and scheduled[0].when() <= self._now_s:
                timer = heapq.heappop(scheduled)
                timer._scheduled = False  # type: ignore[attr-defined]
                if not timer.cancelled():
                    ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            process = handle._context.get(PROCESS)
            if process is None or process.state is State.RUNS:
                self.handled += 1
                handle._run()
            else:
                process.missed.append(handle)

    def _write_to_self(self) -> None:
        """There are no other threads to be woken by."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""


class Process:
    """Tasks that live and die together, with a monotonic clock of their own."""

    def __init__(self, loop: VirtualLoop, name: str, rate: float = 1.0) -> None:
        """`rate`: seconds that its clock goes in one second."""
        self.loop, self.name, self.rate = loop, name, rate
        self.state = State.RUNS
        self.missed: list[asyncio.Handle] = []
        self.stood = 0  # times that it has stood still
        self._context: Context = copy_context()
        self._context.run(PROCESS.set, self)
        self._from_s = loop.time()

    def __repr__(self) -> str:
        return f"{self.name} ({self.state.name})"

    @property
    def alive(self) -> bool:
        """Whether it runs, or will run again."""
        return self.state is not State.DEAD

    def now_s(self) -> float:
        """Its monotonic clock."""
        return 1000.0 + (self.loop.time() - self._from_s) * self.rate

    async def sleep(self, seconds: float) -> None:
        """Wait, by its clock."""
        await asyncio.sleep(seconds / self.rate)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have the process do something."""
        return self.loop.create_task(work, context=self._context)

    def call(self, work: Callable[[], T]) -> T:
        """Do something as the process does it."""
        return self._context.run(work)

    def kill(self) -> None:
        """From now on it does nothing any more."""
        self.state = State.DEAD

    def stop(self) -> None:
        """It stands still."""
        if self.state is State.RUNS:
            self.state, self.stood = State.STANDS, self.stood + 1

    def go_on(self) -> None:
        """It does all that it has missed, and goes on."""
        if self.state is State.STANDS:
            self._wake()

    def bury(self) -> None:
        """Let a dead process's tasks run to where they notice that they were cancelled."""
        self._wake()

    def _wake(self) -> None:
        self.state = State.RUNS
        self.loop._ready.extend(self.missed)  # type: ignore[attr-defined]
        self.missed = []
