"""A process reward model on ONNX Runtime, which computes what is new of a row and keeps the rest as keys and values.

A row is computed part by part (`Row.chunks`; a long one in pieces), each with the keys and values of what is before it. That
is also how a row is computed of which nothing is known yet, so a verifier that was restarted gives bitwise the numbers
that it gave before, and a part's numbers never depend on what follows it.

Nor do they depend on what else is in a call. A row of a matrix product may differ in its last bits with the product's shape,
so the padded lengths P and T follow from the segment's own place and length alone, and a call never has one row (`ROWS_MIN`),
for which a CPU may have another kernel than for many.

Shapes: B rows of a call, P tokens that are held, T new ones.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.backends.folder import content_hash, open_tokenizer, read_json, require
from ramify.verifier.backends.onnx_cache import SegmentCache
from ramify.verifier.backends.onnx_graph import OnnxGraph
from ramify.verifier.backends.onnx_plan import Job, Plan
from ramify.verifier.errors import StartupError
from ramify.verifier.reading import Head, Labels, Pair, Row, Value

GRAPHS = ("model.onnx", "onnx/model.onnx")

HELD_BUCKET, NEW_BUCKET = 64, 8  # the least steps of P and T: powers of two, as registers are wide
ROWS_MIN, ROWS_MAX = 2, 64  # of a call
CALL_TOKENS, CALL_BYTES = 2_048, 64 << 20  # of a call, padding included, unless `ROWS_MIN` have more
WORK_BYTES = 128 << 20  # new keys and values of rows that are computed together


class OnnxReader:
    """See the module, and `Reader`.

    A graph that takes no past, or only one new token with it, is run on whole rows: a number follows from its row alone, but
    from what is before it only within rounding. Graphs with GroupQueryAttention are run row by row where there is a past.

    Args:
        folder: Holds `config.json`, `tokenizer.json`, and one of `GRAPHS` with its weights, as `OnnxGraph` describes it.
        head: What the model's outputs mean.
        threads: Threads of one matrix product.
        cache_bytes_max: Bounds the keys and values that are kept for longer rows. Computing takes `WORK_BYTES` more, and a
            few times `CALL_BYTES`.

    Attributes:
        tokens_read: Tokens computed so far, without padding.
        tokens_cached: Tokens of rows that were known, from before or from another row of the call.

    Raises:
        StartupError: the folder lacks files, or they are not such a model, or its outputs do not fit the head.
    """

    backend = "onnx"
    batch_tokens_max = 8_192
    calls_max = 1
    failure = ""

    def __init__(self, folder: Path, head: Head, *, threads: int = 1, cache_bytes_max: int = 256 << 20) -> None:
        require(folder, ["config.json", "tokenizer.json"])
        file = next((folder / name for name in GRAPHS if (folder / name).is_file()), None)
        if file is None:
            raise StartupError(f"the folder '{folder}' lacks {GRAPHS[0]}")
        config = read_json(folder / "config.json")
        config = config.get("text_config", config)
        self.context_tokens_max = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
        if not self.context_tokens_max:
            raise StartupError(f"{folder / 'config.json'} lacks max_position_embeddings: how many tokens the model reads")
        # Weights may lie beside the graph, under its name with an ending.
        files = sorted(path.relative_to(folder).as_posix() for path in file.parent.glob(f"{file.name}*"))
        self.revision = content_hash(folder, ["config.json", "tokenizer.json", *files])
        self.tokenizer = open_tokenizer(folder)
        self._graph = OnnxGraph(file, config, threads)
        _check_head(file, head, self._graph.outputs, config.get("vocab_size"))
        self._columns: tuple[int, int | None] = (0, None) if isinstance(head, Value) else head
        self._query_heads = int(config.get("num_attention_heads") or 1)
        self._cache = SegmentCache(cache_bytes_max)
        self.tokens_read = self.tokens_cached = 0

    @property
    def cache_bytes(self) -> int:
        """What is kept: keys and values, and what it takes to find them."""
        return self._cache.bytes

    @property
    def segments(self) -> int:
        """How many runs of tokens have their keys and values kept."""
        return len(self._cache)

    def read(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """See `Reader`."""
        found: list[NDArray[np.float64]] = []
        plan = Plan(self._cache, whole=not self._graph.remembers)
        for row in rows:
            plan.add(row)
            if plan.tokens * self._graph.token_bytes > WORK_BYTES:
                found += self._carry_out(plan)
                plan = Plan(self._cache, whole=not self._graph.remembers)
        return found + self._carry_out(plan)

    def close(self) -> None:
        """See `Reader`."""
        self._cache.clear()

    def _carry_out(self, plan: Plan) -> list[NDArray[np.float64]]:
        """The log-odds of each of the plan's rows."""
        for held_width, new_width, jobs in self._calls(plan.jobs.values()):
            self._run(jobs, held_width, new_width)
        self.tokens_read += plan.tokens
        self.tokens_cached += plan.tokens_asked - plan.tokens
        return plan.answers()

    def _calls(self, jobs: Iterable[Job]) -> Iterator[tuple[int, int, list[Job]]]:
        """P, T and the jobs of each call, those that others wait for first."""
        alike: dict[tuple[int, int, int], list[Job]] = defaultdict(list)
        for job in jobs:
            alike[job.wave, *self._widths(job.segment.end - len(job.tokens), len(job.tokens))].append(job)
        for (_, held_width, new_width), group in sorted(alike.items(), key=lambda item: item[0]):
            calls = -(-len(group) // self._rows_max(held_width, new_width))
            for call in range(calls):  # of about as many rows each, so that none has too few
                yield held_width, new_width, group[call::calls]

    def _widths(self, held: int, new: int) -> tuple[int, int]:
        """P and T for so many tokens that are held, and new ones; together no more than the model reads."""
        if held and self._graph.alone:
            return held, new
        new_width = min(_bucket(new, NEW_BUCKET), self.context_tokens_max - held)
        held_width = min(_bucket(held, HELD_BUCKET), self.context_tokens_max - new_width)
        return held_width if self._graph.padded else held, new_width

    def _rows_max(self, held_width: int, new_width: int) -> int:
        """Rows of one call."""
        if held_width and self._graph.alone:
            return 1
        width = held_width + new_width
        held_bytes = (held_width + width) * self._graph.token_bytes
        new_bytes = 8 * new_width * (self._query_heads * width + self._graph.outputs)  # scores and logits, in and out
        return min(max(ROWS_MIN, min(CALL_TOKENS // new_width, CALL_BYTES // (held_bytes + new_bytes))), ROWS_MAX)

    def _run(self, jobs: Sequence[Job], held_width: int, new_width: int) -> None:
        """Do some jobs in one call."""
        rows = jobs if len(jobs) > 1 or self._graph.alone else [*jobs] * ROWS_MIN
        held = [[each.kv for each in reversed([*job.segment.before()]) if each.kv is not None] for job in rows]
        logits, made = self._graph.run([job.tokens for job in rows], held, held_width, new_width)
        places = [[*job.inner, len(job.tokens) - 1] for job in jobs]
        good, bad = self._columns
        at = np.repeat(np.arange(len(jobs)), [len(each) for each in places]), np.concatenate(places)
        with np.errstate(invalid="ignore"):  # of infinities: what comes of them is the caller's to see
            odds = logits[*at, good].astype(np.float64)
            if bad is not None:
                odds -= logits[*at, bad]
        values = iter(odds.tolist())
        for row, (job, inner) in enumerate(zip(jobs, places, strict=True)):
            job.inner.update((place, next(values)) for place in inner[:-1])
            job.segment.log_odds = next(values)
            if self._graph.remembers and job.segment.kv is None:
                job.segment.kv = made[:, row, :, : len(job.tokens)].copy()
                self._cache.add(job.segment)


def _bucket(tokens: int, least: int) -> int:
    """A padded length: the next multiple of `least`, and of an eighth of the power of two before it."""
    step = max(least, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def _check_head(file: Path, head: Head, outputs: int, vocabulary: int | None) -> None:
    """Raises `StartupError` where a model that gives so many numbers for a token has no such head."""
    match head:
        case Pair(good, bad) if max(good, bad) >= outputs:
            wanted = f"logits of its vocabulary, of the tokens {good} and {bad} among them"
        case Labels(good, bad) if max(good, bad) >= outputs or outputs == vocabulary:
            wanted = f"logits of a few labels, {good} and {bad} among them"
        case Value() if outputs != 1:
            wanted = "one number, a reward"
        case _:
            return
    raise StartupError(f"{file} gives {outputs} numbers for a token; this convention needs {wanted}")
