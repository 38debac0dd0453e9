"""What every service process does alike: it runs until it is told to stop, and says when it is ready."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path


def write_ready_file(path: Path, address: str) -> None:
    """Say where the process serves, in one step: who sees the file sees all of it."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps({"address": address, "pid": os.getpid()}))
    scratch.replace(path)


async def until_stopped(exit_with_stdin: bool) -> None:
    """Return at SIGTERM or SIGINT; with `exit_with_stdin` also when standard input ends, as it does with the parent."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if exit_with_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop.set), daemon=True, name="stdin").start()
    await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    while os.read(0, 4096):  # not sys.stdin: a thread that blocks in a buffered reader aborts the interpreter's exit
        pass
    loop.call_soon_threadsafe(then)


