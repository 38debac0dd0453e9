"""A process that ends those of vLLM if the one that has started them is killed.

They don't notice that by themselves: they would keep the GPU for good, and a verifier that starts anew would find no room there.
"""

import contextlib
import os
import select
import subprocess
import sys

import psutil

_LOOK_EVERY_S = 0.5  # while vLLM starts


class Guard:
    """Has all processes that this one starts from now on, until `settle`, ended when this one is killed."""

    def __init__(self) -> None:
        # A session of its own: what is typed at the terminal is not for it.
        command = [sys.executable, "-P", __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._hear()

    def settle(self) -> None:
        """What is started from here on is no longer its business."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
        self._hear()

    def close(self) -> None:
        """Nothing is left to be ended."""
        self._process.kill()
        self._process.communicate()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.read(1)


def main() -> None:
    """Watch the parent: a byte on standard input means that all is started, its end that the parent is gone."""
    parent, started = psutil.Process(os.getppid()), set[psutil.Process]()
    others = set(parent.children(recursive=True))  # this process among them
    settled = gone = False
    os.write(1, b"\n")
    while not gone:
        told, _, _ = select.select([0], [], [], None if settled else _LOOK_EVERY_S)
        if not settled:
            with contextlib.suppress(psutil.NoSuchProcess):
                started |= set(parent.children(recursive=True)) - others
        if told:
            settled, gone = True, not os.read(0, 1)
            with contextlib.suppress(BrokenPipeError):
                os.write(1, b"\n")
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(process.cmdline()):  # it removes what the others leave, and ends with them
                process.kill()


if __name__ == "__main__":
    main()
