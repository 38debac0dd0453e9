"""Load that comes when it is due, whether or not earlier calls were answered: delays count from when a call was due."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import DeadlineError, OverloadedError


@dataclass(slots=True)
class Outcome:
    """What became of the calls."""

    elapsed_s: float = 0.0
    sent: int = 0
    unsent: int = 0  # calls that were due while every growth had one open
    good: int = 0  # scores that came in time
    refused: int = 0  # calls
    expired: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def percentile_ms(self, share: float) -> float:
        """Of the delays of all calls."""
        return float(np.percentile(self.latencies_ms, share))


async def open_loop(
    send: Callable[[ChainColumns], Awaitable[None]],
    growths: list[Iterator[ChainColumns]],
    chains: int,
    rate: float,
    seconds: float,
    late_ms: float = float("inf"),
) -> Outcome:
    """Ask for so many scores a second, in calls of so many chains, each of the growths in turn, for a time.

    Args:
        send: One call.
        growths: Each has one call open at most, and asks again for what was not scored: only then it can grow.
        chains: Of a call.
        rate: Scores per second.
        seconds: For which calls are due.
        late_ms: After which scores count as late.
    """
    found, began = Outcome(), time.perf_counter()
    calls = int(rate * seconds / chains)
    free = [(growth, next(growth)) for growth in growths]

    async def call(growth: Iterator[ChainColumns], columns: ChainColumns, due_s: float) -> None:
        again = columns
        try:
            await send(columns)
            again = next(growth)
            took_ms = (time.perf_counter() - due_s) * 1000
            found.good += chains if took_ms <= late_ms else 0
        except OverloadedError:
            found.refused += 1
        except DeadlineError:
            found.expired += 1
        finally:
            free.append((growth, again))
        found.latencies_ms.append((time.perf_counter() - due_s) * 1000)

    async with asyncio.TaskGroup() as group:
        for number in range(calls):
            due_s = began + number * chains / rate
            await asyncio.sleep(max(due_s - time.perf_counter(), 0))
            if free:
                found.sent += 1
                group.create_task(call(*free.pop(), due_s))
            else:
                found.unsent += 1
    found.elapsed_s = time.perf_counter() - began
    return found
