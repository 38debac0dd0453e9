"""Choice of tokens: a pure function of logits, code and seed, the same bits whatever the other rows are.

A step is sampled by arithmetic decoding of a code in [0, 1) (Vilnis et al. 2023, arXiv:2210.15458, section 3): each token
takes the interval of the distribution function that the code lies in, and what is left of the code decides the next one. A
code drawn evenly gives a step exactly as the model would; codes spread evenly over siblings spread the steps over what the model
thinks likely: of 16 siblings a step of probability 1/16 comes once, where chance alone would leave it out in 36 % of cases.

Everything here is done in float64 row by row along the last axis, so a row's result does not depend on how many
rows there are.
"""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.ids import mix64

F64 = NDArray[np.float64]
_BLOCK = 1 << 18  # logits at once: the dozen arrays that are made of them stay in the processor's cache
_SORTED = 1 << 12  # a vocabulary up to here is sorted whole

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


def uniform(seed: U64, place: I64) -> F64:
    """One number in [0, 1) for each seed `[n]` and token's place in its step `[n]`."""
    return (mix64(seed, place.astype(np.uint64)) >> np.uint64(11)) * np.float64(2.0**-53)


def sample(logits: NDArray[np.floating], code: F64, temperature: F64, top_p: F64) -> tuple[I64, F64, F64]:
    """Draw a token a row by inverting the distribution function.

    Args:
        logits: `[n, V]`
        code: `[n]` in [0, 1).
        temperature: `[n]` 0 takes the likeliest token, of several the one of the lowest id.
        top_p: `[n]` the smallest set of likeliest tokens with this mass is drawn from; unused where greedy.

    Returns:
        token: `[n]` ids; -1 where the logits have no finite maximum.
        logprob: `[n]` natural logarithm of the token's probability under the distribution it was drawn from; under
            the model's own where greedy.
        rest: `[n]` in [0, 1): where the code lies within the token's interval, the code of the next token.
    """
    block = max(1, _BLOCK // logits.shape[1])
    blocks = [slice(at, at + block) for at in range(0, max(1, len(logits)), block)]
    parts = [_sample(logits[at], code[at], temperature[at], top_p[at]) for at in blocks]
    token, logprob, rest = (np.concatenate(each) for each in zip(*parts, strict=True))
    return token, logprob, rest


def _sample(logits: NDArray[np.floating], code: F64, temperature: F64, top_p: F64) -> tuple[I64, F64, F64]:
    rows = np.arange(len(logits))
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    bad = ~np.isfinite(top)
    wide[bad], top[bad] = 0, 0
    greedy = temperature == 0
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the likeliest to -inf, as it should
        shifted = (wide - top[:, None]) / np.where(greedy, 1.0, temperature)[:, None]
    weight = np.exp(shifted)
    cut = (top_p < 1) & ~greedy
    if cut.any():
        weight[cut] = _nucleus(weight[cut], top_p[cut])
    mass = np.cumsum(weight, axis=1)
    total = mass[:, -1]
    token = np.count_nonzero(mass <= (code * total)[:, None], axis=1)
    # rounding may lift code * total up to total: the last token with any mass then
    token = np.minimum(token, logits.shape[1] - 1 - np.argmax(weight[:, ::-1] > 0, axis=1))
    token = np.where(greedy, np.argmax(wide, axis=1), token)
    logprob = shifted[rows, token] - np.log(total)
    width = np.maximum(weight[rows, token], np.finfo(np.float64).tiny)  # 0 where a greedy row's token is outside of a nucleus
    rest = np.clip((code * total - (mass[rows, token] - weight[rows, token])) / width, 0.0, 1 - 2.0**-53)
    return np.where(bad, -1, token), logprob, rest


def _nucleus(weight: F64, top_p: F64) -> F64:
    """Weights `[n, V]` with 0 for tokens outside of the smallest likeliest set of mass `top_p` `[n]`, all below 1."""
    if weight.shape[1] > _SORTED:
        return np.stack([_narrow(each, share) for each, share in zip(weight, top_p.tolist(), strict=True)])
    order = np.argsort(-weight, axis=1, kind="stable")
    ranked = np.take_along_axis(weight, order, axis=1)
    mass = np.cumsum(ranked, axis=1)
    ranked[mass - ranked >= (top_p * mass[:, -1])[:, None]] = 0
    kept = np.empty_like(weight)
    np.put_along_axis(kept, order, ranked, axis=1)
    return kept


def _narrow(weight: F64, top_p: float) -> F64:
    """The same for one row `[V]` of a large vocabulary, most of which is too light to matter and need not be sorted."""
    total = weight.sum()
    likely = np.flatnonzero(weight >= (1 - top_p) * total / (2 * len(weight)))  # the others are half of what is left out, at most
    order = likely[np.argsort(-weight[likely], kind="stable")]
    ranked = weight[order]
    inside = np.cumsum(ranked) - ranked < top_p * total
    kept = np.zeros_like(weight)
    kept[order[inside]] = ranked[inside]
    return kept
