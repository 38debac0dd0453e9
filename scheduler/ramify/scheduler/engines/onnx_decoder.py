"""Continuous batching over an `OnnxModel`: slots, waiting groups, prefills and the cache of prefixes. Synchronous."""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish, StepBatch, StepResults
from ramify.scheduler.engines.columns import Door, ResultsBuilder
from ramify.scheduler.engines.kv_rows import KvRows
from ramify.scheduler.engines.onnx_folder import ModelFolder
from ramify.scheduler.engines.onnx_lanes import Delimiter, Group, Lanes
from ramify.scheduler.engines.onnx_model import OnnxModel
from ramify.scheduler.engines.onnx_prefill import Prefill, fill
from ramify.scheduler.engines.onnx_prefixes import PrefixTree
from ramify.scheduler.engines.sampling import sample, uniform

CODE_NATS = 20.0  # of a code's 53 bits, 29: the rest keeps the token after that exact to 1e-7; then a new code is drawn
PAST_MULTIPLE = 32
"""An exact engine feeds a token at position p with its past padded to the next multiple of this above p: part of its bits."""
PAST_MIN = 64
"""Others pad it to the next power of two above p, and this at least: more rows share a call."""

KV = NDArray[Any]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_PREFILL = -1  # the ticket of a lane that only fills keys and values


