"""What a GPU engine with continuous batching does with its time and memory. Synchronous; time passes when it is told."""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

from ramify.scheduler.engines.base import StepBatch, StepResults
from ramify.scheduler.engines.columns import Door, take_rows
from ramify.scheduler.engines.simulated_blocks import Blocks, Names
from ramify.scheduler.engines.simulated_params import SimulatedParams


@dataclass(slots=True, eq=False)
class Call:
    """A batch, all of what it will yield, and how much of it is under way."""

    batch: StepBatch
    outcome: StepResults  # of row i at place i
    names: Names
    group: list[int]  # [B]
    cost: list[int]  # [B] tokens that a row takes
    length: list[int]  # [G] of the chains
    users: list[int]  # [G] rows that run
    open: int  # rows that have not ended

    def chain(self, group: int) -> list[int]:
        """The names of a chain's full blocks."""
        return self.names.chain[self.names.chain_end[group] : self.names.chain_end[group + 1]]

    def filled(self, row: int) -> list[int]:
        """The names of the blocks that a row fills."""
        return self.names.step[self.names.step_end[row] : self.names.step_end[row + 1]]


class _Waiting(NamedTuple):
    place: int  # in the line
    order: int
    ticket: int
    call: Call
    row: int


class _Running(NamedTuple):
    end: int  # on the machine's clock
    order: int
    ticket: int
    call: Call
    row: int


@dataclass(slots=True)
class Work:
    """What was done so far; times are modelled ones."""

    prefix_hits: int = 0
    prefix_misses: int = 0
    tokens_cached: int = 0
    tokens_prefilled: int = 0
    tokens_sampled: int = 0
    context_tokens_read: int = 0  # a token of a context counts as often as it was read
    slot_busy_s: float = 0.0


