"""A circuit breaker: a server that fails again and again is left alone for a while, then tried with one request."""

import time
from collections.abc import Callable
from enum import StrEnum


class State(StrEnum):
    """What may be sent."""

    CLOSED = "closed"  # everything
    OPEN = "open"  # nothing
    HALF_OPEN = "half-open"  # one request, which decides


class Circuit:
    """Counts failures in a row; knows nothing of requests. Of one event loop.

    Args:
        failures_max: failures in a row that open it.
        open_s: how long it stays open before one request may try again.
        now_s: a monotonic clock.
    """

    def __init__(self, failures_max: int, open_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._failures_max, self._open_s, self._now_s = failures_max, open_s, now_s
        self._failures = 0
        self._opened_s: float | None = None
        self.successes = 0
        """Since it was made."""

    @property
    def state(self) -> State:
        """What may be sent now."""
        if self._opened_s is None:
            return State.CLOSED
        return State.OPEN if self._now_s() < self._opened_s + self._open_s else State.HALF_OPEN

    @property
    def retry_after_s(self) -> float:
        """Time until one request may try again; 0 where it may now."""
        return 0.0 if self._opened_s is None else max(0.0, self._opened_s + self._open_s - self._now_s())

    def limit(self, slots: int) -> int:
        """How many of `slots` requests may be open at once."""
        return {State.CLOSED: slots, State.OPEN: 0, State.HALF_OPEN: min(slots, 1)}[self.state]

    def succeeded(self) -> None:
        """A request was answered."""
        self.successes += 1
        self._failures, self._opened_s = 0, None

    def failed(self) -> None:
        """A request failed: one too many in a row opens the circuit, as does the one that tries a half-open one."""
        self._failures += 1
        if self._failures >= self._failures_max or self.state is not State.CLOSED:
            self.open()

    def open(self) -> None:
        """Leave the server alone from now on for `open_s`."""
        self._opened_s = self._now_s()
