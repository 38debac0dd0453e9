"""A service process that belongs to a local system."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ramify.local.errors import StartFailed

READY_S = 60.0
STOP_S = 10.0
LOOK_S = 0.05
RESTARTS_MAX = 20
METRICS = "127.0.0.1:0"  # a free port, which its log tells


class Child:
    """`python -m MODULE ...`, kept alive at one address.

    It has `ready_s` seconds to begin to serve. It ends with its parent, however that ends: its standard input is a pipe that only
    the parent holds.
    """

    def __init__(
        self,
        module: str,
        arguments: list[str],
        listen: str,
        folder: Path,
        ready_s: float = READY_S,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`environment`: beside the parent's; for what no command line is to show to the machine's other users."""
        self._ready_s, self._environment = ready_s, environment
        self._module, self._arguments, self._folder = module, arguments, folder
        self.address = listen
        self.log = folder / f"{module.rpartition('.')[2]}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self.process.pid if self.process else None

    def start(self) -> None:
        """Start the process; `wait_ready` waits for it."""
        ready = self._ready_file()
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", self._module, *self._arguments, "--listen", self.address]
        command += ["--metrics", METRICS]
        command += ["--ready-file", str(ready), "--exit-with-stdin"]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the parent, which then stops its children in order.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )

    def wait_ready(self) -> None:
        """Wait until it serves; from then on it keeps its address. Raises `StartFailed` with the last of its log."""
        deadline = time.monotonic() + self._ready_s
        while not self._ready_file().exists():
            if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                lines = self.log.read_text(errors="replace").strip().splitlines()
                self.stop()
                raise StartFailed(f"{self._module} did not start: {lines[-1] if lines else 'it said nothing'} (log: {self.log})")
            time.sleep(LOOK_S)
        self.address = json.loads(self._ready_file().read_text())["address"]

    def revive(self) -> bool:
        """Start it again if it has died; whether it had. Raises `StartFailed` after too many deaths."""
        if self.process is None or self.process.poll() is None:
            return False
        self._restarts += 1
        if self._restarts > RESTARTS_MAX:
            raise StartFailed(f"{self._module} died {RESTARTS_MAX} times (log: {self.log})")
        if self.process.stdin:
            self.process.stdin.close()
        self.start()
        return True

    def stop(self) -> None:
        """Have it stop, and wait until it has."""
        if self.process is None:
            return
        self.process.terminate()
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _ready_file(self) -> Path:
        return self._folder / f"{self._module.rpartition('.')[2]}.ready"
