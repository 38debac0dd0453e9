"""Continuous batching over an `OnnxModel`: slots, waiting groups, prefills and the cache of prefixes. Synchronous."""

import heapq
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish, StepBatch, StepParams, StepResults
from ramify.scheduler.engines.columns import ResultsBuilder
from ramify.scheduler.engines.kv_rows import KvRows
from ramify.scheduler.engines.onnx_model import OnnxModel
from ramify.scheduler.engines.prefix_cache import PrefixCache, digest
from ramify.scheduler.engines.sampling import sample, uniform

CODE_NATS = 20.0  # of a code's 53 bits, 29: the rest keeps the token after that exact to 1e-7; then a new code is drawn
PAST_MULTIPLE = 32
"""A token at position p is fed with its past padded to the next multiple of this above p. Changing it changes bits."""

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_PREFILL = -1  # the ticket of a lane that only fills keys and values
_NO_DELIMITER = -1


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that continue one chain and have no slot yet."""

    arrival: int
    ticket: int
    chain: NDArray[np.int32]
    params: StepParams
    delimiter: int
    rows: NDArray[np.int64]  # places in the batch
    codes: NDArray[np.float64]
    seeds: NDArray[np.uint64]
    entered: int = 0  # how many of the rows have had a slot
    kv: F32 | None = None  # [C, H, len(chain)-1, D]: all tokens but the last, which is fed first

    def __lt__(self, other: "_Group") -> bool:
        return self.arrival < other.arrival


class _Lanes:
    """Columns of the sequences in the slots, S of them; a prefill takes a slot like a row."""

    def __init__(self, slots: int, context: int) -> None:
        self.chain = np.zeros((slots, context + 1), np.int32)
        self.length = np.zeros(slots, np.int64)  # tokens known, sampled ones included
        self.position = np.zeros(slots, np.int64)  # of the next token to feed = tokens whose keys and values are held
        self.start = np.zeros(slots, np.int64)  # where the step begins
        self.ticket = np.zeros(slots, np.int64)
        self.row = np.zeros(slots, np.int64)
        self.code = np.zeros(slots, np.float64)
        self.seed = np.zeros(slots, np.uint64)
        self.temperature = np.zeros(slots, np.float64)
        self.top_p = np.ones(slots, np.float64)
        self.step_max = np.zeros(slots, np.int64)
        self.delimiter = np.zeros(slots, np.int64)
        self.logprob = np.zeros(slots, np.float64)
        self.code_used = np.zeros(slots, np.float64)  # nats of the code that tokens have used up


class OnnxDecoder:
    """Samples rows in `slots` slots. See `OnnxEngine` for what makes the results reproducible to the bit.

    Keys and values are kept under the digest of exactly those tokens whose they are. The last token of a chain, be it
    a sampled delimiter or the end of a prompt, is never among them: it is the first one that a continuation feeds.
    """

    def __init__(self, model: OnnxModel, slots: int, cache_bytes_max: int) -> None:
        self.tokens_prefilled = self.tokens_sampled = 0
        self.prefix_hits = self.prefix_misses = 0
        self.rows_waiting = 0
        self.slot_busy_s = 0.0
        self.cache = PrefixCache[F32](cache_bytes_max)
        self._model = model
        self._context = model.info.context_tokens_max
        self._lanes = _Lanes(slots, self._context)
        self._free = list(range(slots))
        self._buckets: dict[int, KvRows] = {}
        self._waiting: deque[_Group] = deque()
        self._ready: list[_Group] = []  # heap by arrival; each has its keys and values
        self._prefills: dict[bytes, tuple[int, list[_Group]]] = {}  # by digest: the lane and who waits for it
        self._arrivals = count()
        self._ended: defaultdict[int, ResultsBuilder] = defaultdict(ResultsBuilder)
        self._nothing = np.zeros((model.caches, model.heads, 0, model.head_dim), np.float32)

    @property
    def slots_used(self) -> int:
        """Rows and prefills that run."""
        return len(self._lanes.row) - len(self._free)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do or to report."""
        return not (self.slots_used or self.rows_waiting or self._ended)

    def submit(self, ticket: int, batch: StepBatch) -> None:
        """Take in the rows of a checked batch, under a ticket of 0 or more."""
        delimiters = [self._delimiter(params) for params in batch.params]
        bounds = np.searchsorted(batch.group, np.arange(len(batch.offsets)))
        for group in np.flatnonzero(np.diff(bounds)).tolist():
            chain = batch.tokens[batch.offsets[group] : batch.offsets[group + 1]]
            rows = np.arange(bounds[group], bounds[group + 1])
            params = int(batch.group_params[group])
            if len(chain) >= self._context:
                for row in rows.tolist():
                    self._ended[ticket].add(row, Finish.CONTEXT, 0.0, 0, chain[:0], b"")
                continue
            self._waiting.append(
                _Group(
                    arrival=next(self._arrivals),
                    ticket=ticket,
                    chain=chain,
                    params=batch.params[params],
                    delimiter=delimiters[params],
                    rows=rows,
                    codes=batch.code[rows],
                    seeds=batch.seed[rows],
                )
            )
            self.rows_waiting += len(rows)

    def cancel(self, ticket: int) -> None:
        """Give a ticket's rows up and free their slots at once."""
        self._waiting = deque(group for group in self._waiting if group.ticket != ticket)
        self._ready = [group for group in self._ready if group.ticket != ticket]
        heapq.heapify(self._ready)
        unwanted = set()
        for key, (lane, groups) in list(self._prefills.items()):
            groups[:] = [group for group in groups if group.ticket != ticket]
            if not groups:
                unwanted.add(lane)
                del self._prefills[key]
        for bucket in self._buckets.values():
            leaving = (self._lanes.ticket[bucket.lane] == ticket) | np.isin(bucket.lane, list(unwanted))
            self._free.extend(bucket.lane[leaving].tolist())
            bucket.remove(np.flatnonzero(leaving))
        left = [*self._waiting, *self._ready, *(each for _, groups in self._prefills.values() for each in groups)]
        self.rows_waiting = sum(len(group.rows) - group.entered for group in left)
        self._ended.pop(ticket, None)

    def advance(self, tokens: int) -> list[tuple[int, StepResults]]:
        """Feed at most so many tokens to each slot; rows that end make room at once. What ended, by ticket."""
        for _ in range(tokens):
            self._admit()
            began_s, used = perf_counter(), self.slots_used
            # Longest first: a row that outgrows its bucket moves to one that has had its turn.
            for past in sorted(self._buckets, reverse=True):
                if self._buckets[past].count:
                    self._feed(self._buckets[past])
            self.slot_busy_s += used * (perf_counter() - began_s)
            if not self.slots_used:
                break
        results = [(ticket, builder.build()) for ticket, builder in self._ended.items()]
        self._ended.clear()
        return results

    def _delimiter(self, params: StepParams) -> int:
        token = None if params.delimiter is None else self._model.token_id(params.delimiter)
        return _NO_DELIMITER if token is None else token

    def _admit(self) -> None:
        """Fill the free slots: rows whose prefix is there in order of arrival, then prefills for those that wait."""
        while self._free:
            if self._ready:
                self._enter(self._ready[0])
                if self._ready[0].entered == len(self._ready[0].rows):
                    heapq.heappop(self._ready)
            elif self._waiting:
                self._look_up(self._waiting.popleft())
            else:
                break

    def _look_up(self, group: _Group) -> None:
        prefix = group.chain[:-1]
        key = digest(prefix)
        group.kv = self.cache.get(key) if len(prefix) else self._nothing
        if group.kv is not None or key in self._prefills:
            self.prefix_hits += 1
        if group.kv is not None:
            heapq.heappush(self._ready, group)
        elif key in self._prefills:
            self._prefills[key][1].append(group)
        else:
            self.prefix_misses += 1
            lane = self._occupy(_PREFILL, prefix, 0, self._nothing)
            self._prefills[key] = (lane, [group])

    def _enter(self, group: _Group) -> None:
        if group.kv is None:
            raise RuntimeError("a group without keys and values is not ready")
        lanes, params = self._lanes, group.params
        lane = self._occupy(group.ticket, group.chain, len(group.chain) - 1, group.kv)
        lanes.start[lane] = len(group.chain)
        lanes.row[lane] = group.rows[group.entered]
        lanes.code[lane] = group.codes[group.entered]
        lanes.seed[lane] = group.seeds[group.entered]
        lanes.temperature[lane] = params.temperature
        lanes.top_p[lane] = params.top_p
        lanes.step_max[lane] = params.max_step_tokens
        lanes.delimiter[lane] = group.delimiter
        lanes.logprob[lane] = lanes.code_used[lane] = 0
        group.entered += 1
        self.rows_waiting -= 1

    def _occupy(self, ticket: int, chain: NDArray[np.int32], position: int, kv: F32) -> int:
        lanes, lane = self._lanes, self._free.pop()
        lanes.ticket[lane] = ticket
        lanes.chain[lane, : len(chain)] = chain
        lanes.length[lane] = len(chain)
        lanes.position[lane] = position
        self._bucket(position).add(lane, kv)
        return lane

    def _bucket(self, position: int) -> KvRows:
        past = (position // PAST_MULTIPLE + 1) * PAST_MULTIPLE
        if past not in self._buckets:
            self._buckets[past] = KvRows(self._model.caches, self._model.heads, past, self._model.head_dim)
        return self._buckets[past]

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
            self._end_prefill(bucket, row)
        for row in np.flatnonzero(finish).tolist():
            self._end_row(bucket, row, Finish(int(finish[row])))
        gone = filled | (finish > 0)
        grown = ~gone & (lanes.position[lane] == bucket.past)
        for row in np.flatnonzero(grown).tolist():
            self._bucket(bucket.past).add(int(lane[row]), bucket.held(row, bucket.past))
        self._free.extend(lane[gone].tolist())
        bucket.remove(np.flatnonzero(gone | grown))

    def _run(self, bucket: KvRows) -> F32:
        """Logits `[n, V]` of a bucket's rows; their keys and values are written."""
        lane, past = bucket.lane, bucket.inputs()
        fed = lane if len(lane) == len(past[0]) else np.repeat(lane, 2)  # a single row gets a filler beside it
        position = self._lanes.position[fed]
        mask = (np.arange(bucket.past + 1) < position[:, None]).astype(np.int64)
        mask[:, -1] = 1
        tokens = self._lanes.chain[fed, position].astype(np.int64)
        logits, present = self._model.run(tokens, position, mask, past)
        bucket.write(position[: len(lane)], present)
        return logits[: len(lane)]

    def _sample(self, lane: I64, logits: F32, sampling: NDArray[np.bool_]) -> NDArray[np.uint8]:
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
        bad, end = token < 0, (token[:, None] == self._model.eos).any(axis=1)
        kept = ~(bad | end)
        grows = lane[kept]
        lanes.chain[grows, lanes.length[grows]] = token[kept]
        lanes.length[grows] += 1
        lanes.logprob[grows] += logprob[kept]
        self.tokens_sampled += len(lane) - int(bad.sum())
        finish[sampling] = np.select(
            [
                bad,
                end,
                token == lanes.delimiter[lane],
                lanes.length[lane] >= self._context,
                place + 1 >= lanes.step_max[lane],
            ],
            [Finish.ERROR, Finish.END, Finish.STEP, Finish.CONTEXT, Finish.STEP_CUT],
            0,
        )
        return finish

    def _end_prefill(self, bucket: KvRows, row: int) -> None:
        key, kv = self._keep(bucket, row)
        _, groups = self._prefills.pop(key)
        for group in groups:
            group.kv = kv
            heapq.heappush(self._ready, group)

    def _end_row(self, bucket: KvRows, row: int, finish: Finish) -> None:
        lanes, lane = self._lanes, int(bucket.lane[row])
        chain, start = lanes.chain[lane, : lanes.length[lane]], int(lanes.start[lane])
        tokens = chain[start:].copy()
        builder = self._ended[int(lanes.ticket[lane])]
        builder.add(
            row=int(lanes.row[lane]),
            finish=finish,
            logprob=float(lanes.logprob[lane]),
            cost=len(tokens) + (finish == Finish.END),
            tokens=tokens,
            text=self._model.text(chain, start, ended=finish in (Finish.END, Finish.CONTEXT)) if len(tokens) else b"",
        )
        if finish == Finish.ERROR:
            builder.explain("the model gave logits without a finite maximum")
        if finish in (Finish.STEP, Finish.STEP_CUT):
            self._keep(bucket, row)

    def _keep(self, bucket: KvRows, row: int) -> tuple[bytes, F32]:
        """Put what a row holds in the cache."""
        lane = bucket.lane[row]
        tokens = int(self._lanes.position[lane])
        key = digest(self._lanes.chain[lane, :tokens])
        kv = self.cache.get(key)
        if kv is None:
            kv = bucket.held(row, tokens).copy()
            self.cache.put(key, kv, kv.nbytes)
        return key, kv
