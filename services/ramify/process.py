"""What every service process does alike: it runs until it is told to stop, and says when it is ready."""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path


def write_ready_file(path: Path, address: str) -> None:
    """Say where the process serves, in one step: who sees the file sees all of it. Raises `OSError`."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"address": address, "pid": os.getpid()}), encoding="utf-8")
    scratch.replace(path)


def stop_event(exit_with_stdin: bool) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on; with `exit_with_stdin` also the end of standard input.

    To be called before anybody can know that the process is there: a signal that comes earlier kills it. Standard input ends
    with the parent, however that ends.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if exit_with_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop.set), daemon=True, name="stdin").start()
    return stop


def _watch_stdin(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    # Not sys.stdin: a thread that blocks in a buffered reader aborts the interpreter's exit.
    with contextlib.suppress(OSError):  # a standard input that is closed from the start has ended as well
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process has stopped for another reason
        loop.call_soon_threadsafe(then)