class OnnxDecoder:
    """Samples rows in `slots` slots. See `OnnxEngine` for what makes the results reproducible to the bit.

    Keys and values are kept of exactly those tokens that were fed. The last token of a chain, be it a sampled delimiter or the
    end of a prompt, is never among them: it is the first one that a continuation feeds.
    """

    def __init__(self, model: OnnxModel, folder: ModelFolder, cache_bytes_max: int) -> None:
        self.tokens_prefilled = self.tokens_cached = self.tokens_sampled = 0
        self.prefix_hits = self.prefix_misses = 0
        self.rows_waiting = 0
        self.slot_busy_s = 0.0
        self.cache = PrefixTree(cache_bytes_max)
        self._model = model
        self._tokenizer = folder.tokenizer
        self._eos = folder.eos
        self._context = folder.info.context_tokens_max
        self._prefill_tokens = folder.prefill_tokens
        self._rows_min = 2 if self._exact else 1  # kernels for a single row round otherwise
        self._lanes = Lanes(folder.info.slots, self._context)
        self._free = list(range(folder.info.slots))
        self._buckets: dict[int, KvRows] = {}
        self._waiting: list[Group] = []  # heap by place, and so is the next
        self._ready: list[Group] = []  # each has its keys and values
        self._prefills: dict[bytes, Prefill] = {}  # by chain
        self._door, self._arrivals = Door(), count()
        self._delimiters: dict[str | None, Delimiter] = {}
        self._ended: defaultdict[int, ResultsBuilder] = defaultdict(ResultsBuilder)

    @property
    def slots_used(self) -> int:
        """Rows and prefills that run."""
        return len(self._lanes.row) - len(self._free)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do or to report."""
        return not (self.slots_used or self.rows_waiting or self._ended)

    @property
    def _exact(self) -> bool:
        return self._prefill_tokens == 1

    def submit(self, ticket: int, batch: StepBatch) -> None:
        """Take in the rows of a checked batch, under a ticket of 0 or more."""
        delimiters = [self._delimiter(params.delimiter) for params in batch.params]
        bounds, places = np.searchsorted(batch.group, np.arange(len(batch.offsets))), self._door.places(batch)
        for group in np.flatnonzero(np.diff(bounds)).tolist():
            chain = batch.tokens[batch.offsets[group] : batch.offsets[group + 1]]
            rows = np.arange(bounds[group], bounds[group + 1])
            params = int(batch.group_params[group])
            if len(chain) >= self._context:
                for row in rows.tolist():
                    self._ended[ticket].add(row, Finish.CONTEXT, 0.0, 0, chain[:0], b"")
                continue
            new = Group(
                place=int(places[rows].min()),
                arrival=next(self._arrivals),
                ticket=ticket,
                chain=chain,
                params=batch.params[params],
                delimiter=delimiters[params],
                rows=rows,
                codes=batch.code[rows],
                seeds=batch.seed[rows],
            )
            heapq.heappush(self._waiting, new)
            self.rows_waiting += len(rows)

    def cancel(self, ticket: int) -> None:
        """Give a ticket's rows up and free their slots at once."""
        self._waiting = [group for group in self._waiting if group.ticket != ticket]
        self._ready = [group for group in self._ready if group.ticket != ticket]
        heapq.heapify(self._waiting)
        heapq.heapify(self._ready)
        unwanted = set()
        for key, prefill in list(self._prefills.items()):
            prefill.groups[:] = [group for group in prefill.groups if group.ticket != ticket]
            if not prefill.groups:
                unwanted.add(prefill.lane)
                del self._prefills[key]
        if not self._exact:  # there, they are in a bucket
            self._free.extend(unwanted)
        for bucket in self._buckets.values():
            leaving = (self._lanes.ticket[bucket.lane] == ticket) | np.isin(bucket.lane, list(unwanted))
            self._free.extend(bucket.lane[leaving].tolist())
            bucket.remove(np.flatnonzero(leaving))
        left = [*self._waiting, *self._ready, *(each for prefill in self._prefills.values() for each in prefill.groups)]
        self.rows_waiting = sum(len(group.rows) - group.entered for group in left)
        self._ended.pop(ticket, None)

    def advance(self, tokens: int) -> list[tuple[int, StepResults]]:
        """Feed at most so many tokens to each slot, prompts more; rows that end make room at once. What ended, by ticket."""
        for _ in range(tokens):
            self._admit()
            began_s, used = perf_counter(), self.slots_used
            if self._prefills and not self._exact:
                self._fill()
            # Longest first: a row that outgrows its bucket moves to one that has had its turn.
            for past in sorted(self._buckets, reverse=True):
                if self._buckets[past].count:
                    self._feed(self._buckets[past])
                if self._buckets[past].spare:
                    del self._buckets[past]
            self.slot_busy_s += used * (perf_counter() - began_s)
            if not self.slots_used:
                break
        results = [(ticket, builder.build()) for ticket, builder in self._ended.items()]
        self._ended.clear()
        return results

    def _delimiter(self, text: str | None) -> Delimiter:
        if text not in self._delimiters:
            self._delimiters[text] = Delimiter.find(self._tokenizer, text)
        return self._delimiters[text]

    def _admit(self) -> None:
        """Fill the free slots in the order of the line: with rows whose prefix is there, and with prefills for the others."""
        while self._free:
            if self._ready and not (self._waiting and self._waiting[0] < self._ready[0]):
                self._enter(self._ready[0])
                if self._ready[0].entered == len(self._ready[0].rows):
                    heapq.heappop(self._ready)
            elif self._waiting:
                self._look_up(heapq.heappop(self._waiting))
            else:
                break

    def _look_up(self, group: Group) -> None:
        prefix = group.chain[:-1]
        key = prefix.tobytes()
        held, kv = self.cache.match(prefix)
        if held == len(prefix):
            self._make_ready(group, kv)
        elif key in self._prefills:
            self._prefills[key].groups.append(group)
            held = len(prefix)
        else:
            if self._model.whole and not self._exact:
                held, kv = 0, []
            self._prefills[key] = self._prefill(group, prefix, held, kv)
        self.tokens_cached += held
        self.prefix_hits += held == len(prefix)
        self.prefix_misses += held < len(prefix)

    def _prefill(self, group: Group, prefix: I32, held: int, kv: Sequence[KV]) -> Prefill:
        """Begin to fill what is not held of a group's chain."""
        if self._exact:
            return Prefill(self._occupy(_PREFILL, prefix, held, kv), prefix, [group], self._nothing(0))
        made = Prefill(self._free.pop(), prefix, [group], self._nothing(len(prefix)))
        made.skip(held, kv)
        return made

    def _nothing(self, tokens: int) -> KV:
        return np.zeros((self._model.caches, self._model.heads, tokens, self._model.head_dim), self._model.dtype)

    def _make_ready(self, group: Group, kv: list[KV]) -> None:
        group.kv = kv
        heapq.heappush(self._ready, group)

    def _enter(self, group: Group) -> None:
        lane = self._occupy(group.ticket, group.chain, len(group.chain) - 1, group.kv)
        self._lanes.enter(lane, group)
        self.rows_waiting -= 1

    def _occupy(self, ticket: int, chain: I32, position: int, kv: Sequence[KV]) -> int:
        lanes, lane = self._lanes, self._free.pop()
        lanes.ticket[lane] = ticket
        lanes.chain[lane, : len(chain)] = chain
        lanes.length[lane] = len(chain)
        lanes.position[lane] = position
        self._bucket(position).add(lane, kv)
        return lane

    def _bucket(self, position: int) -> KvRows:
        past = (position // PAST_MULTIPLE + 1) * PAST_MULTIPLE if self._exact else max(PAST_MIN, 1 << position.bit_length())
        if self._model.in_place:  # its tables of positions go no further
            past = min(past, self._context)
        if past not in self._buckets:
            self._buckets[past] = KvRows(self._model.caches, self._model.heads, past, self._model.head_dim, self._model.dtype)
        return self._buckets[past]

    def _fill(self) -> None:
        """One call for the prompts that wait longest, from where they leave those that were fed since they came."""
        for prefill in self._prefills.values() if not self._model.whole else ():
            self.tokens_cached += prefill.skip(*self.cache.match(prefill.chain))
        if left := [prefill for prefill in self._prefills.values() if prefill.left]:
            self.tokens_prefilled += fill(self._model, left, self._prefill_tokens)
        for key in [key for key, prefill in self._prefills.items() if not prefill.left]:
            self._free.append(self._prefills[key].lane)
            self._end_prefill(key, self._prefills[key].kv)

    def _feed(self, bucket: KvRows) -> None:
        """Feed each row of a bucket its next token, and sample where that was the last one known."""
        lanes, lane = self._lanes, bucket.lane.copy()
        logits = self._run(bucket)
        lanes.position[lane] += 1
        prefill = lanes.ticket[lane] == _PREFILL
        self.tokens_prefilled += int(prefill.sum())
        finish = self._sample(lane, logits, ~prefill)
        filled = prefill & (lanes.position[lane] == lanes.length[lane])
        for row in np.flatnonzero(filled).tolist():
            chain = lanes.known(int(lane[row]))
            self._end_prefill(chain.tobytes(), bucket.held(row, len(chain)))
        for row in np.flatnonzero(finish).tolist():
            self._end_row(bucket, row, Finish(int(finish[row])))
        gone = filled | (finish > 0)
        grown = ~gone & (lanes.position[lane] == bucket.past)
        for row in np.flatnonzero(grown).tolist():
            self._bucket(bucket.past).add(int(lane[row]), [bucket.held(row, bucket.past)])
        self._free.extend(lane[gone].tolist())
        bucket.remove(np.flatnonzero(gone | grown))

    def _run(self, bucket: KvRows) -> KV:
        """Logits `[n, V]` of a bucket's rows; their keys and values are written."""
        if self._model.padded:
            return self._call(bucket, np.arange(bucket.count), bucket.inputs(max(bucket.count, self._rows_min)))
        position = self._lanes.position[bucket.lane]
        alike = [np.flatnonzero(position == each) for each in np.unique(position)]
        logits = [self._call(bucket, rows, bucket.cut(self._fed(rows), int(position[rows[0]]))) for rows in alike]
        return np.concatenate(logits)[np.argsort(np.concatenate(alike))]

    def _call(self, bucket: KvRows, rows: I64, kv: list[KV]) -> KV:
        lane = bucket.lane[self._fed(rows)]
        position = self._lanes.position[lane]
        logits, new = self._model.run(self._lanes.chain[lane, position].astype(np.int64), position, kv)
        bucket.write(rows, position[: len(rows)], new)
        return logits[: len(rows)]

    def _fed(self, rows: I64) -> I64:
        """Rows `[n]` as they are fed: a single one may get a filler beside it."""
        return rows if len(rows) >= self._rows_min else np.repeat(rows, self._rows_min)

    def _sample(self, lane: I64, logits: KV, sampling: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Draw a token for the rows of `sampling` `[n]`; a `Finish` for each row `[n]`, 0 for those that go on."""
        finish = np.zeros(len(lane), np.uint8)
        if not sampling.any():
            return finish
        lanes, lane = self._lanes, lane[sampling]
        place = lanes.length[lane] - lanes.start[lane]
        token, logprob, rest = sample(logits[sampling], lanes.code[lane], lanes.temperature[lane], lanes.top_p[lane])
        used = lanes.code_used[lane] - logprob
        spent = used > CODE_NATS
        lanes.code[lane] = np.where(spent, uniform(lanes.seed[lane], place), rest)
        lanes.code_used[lane] = np.where(spent, 0, used)
        bad, end = token < 0, (token[:, None] == self._eos).any(axis=1)
        kept = ~(bad | end)
        grows = lane[kept]
        lanes.chain[grows, lanes.length[grows]] = token[kept]
        lanes.length[grows] += 1
        lanes.logprob[grows] += logprob[kept]
        self.tokens_sampled += len(lane) - int(bad.sum())
        step = token == lanes.end_token[lane]
        for at in np.flatnonzero(kept & lanes.in_text[lane]).tolist():
            each = int(lane[at])
            step[at] = lanes.delimiter[each].completed(lanes.known(each), int(lanes.start[each]))
        finish[sampling] = np.select(
            [bad, end, step, lanes.length[lane] >= self._context, place + 1 >= lanes.step_max[lane]],
            [Finish.ERROR, Finish.END, Finish.STEP, Finish.CONTEXT, Finish.STEP_CUT],
            0,
        )
        return finish

    def _end_prefill(self, key: bytes, kv: KV) -> None:
        """Hand out keys and values `[C, H, n, D]`, of all tokens of a prefill's chain, to those that wait for them."""
        prefill = self._prefills.pop(key)
        self.cache.insert(prefill.chain, kv)
        held, parts = self.cache.match(prefill.chain)
        if held < len(prefill.chain):  # there is no room for it
            parts = [kv.copy()]
        for group in prefill.groups:
            self._make_ready(group, parts)

    def _end_row(self, bucket: KvRows, row: int, finish: Finish) -> None:
        lanes, lane = self._lanes, int(bucket.lane[row])
        chain, start = lanes.known(lane), int(lanes.start[lane])
        tokens = chain[start:].copy()
        builder = self._ended[int(lanes.ticket[lane])]
        builder.add(
            row=int(lanes.row[lane]),
            finish=finish,
            logprob=float(lanes.logprob[lane]),
            cost=len(tokens) + (finish == Finish.END),
            tokens=tokens,
            text=lanes.delimiter[lane].step(chain, start, ended=finish in (Finish.END, Finish.CONTEXT)),
        )
        if finish == Finish.ERROR:
            builder.explain("the model gave logits without a finite maximum")
        if finish in (Finish.STEP, Finish.STEP_CUT):
            held = int(lanes.position[lane])
            self.cache.insert(chain[:held], bucket.held(row, held))
