"""Waiting for what must come about."""

import time
from collections.abc import Callable
from typing import TypeVar

WAIT_S = 60.0
POLL_S = 0.02

T = TypeVar("T")


def until(found: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """Wait until something is found, and return it; fails if that takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while not (what := found()):
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(POLL_S)
    return what
