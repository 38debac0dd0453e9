"""Who spends a thread's CPU time: by parts that call each other, and by tasks of an event loop."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Meter:
    """CPU time of the one thread that uses it, by part. A part is not charged for what another part does in its name."""

    def __init__(self, rest: str) -> None:
        """`rest`: the part that is charged while none is at work."""
        self._spent_ns = Counter[str]()
        self._at = [rest]
        self._since_ns = time.thread_time_ns()
        self.switches = 0

    @property
    def spent_ns(self) -> Counter[str]:
        """What each part has spent so far."""
        self._charge()
        return self._spent_ns.copy()

    def enter(self, part: str) -> None:
        """From now on a part is at work, until `leave`."""
        self._charge()
        self._at.append(part)

    def leave(self) -> None:
        """The part that was entered last is done."""
        self._charge()
        self._at.pop()

    def call(self, part: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function on a part's account."""
        self.enter(part)
        try:
            return function(*args, **kwargs)
        finally:
            self.leave()

    def charge_tasks(self, loop: asyncio.AbstractEventLoop, parts: Mapping[str, str]) -> None:
        """Charge the tasks of a loop to parts, by the qualified names of their coroutines; others are left with the rest."""

        def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
            part = parts.get(getattr(work, "__qualname__", ""))
            return asyncio.Task(work if part is None else _Charged(self, part, work), loop=loop, **options)

        loop.set_task_factory(factory)

    def switch_ns(self, times: int = 10_000) -> float:
        """What it costs to look at the clock once, of which every part has its share."""
        began_ns = time.thread_time_ns()
        for _ in range(times):
            self.enter("")
            self.leave()
        return (time.thread_time_ns() - began_ns) / (2 * times)

    def _charge(self) -> None:
        now_ns = time.thread_time_ns()
        self._spent_ns[self._at[-1]] += now_ns - self._since_ns
        self._since_ns = now_ns
        self.switches += 1


class _Charged(Coroutine[Any, Any, R]):
    """A coroutine each of whose steps is charged to a part."""

    def __init__(self, meter: Meter, part: str, work: Coroutine[Any, Any, R]) -> None:
        self._meter, self._part, self._work = meter, part, work

    def send(self, value: Any) -> Any:
        """See `Coroutine`."""
        return self._meter.call(self._part, self._work.send, value)

    def throw(self, *error: Any) -> Any:
        """See `Coroutine`."""
        return self._meter.call(self._part, self._work.throw, *error)

    def close(self) -> None:
        """See `Coroutine`."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, R]:
        return self._work.__await__()


class MeteredWorkers(ThreadPoolExecutor):
    """Threads for `asyncio.to_thread`, with the CPU time of each function."""

    def __init__(self, name: str) -> None:
        """`name`: how their names begin."""
        super().__init__(thread_name_prefix=name)
        self.spent_ns = Counter[str]()

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """See `Executor`."""
        return super().submit(self._run, function, *args, **kwargs)

    def _run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        asked: Any = function.args[0] if isinstance(function, partial) else function  # to_thread makes it run in a context
        began_ns = time.thread_time_ns()
        try:
            return function(*args, **kwargs)
        finally:
            self.spent_ns[asked.__qualname__] += time.thread_time_ns() - began_ns


def threads_ns() -> dict[tuple[str, int], int]:
    """CPU time of each of the interpreter's threads so far, by its name and number."""
    return {
        (thread.name, thread.ident): time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.ident is not None
    }
