"""A deterministic model of a GPU engine: what it writes follows from seeds, when it is done from parameters."""

import asyncio
import hashlib
import itertools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import EngineStats, Finish, ModelInfo, StepBatch, StepParams, StepResults
from ramify.scheduler.engines.columns import take_rows
from ramify.scheduler.engines.loop import Ended, EngineLoop
from ramify.scheduler.engines.prefix_cache import PrefixCache, digest
from ramify.scheduler.engines.sampling import uniform
from ramify.scheduler.errors import EngineError
from ramify.scheduler.forest.ids import mix64

_ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz012345", np.uint8)  # 32 characters: five bits of a hash each
CRASHED = 70  # exit code of a process that was told to crash
_VOCABULARY = 256  # one token a byte
_PLACE_END, _PLACE_LENGTH, _PLACE_LOGPROB, _PLACE_TEXT = range(4)  # what a seed is hashed with


@dataclass(frozen=True, slots=True)
class SimulatedParams:
    """The machine that is modelled, and the model that it runs."""

    slots: int = 256  # sequences that decode at once
    token_ms: float = 10.0  # time of one decoded token of a sequence that runs alone
    token_extra_ms: float = 0.02  # more of it for each other sequence that runs
    prefill_tokens_per_s: float = 20_000.0  # of the whole engine; decoding halts meanwhile
    prefix_tokens_max: int = 4_000_000  # room of the prefix cache
    time_scale: float = 1.0  # seconds waited for a modelled second; 0: no time is modelled, no prefix is looked up
    step_tokens_min: int = 16  # a step's length is uniform up to step_tokens_max, its end included
    step_tokens_max: int = 48
    end_probability: float = 0.15  # that a step is the chain's last
    context_tokens_max: int = 8_192
    waiting_rows_max: int = 1 << 20  # rows without a slot
    crash_on: str = ""  # a chain that holds this text ends the engine's process at once, as a driver's fault would: for game days

    def __post_init__(self) -> None:
        if min(self.slots, self.step_tokens_min, self.prefill_tokens_per_s) <= 0:
            raise EngineError(f"a rate, length or number of slots is not positive: {self}")
        if min(self.token_ms, self.token_extra_ms, self.time_scale, self.prefix_tokens_max, self.waiting_rows_max) < 0:
            raise EngineError(f"a time or bound is negative: {self}")
        if not self.step_tokens_min <= self.step_tokens_max or not 0 <= self.end_probability <= 1:
            raise EngineError(f"step lengths or end_probability are out of range: {self}")


@dataclass(slots=True, eq=False)
class _Call:
    """A batch, all of what it will yield, and how much of it is under way."""

    batch: StepBatch
    outcome: StepResults  # of row i at place i
    entered: int = 0  # rows that have had a slot
    groups: int = 0  # groups whose prefix was looked up