class Machine:
    """Slots, and memory for keys and values.

    Rows get a slot in the order of the line (see `StepBatch`), once there is memory for their chain and all that they will
    sample; a row that does not fit keeps back those behind it. (vLLM takes memory as a sequence grows, and when there is none
    left gives one up and computes it anew later; here the length of a step is known at its beginning, and none is given up.)
    Each row looks its chain up, whole blocks of it but for its last token, and computes the rest: the rows of a group find what
    the first of them computes. One token a slot takes `token_ms`, `token_extra_ms` for each other slot in use and
    `context_token_ns` for each token of all contexts; a prefill comes on top, in proportion to its tokens.
    """

    def __init__(self, params: SimulatedParams) -> None:
        self.params = params
        self.work = Work()
        self.calls: dict[int, Call] = {}  # by ticket
        self._waiting: list[_Waiting] = []  # a heap
        self._door = Door()
        self._running: list[_Running] = []  # a heap
        self._blocks = Blocks(params.blocks_max)
        self._order = count()
        self._clock = 0  # tokens that a sequence would have decoded that has always run
        self._context = 0  # tokens of all that runs
        self._prefill = 0  # tokens not yet computed

    @property
    def rows_running(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def rows_waiting(self) -> int:
        """Rows without a slot."""
        return len(self._waiting)

    def submit(self, ticket: int, batch: StepBatch, outcome: StepResults) -> None:
        """Take in a batch, at least one row, and what it will yield."""
        length = np.diff(batch.offsets).tolist()
        call = self.calls[ticket] = Call(
            batch=batch,
            outcome=outcome,
            names=Names.of(batch, outcome, self.params.block_tokens),
            group=batch.group.tolist(),
            cost=outcome.token_cost.tolist(),
            length=length,
            users=[0] * len(length),
            open=len(batch),
        )
        for row, place in enumerate(self._door.places(batch).tolist()):
            heapq.heappush(self._waiting, _Waiting(place, next(self._order), ticket, call, row))

    def cancel(self, ticket: int) -> None:
        """Give a call's rows up; what they have computed is lost."""
        if (gone := self.calls.pop(ticket, None)) is None:
            return
        self._waiting = [each for each in self._waiting if each.call is not gone]
        heapq.heapify(self._waiting)
        for each in self._running:
            if each.call is gone:
                self._leave(each, kept=False)
        self._running = [each for each in self._running if each.call is not gone]
        heapq.heapify(self._running)

    def begin(self) -> tuple[int, float]:
        """Fill the slots; how many tokens each of them is to decode next, and how many seconds all that takes."""
        full = self._admit()
        params, rows = self.params, len(self._running)
        tokens = self._running[0].end - self._clock if rows else 0
        # While slots are free a row may come with every token; when none is, only where one ends.
        tokens = tokens if full else min(tokens, 1)
        step_ms = params.token_ms + params.token_extra_ms * (rows - 1)
        decode_s = tokens * step_ms / 1e3 + self._read(tokens) * params.context_token_ns / 1e9
        passed_s = params.slow_factor * (decode_s + self._prefill / params.prefill_tokens_per_s)
        self._prefill = 0
        return tokens, passed_s

    def end(self, tokens: int, passed_s: float) -> list[tuple[int, StepResults]]:
        """Let it be done; what has ended, by ticket."""
        self.work.slot_busy_s += len(self._running) * passed_s
        self.work.context_tokens_read += self._read(tokens)
        self._context += tokens * len(self._running)
        self._clock += tokens
        ended: dict[int, list[int]] = {}
        while self._running and self._running[0].end == self._clock:
            each = heapq.heappop(self._running)
            self._leave(each, kept=True)
            ended.setdefault(each.ticket, []).append(each.row)
        return [(ticket, self._results(ticket, rows)) for ticket, rows in ended.items()]

    def _read(self, tokens: int) -> int:
        """Tokens of contexts that are read while each slot decodes so many."""
        return tokens * self._context + len(self._running) * (tokens * (tokens - 1) // 2)

    def _results(self, ticket: int, rows: list[int]) -> StepResults:
        call = self.calls[ticket]
        call.open -= len(rows)
        if not call.open:
            del self.calls[ticket]
        results = take_rows(call.outcome, np.array(rows))
        self.work.tokens_sampled += int(results.token_cost.sum())
        return results

    def _admit(self) -> bool:
        """Give free slots to rows that fit; whether no more can come before one ends."""
        while self._waiting:
            first = self._waiting[0]
            if len(self._running) == self.params.slots or not self._enter(first.ticket, first.call, first.row):
                return True
            heapq.heappop(self._waiting)
        return len(self._running) == self.params.slots

    def _enter(self, ticket: int, call: Call, row: int) -> bool:
        group, cost = call.group[row], call.cost[row]
        if cost:  # else there is nothing to do
            chain = [] if call.users[group] else call.chain(group)
            unnamed = self._unnamed(call, row)
            if unnamed + self._blocks.unused(chain) > self._blocks.free:
                return False
            self._look_up(call, group, chain)
            self._blocks.use(chain, unnamed)
            call.users[group] += 1
            self._context += call.length[group]
        heapq.heappush(self._running, _Running(self._clock + cost, next(self._order), ticket, call, row))
        return True

    def _look_up(self, call: Call, group: int, chain: list[int]) -> None:
        """Count what of a row's chain is cached; all but its last token may be, for that is where sampling begins."""
        length, block = call.length[group], self.params.block_tokens
        found = most = (length - 1) // block
        if not call.users[group]:  # else another row of the group has just computed it
            found = min(self._blocks.cached(chain), most)
            hit = found == most > 0
            self.work.prefix_hits += hit
            self.work.prefix_misses += not hit
        self.work.tokens_cached += found * block
        self.work.tokens_prefilled += length - found * block
        self._prefill += length - found * block

    def _leave(self, each: _Running, *, kept: bool) -> None:
        """Take a row's slot and memory back."""
        call, group, cost = each.call, each.call.group[each.row], each.call.cost[each.row]
        if not cost:
            return
        self._context -= call.length[group] + cost - (each.end - self._clock)
        self._blocks.fill(self._unnamed(call, each.row), call.filled(each.row) if kept else ())
        call.users[group] -= 1
        if not call.users[group]:
            self._blocks.leave(call.chain(group))

    def _unnamed(self, call: Call, row: int) -> int:
        """Blocks that a row needs beside those of its chain that are full."""
        length = call.length[call.group[row]]
        return self.params.blocks(length + call.cost[row]) - length // self.params.block_tokens
