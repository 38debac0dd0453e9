"""What is sampled and not durable: while the store is away work goes on, as far as that may grow."""

import time
from collections.abc import Callable

from ramify.scheduler.actors.limits import ShellLimits
from ramify.scheduler.events import StepsSampled

ROW_BYTES = 150  # that a step takes apart from its tokens and text, about


class Backlog:
    """Counts it. A step that came twice counts twice until the next commit: nothing is looked up."""

    def __init__(self, limits: ShellLimits, now_s: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._now_s = limits, now_s
        self._steps = self._bytes = 0  # in no commit yet
        self._writing: tuple[int, int] = 0, 0  # in the one that is being written
        self.began_s: float | None = None  # when that was begun; None: there is none
        self.stuck = ""  # why it can't be written, as far as is known

    @property
    def steps(self) -> int:
        """Steps that are not durable."""
        return self._steps + self._writing[0]

    @property
    def lag_s(self) -> float:
        """How long the commit that is being written has taken."""
        return 0.0 if self.began_s is None else self._now_s() - self.began_s

    @property
    def full(self) -> str:
        """Why nothing more may be sampled for now; empty: more may be."""
        limits = self._limits
        if self.steps > limits.backlog_steps_max:
            return f"{self.steps} steps are not committed{self._because}"
        if self._bytes + self._writing[1] > limits.backlog_bytes_max:
            return f"{(self._bytes + self._writing[1]) >> 20} MiB of steps are not committed{self._because}"
        if self.lag_s > limits.backlog_s_max:
            return f"a commit has taken {self.lag_s:.0f} s{self._because}"
        return ""

    def add(self, event: StepsSampled) -> None:
        """Steps have come."""
        if not event.committed:
            self._steps += len(event.hint)
            self._bytes += event.tokens.nbytes + event.text.nbytes + ROW_BYTES * len(event.hint)

    def begin(self) -> None:
        """All that has come is in a commit now."""
        self._writing, self._steps, self._bytes = (self._steps, self._bytes), 0, 0
        self.began_s = self._now_s()

    def end(self) -> None:
        """The commit is durable."""
        self._writing, self.began_s, self.stuck = (0, 0), None, ""

    @property
    def _because(self) -> str:
        return f": {self.stuck}" if self.stuck else ""
