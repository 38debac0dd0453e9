"""A deterministic model of a GPU engine: what it writes follows from seeds, when it is done from parameters."""

import asyncio
import hashlib
import itertools
import os
from collections.abc import Awaitable, Callable

from ramify.scheduler.engines.base import EngineStats, ModelInfo, StepBatch, StepResults
from ramify.scheduler.engines.loop import Ended, EngineLoop
from ramify.scheduler.engines.simulated_machine import Machine
from ramify.scheduler.engines.simulated_params import SimulatedParams
from ramify.scheduler.engines.simulated_text import VOCABULARY, delimiter, draw

__all__ = ["CRASHED", "SimulatedEngine", "SimulatedParams", "draw"]

CRASHED = 70  # exit code of a process that was told to crash


class SimulatedEngine(EngineLoop):
    """Behaves like a GPU engine with continuous batching and prefix caching, as `Machine` says in full.

    A row yields a line of letters and digits that ends with the delimiter, or ends its chain; which, and how long it
    is, is a hash of its seed (and of the room that the chain leaves in the context). Time passes in `sleep` alone, so
    a virtual clock makes a run exact; with `asyncio.sleep` its lateness comes on top.

    Args:
        params: the machine.
        sleep: waits for a number of seconds.
        crash: ends the process.
    """

    def __init__(
        self,
        params: SimulatedParams | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        crash: Callable[[], None] = lambda: os._exit(CRASHED),
    ) -> None:
        self.params = params or SimulatedParams()
        super().__init__(VOCABULARY, self.params.waiting_rows_max)
        self._sleep, self._crash = sleep, crash
        self._machine = Machine(self.params)
        self._instant: list[tuple[int, StepResults]] = []  # what has ended without taking any time
        self._stalls = 0
        self._info = _info(self.params)

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    @property
    def context_tokens_read(self) -> int:
        """Tokens of contexts that were read, each as often as one was sampled on top of it."""
        return self._machine.work.context_tokens_read

    def stats(self) -> EngineStats:
        """What was done so far; times are modelled ones. A group whose chain was cached but for its last block is a hit."""
        machine, work = self._machine, self._machine.work
        return EngineStats(
            rows_running=machine.rows_running,
            rows_waiting=machine.rows_waiting,
            prefix_hits=work.prefix_hits,
            prefix_misses=work.prefix_misses,
            tokens_cached=work.tokens_cached,
            tokens_prefilled=work.tokens_prefilled,
            rows_sampled=self._rows_sampled,
            tokens_sampled=work.tokens_sampled,
            slot_busy_s=work.slot_busy_s,
        )

    def _check(self, batch: StepBatch) -> None:
        for params in batch.params:
            delimiter(params)

    def _submit(self, ticket: int, batch: StepBatch) -> None:
        if self.params.crash_on and _holds(batch, self.params.crash_on.encode()):
            self._crash()
        outcome = draw(batch, self.params)
        if self.params.time_scale:
            self._machine.submit(ticket, batch, outcome)
        else:
            self._machine.work.tokens_sampled += int(outcome.token_cost.sum())
            self._instant.append((ticket, outcome))

    def _cancel(self, ticket: int) -> None:
        self._machine.cancel(ticket)
        self._instant = [each for each in self._instant if each[0] != ticket]

    def _idle(self) -> bool:
        return not self._machine.calls and not self._instant

    async def _release(self) -> None:
        self._instant.clear()
        for ticket in list(self._machine.calls):
            self._machine.cancel(ticket)

    async def _turn(self) -> Ended:
        if 0 < self.params.die_after_steps <= self._rows_sampled:
            self._crash()
        if not self.params.time_scale:
            ended, self._instant = self._instant, []
            await asyncio.sleep(0)  # a caller that asks again at once must not starve the others
            return ended
        tokens, passed_s = self._machine.begin()
        await self._sleep((passed_s + self._stall_s()) * self.params.time_scale)
        return self._machine.end(tokens, passed_s)

    def _stall_s(self) -> float:
        """How long nothing happens, on top of the work."""
        due = self._rows_sampled // self.params.stall_every_steps if self.params.stall_every_steps else 0
        stalls, self._stalls = due - self._stalls, due
        return stalls * self.params.stall_s


def _info(params: SimulatedParams) -> ModelInfo:
    lengths = (params.step_lengths, params.step_tokens_median, params.step_tokens_sigma)
    text = (*lengths, params.step_tokens_min, params.step_tokens_max, params.end_probability, params.context_tokens_max)
    return ModelInfo(
        name="simulated",
        revision=hashlib.blake2b(repr(text).encode(), digest_size=16).hexdigest(),
        backend="simulated",
        tokenizer_json="",
        context_tokens_max=params.context_tokens_max,
        slots=params.slots,
    )


def _holds(batch: StepBatch, text: bytes) -> bool:
    """Whether one of the chains holds a text."""
    return any(text in bytes(batch.tokens[start:end].tolist()) for start, end in itertools.pairwise(batch.offsets.tolist()))