class SimulatedEngine(EngineLoop):
    """Behaves like a GPU engine with continuous batching and prefix caching.

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
        super().__init__(_VOCABULARY, self.params.waiting_rows_max)
        self._sleep, self._crash = sleep, crash
        self._calls: dict[int, _Call] = {}  # by ticket, in order of arrival
        # Columns of the rows that run, R of them.
        self._ticket = np.zeros(0, np.int64)
        self._row = np.zeros(0, np.int64)
        self._left = np.zeros(0, np.int64)  # tokens until the row ends
        self._prefixes = PrefixCache[None](self.params.prefix_tokens_max)
        self._prefill_tokens = 0  # not yet waited for
        self._hits = self._misses = self._prefilled = self._sampled = 0
        self._slot_busy_s = 0.0

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        params = self.params
        text = (params.step_tokens_min, params.step_tokens_max, params.end_probability, params.context_tokens_max)
        return ModelInfo(
            name="simulated",
            revision=hashlib.blake2b(repr(text).encode(), digest_size=16).hexdigest(),
            backend="simulated",
            tokenizer_json="",
            context_tokens_max=params.context_tokens_max,
            slots=params.slots,
        )

    def stats(self) -> EngineStats:
        """What was done so far; times are modelled ones."""
        return EngineStats(
            rows_running=len(self._row),
            rows_waiting=sum(len(call.batch) - call.entered for call in self._calls.values()),
            prefix_hits=self._hits,
            prefix_misses=self._misses,
            tokens_prefilled=self._prefilled,
            rows_sampled=self._rows_sampled,
            tokens_sampled=self._sampled,
            slot_busy_s=self._slot_busy_s,
        )

    def _check(self, batch: StepBatch) -> None:
        for params in batch.params:
            _delimiter(params)

    def _submit(self, ticket: int, batch: StepBatch) -> None:
        if self.params.crash_on and _holds(batch, self.params.crash_on.encode()):
            self._crash()
        self._calls[ticket] = _Call(batch, draw(batch, self.params))

    def _cancel(self, ticket: int) -> None:
        self._calls.pop(ticket, None)
        self._keep_running(self._ticket != ticket)

    def _idle(self) -> bool:
        return not self._calls

    async def _release(self) -> None:
        self._calls.clear()
        self._keep_running(np.zeros(len(self._row), np.bool_))

    async def _turn(self) -> Ended:
        params = self.params
        if params.time_scale == 0:
            ended = [(ticket, call.outcome) for ticket, call in self._calls.items()]
            self._calls.clear()
            self._sampled += sum(int(results.token_cost.sum()) for _, results in ended)
            await asyncio.sleep(0)  # a caller that asks again at once must not starve the others
            return ended
        self._admit()
        running = len(self._row)
        # While slots are free a row may come with every token; when none is, only where one ends.
        tokens = int(self._left.min(initial=params.context_tokens_max))
        tokens = min(tokens, 1) if running < params.slots else tokens
        passed_s = tokens * (params.token_ms + params.token_extra_ms * (running - 1)) / 1000
        passed_s += self._prefill_tokens / params.prefill_tokens_per_s
        self._prefill_tokens = 0
        await self._sleep(passed_s * params.time_scale)
        self._slot_busy_s += running * passed_s
        self._left -= tokens
        return self._end_rows()

    def _admit(self) -> None:
        """Give free slots to rows in order of arrival."""
        for ticket, call in self._calls.items():
            rows = np.arange(call.entered, min(len(call.batch), call.entered + self.params.slots - len(self._row)))
            if not len(rows):
                continue
            call.entered += len(rows)
            self._ticket = np.append(self._ticket, np.full(len(rows), ticket))
            self._row = np.append(self._row, rows)
            self._left = np.append(self._left, call.outcome.token_cost[rows])
            for group in np.unique(call.batch.group[rows]).tolist():
                if group >= call.groups:
                    self._look_up(call.batch.tokens[call.batch.offsets[group] : call.batch.offsets[group + 1]])
                    call.groups = group + 1

    def _look_up(self, chain: NDArray[np.int32]) -> None:
        key = digest(chain)
        if self._prefixes.touch(key):
            self._hits += 1
            return
        self._misses += 1
        self._prefilled += len(chain)
        self._prefill_tokens += len(chain)
        self._prefixes.put(key, None, len(chain))

    def _end_rows(self) -> Ended:
        done = self._left == 0
        ended = []
        for ticket in np.unique(self._ticket[done]).tolist():
            call = self._calls[ticket]
            rows = self._row[done & (self._ticket == ticket)]
            results = take_rows(call.outcome, rows)
            self._sampled += int(results.token_cost.sum())
            self._hold(call.batch, results)
            ended.append((ticket, results))
        self._keep_running(~done)
        for ticket, _ in ended:
            if self._calls[ticket].entered == len(self._calls[ticket].batch) and not (self._ticket == ticket).any():
                del self._calls[ticket]
        return ended

    def _hold(self, batch: StepBatch, results: StepResults) -> None:
        """Keep the prefixes of chains that may go on."""
        ends = np.cumsum(results.token_count, dtype=np.int64)
        goes_on = np.isin(results.finish, (Finish.STEP, Finish.STEP_CUT))
        for at in np.flatnonzero(goes_on).tolist():
            group = int(batch.group[results.row[at]])
            step = results.tokens[ends[at] - results.token_count[at] : ends[at]]
            chain = np.append(batch.tokens[batch.offsets[group] : batch.offsets[group + 1]], step)
            self._prefixes.put(digest(chain), None, len(chain))

    def _keep_running(self, rows: NDArray[np.bool_]) -> None:
        self._ticket, self._row, self._left = self._ticket[rows], self._row[rows], self._left[rows]


def draw(batch: StepBatch, model: SimulatedParams) -> StepResults:
    """What each row of a checked batch yields, in the rows' order: a hash of seeds, cut to what the params allow."""
    per_row = batch.group_params[batch.group]
    step_max = np.array([params.max_step_tokens for params in batch.params], np.int64)[per_row]
    delimiter = np.array([_delimiter(params) for params in batch.params], np.int64)[per_row]
    room = np.maximum(model.context_tokens_max - np.diff(batch.offsets)[batch.group], 0)
    limit = np.minimum(step_max, room)

    place = np.zeros(len(batch), np.int64)
    last = uniform(batch.seed, place + _PLACE_END) < model.end_probability
    spread = model.step_tokens_max - model.step_tokens_min + 1
    wanted = model.step_tokens_min + (uniform(batch.seed, place + _PLACE_LENGTH) * spread).astype(np.int64)
    wanted = np.where(~last & (delimiter < 0), limit + 1, wanted)  # without a delimiter a step has no end of its own
    whole = np.where(last, wanted < limit, wanted <= limit)  # the end of the sequence takes a token of its own
    count = np.where(whole, wanted, limit).astype(np.int32)
    cut = np.where(room <= step_max, Finish.CONTEXT, Finish.STEP_CUT)

    width = -(-int(count.max(initial=0)) // 8)
    words = mix64(batch.seed[:, None], np.arange(_PLACE_TEXT, _PLACE_TEXT + width, dtype=np.uint64))
    letters = _ALPHABET[words.astype("<u8").view(np.uint8) & 31]
    stops = np.flatnonzero(whole & ~last)
    letters[stops, count[stops] - 1] = delimiter[stops]
    text = letters[np.arange(letters.shape[1]) < count[:, None]]
    return StepResults(
        row=np.arange(len(batch), dtype=np.int32),
        finish=np.where(whole, np.where(last, Finish.END, Finish.STEP), cut).astype(np.uint8),
        logprob=(-count * uniform(batch.seed, place + _PLACE_LOGPROB)).astype(np.float32),
        tokens=text.astype(np.int32),
        token_count=count,
        token_cost=count + (whole & last).astype(np.int32),
        text=text,
        text_count=count,
    )


def _holds(batch: StepBatch, text: bytes) -> bool:
    """Whether one of the chains holds a text."""
    return any(text in bytes(batch.tokens[start:end].tolist()) for start, end in itertools.pairwise(batch.offsets.tolist()))


def _delimiter(params: StepParams) -> int:
    """The delimiter's byte; -1 for none."""
    if params.delimiter is None:
        return -1
    code = params.delimiter.encode()
    if len(code) != 1 or code[0] in _ALPHABET:
        raise EngineError(f"the delimiter {params.delimiter!r} is no single byte that steps do not hold otherwise")
    return code[0]
