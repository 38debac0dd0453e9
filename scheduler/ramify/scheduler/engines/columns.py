"""What every engine does the same with columns: check a batch, assemble and pick results."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish, StepBatch, StepParams, StepResults
from ramify.scheduler.errors import EngineError

_DTYPES = {
    "tokens": np.int32,
    "offsets": np.int64,
    "group_params": np.int32,
    "group": np.int32,
    "code": np.float64,
    "seed": np.uint64,
}


def check_batch(batch: StepBatch, vocabulary: int) -> None:
    """Refuse a batch whose columns do not fit each other or a model of so many tokens.

    Raises:
        EngineError: names the column and what is wrong with it.
    """
    for name, dtype in _DTYPES.items():
        column: NDArray[np.generic] = getattr(batch, name)
        _require(column.ndim == 1 and column.dtype == dtype, f"{name} is not a [n] column of {np.dtype(dtype)}")
    groups = len(batch.offsets) - 1
    _require(groups >= 0 and batch.offsets[0] == 0, "offsets do not begin with 0")
    _require(bool((np.diff(batch.offsets) > 0).all()), "offsets: a chain is empty")
    _require(batch.offsets[-1] == len(batch.tokens), "offsets do not end with the number of tokens")
    _require(_within(batch.tokens, vocabulary), "tokens: an id is outside of the vocabulary")
    _require(len(batch.group_params) == groups, "group_params has another length than there are groups")
    _require(_within(batch.group_params, len(batch.params)), "group_params points outside of params")
    _require(_within(batch.group, groups), "group points outside of the groups")
    _require(bool((np.diff(batch.group) >= 0).all()), "group is not ascending")
    _require(len(batch.seed) == len(batch.group), "seed and group differ in length")
    _require(len(batch.code) == len(batch.group), "code and group differ in length")
    _require(bool(((batch.code >= 0) & (batch.code < 1)).all()), "code is not in [0, 1)")
    if batch.priority is not None:
        priority = batch.priority
        _require(priority.shape == batch.group.shape and priority.dtype == np.int32, "priority is not a [B] column of int32")
        _require(bool((priority >= 0).all()), "priority is less than 0")
    for params in batch.params:
        _check_params(params)


def _check_params(params: StepParams) -> None:
    _require(math.isfinite(params.temperature) and params.temperature >= 0, "temperature is not a number >= 0")
    _require(0 < params.top_p <= 1, "top_p is not in (0, 1]")
    _require(params.max_step_tokens >= 1, "max_step_tokens is less than 1")
    _require(params.delimiter != "", "the delimiter is empty")


def _within(column: NDArray[np.int32], end: int) -> bool:
    return len(column) == 0 or (int(column.min()) >= 0 and int(column.max()) < end)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise EngineError(message)


class Door:
    """The line of the rows that wait for a slot of an engine; see `StepBatch`."""

    def __init__(self) -> None:
        self._arrived = 0

    def places(self, batch: StepBatch) -> NDArray[np.int64]:
        """`[B]` where the rows of a batch that comes stand in line: those of lower numbers go first, in order of arrival else."""
        arrived, self._arrived = self._arrived, self._arrived + len(batch)
        return np.full(len(batch), arrived) if batch.priority is None else arrived + batch.priority.astype(np.int64)


class ResultsBuilder:
    """Gathers rows that end one by one and makes columns of them."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Finish, float, int]] = []
        self._tokens: list[NDArray[np.int32]] = []
        self._texts: list[bytes] = []
        self._message = ""

    def add(self, row: int, finish: Finish, logprob: float, cost: int, tokens: NDArray[np.int32], text: bytes) -> None:
        """Take in one row: the fields of `StepResults`, with tokens `[count]`."""
        self._rows.append((row, finish, logprob, cost))
        self._tokens.append(tokens)
        self._texts.append(text)

    def explain(self, message: str) -> None:
        """Say why rows ended as errors."""
        self._message = message

    def build(self) -> StepResults:
        """All rows taken in so far, at least one."""
        row, finish, logprob, cost = zip(*self._rows, strict=True)
        return StepResults(
            row=np.array(row, np.int32),
            finish=np.array(finish, np.uint8),
            logprob=np.array(logprob, np.float32),
            tokens=np.concatenate(self._tokens, dtype=np.int32),
            token_count=np.array([len(tokens) for tokens in self._tokens], np.int32),
            token_cost=np.array(cost, np.int32),
            text=np.frombuffer(b"".join(self._texts), np.uint8),
            text_count=np.array([len(text) for text in self._texts], np.int32),
            message=self._message,
        )


def concatenate(parts: Sequence[StepResults]) -> StepResults:
    """The rows of several results, at least one, in one."""
    if len(parts) == 1:
        return parts[0]
    return StepResults(
        row=np.concatenate([part.row for part in parts]),
        finish=np.concatenate([part.finish for part in parts]),
        logprob=np.concatenate([part.logprob for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        token_count=np.concatenate([part.token_count for part in parts]),
        token_cost=np.concatenate([part.token_cost for part in parts]),
        text=np.concatenate([part.text for part in parts]),
        text_count=np.concatenate([part.text_count for part in parts]),
        message=next((part.message for part in parts if part.message), ""),
    )


def take_rows(results: StepResults, at: NDArray[np.int64]) -> StepResults:
    """The results that stand at the places `at` `[R]`, in that order."""
    return StepResults(
        row=results.row[at],
        finish=results.finish[at],
        logprob=results.logprob[at],
        tokens=results.tokens[_ranges(results.token_count, at)],
        token_count=results.token_count[at],
        token_cost=results.token_cost[at],
        text=results.text[_ranges(results.text_count, at)],
        text_count=results.text_count[at],
        message=results.message,
    )


def _ranges(counts: NDArray[np.int32], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the runs `at` in a flat column of consecutive runs of `counts` elements."""
    starts = np.cumsum(counts, dtype=np.int64) - counts
    picked = counts[at]
    ends = np.cumsum(picked, dtype=np.int64)
    return np.repeat(starts[at] - (ends - picked), picked) + np.arange(int(picked.sum()), dtype=np.int64)
