"""What a simulated engine says: lines of letters and digits, a pure function of seeds."""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish, StepBatch, StepParams, StepResults
from ramify.scheduler.engines.sampling import uniform
from ramify.scheduler.engines.simulated_params import SimulatedParams
from ramify.scheduler.errors import EngineError
from ramify.scheduler.forest.ids import mix64

VOCABULARY = 256  # one token a byte
_ALPHABET = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz012345", np.uint8)  # 32 characters: five bits of a hash each
# What a seed is hashed with; text takes as many places as it needs.
_PLACE_END, _PLACE_LENGTH, _PLACE_LOGPROB, _PLACE_TEXT = range(4)
_PLACE_ANGLE, _PLACE_ERROR = 1 << 32, 1 << 33


def draw(batch: StepBatch, model: SimulatedParams) -> StepResults:
    """What each row of a checked batch yields, in the rows' order: a hash of seeds, cut to what the params allow."""
    per_row = batch.group_params[batch.group]
    step_max = np.array([params.max_step_tokens for params in batch.params], np.int64)[per_row]
    stop = np.array([delimiter(params) for params in batch.params], np.int64)[per_row]
    room = np.maximum(model.context_tokens_max - np.diff(batch.offsets)[batch.group], 0)
    limit = np.minimum(step_max, room)

    last = _uniform(batch, _PLACE_END) < model.end_probability
    wanted = _lengths(batch, model)
    wanted = np.where(~last & (stop < 0), limit + 1, wanted)  # without a delimiter a step has no end of its own
    whole = np.where(last, wanted < limit, wanted <= limit)  # the end of the sequence takes a token of its own
    fails = (room > 0) & (_uniform(batch, _PLACE_ERROR) < model.error_rate)
    count = np.where(fails, 0, np.where(whole, wanted, limit)).astype(np.int32)
    cut = np.where(room <= step_max, Finish.CONTEXT, Finish.STEP_CUT)

    width = -(-int(count.max(initial=0)) // 8)
    words = mix64(batch.seed[:, None], np.arange(_PLACE_TEXT, _PLACE_TEXT + width, dtype=np.uint64))
    letters = _ALPHABET[words.astype("<u8").view(np.uint8) & 31]
    stops = np.flatnonzero(whole & ~last & ~fails)
    letters[stops, count[stops] - 1] = stop[stops]
    text = letters[np.arange(letters.shape[1]) < count[:, None]]
    finish = np.where(fails, Finish.ERROR, np.where(whole, np.where(last, Finish.END, Finish.STEP), cut))
    return StepResults(
        row=np.arange(len(batch), dtype=np.int32),
        finish=finish.astype(np.uint8),
        logprob=(-count * _uniform(batch, _PLACE_LOGPROB)).astype(np.float32),
        tokens=text.astype(np.int32),
        token_count=count,
        token_cost=count + (finish == Finish.END).astype(np.int32),
        text=text,
        text_count=count,
        message="the step is one of those that fail: error_rate" if fails.any() else "",
    )


def delimiter(params: StepParams) -> int:
    """The delimiter's byte; -1 for none.

    Raises:
        EngineError: it is no single byte, or one that steps hold anyway.
    """
    if params.delimiter is None:
        return -1
    code = params.delimiter.encode()
    if len(code) != 1 or code[0] in _ALPHABET:
        raise EngineError(f"the delimiter {params.delimiter!r} is no single byte that steps do not hold otherwise")
    return code[0]


def _lengths(batch: StepBatch, model: SimulatedParams) -> NDArray[np.int64]:
    """`[B]` tokens that each step has of its own accord."""
    first = _uniform(batch, _PLACE_LENGTH)
    if model.step_lengths == "uniform":
        return model.step_tokens_min + (first * (model.step_tokens_max - model.step_tokens_min + 1)).astype(np.int64)
    # Box and Muller's transform of two even numbers to a normal one.
    normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * _uniform(batch, _PLACE_ANGLE))
    tokens = np.rint(model.step_tokens_median * np.exp(model.step_tokens_sigma * normal))
    return np.asarray(np.clip(tokens, model.step_tokens_min, model.step_tokens_max), np.int64)


def _uniform(batch: StepBatch, place: int) -> NDArray[np.float64]:
    return uniform(batch.seed, np.full(len(batch), place, np.int64))
