"""Step prompts: what the steps of a job begin with, which no engine samples and every step holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.engines.base import Finish, StepBatch, StepResults
from ramify.scheduler.engines.text import encode, step_text, tokenizer_of

V = TypeVar("V", np.int32, np.uint8)

_TAIL_TOKENS = 64  # of a chain: what a step prompt says depends on no more before it


@dataclass(frozen=True, slots=True)
class StepPrompts:
    """What the steps of a batch begin with; of some groups that may be nothing."""

    group: NDArray[np.int32]  # [B]
    tokens: Sequence[NDArray[np.int32]]  # [G]
    texts: Sequence[NDArray[np.uint8]]  # [G] UTF-8

    @classmethod
    def of(cls, batch: StepBatch, texts: Sequence[str], tokenizer_json: str) -> Self:
        """From the texts `[G]` that the steps of each group of a batch are to begin with."""
        known = dict.fromkeys(texts)
        token_of = dict(zip(known, encode(tokenizer_json, [*known]), strict=True))
        tokens, said = [token_of[text] for text in texts], [np.frombuffer(text.encode(), np.uint8) for text in texts]
        if tokenizer_json:  # in their chains: a chain may end within a character
            tokenizer = tokenizer_of(tokenizer_json)
            for group, (start, end) in enumerate(pairwise(batch.offsets.tolist())):
                tail = batch.tokens[max(start, end - _TAIL_TOKENS) : end]
                longer = np.concatenate((tail, tokens[group]))
                said[group] = np.frombuffer(step_text(tokenizer, longer, len(tail), special=True), np.uint8)
        return cls(batch.group, tokens, said)

    def before(self, batch: StepBatch) -> StepBatch:
        """The batch to be sampled: its chains end with the step prompts, which leave so much less room to its steps."""
        count = np.array([len(tokens) for tokens in self.tokens], np.int64)
        asked = [batch.params[index] for index in batch.group_params.tolist()]
        left = [
            replace(each, max_step_tokens=max(1, each.max_step_tokens - taken))
            for each, taken in zip(asked, count.tolist(), strict=True)
        ]
        params = list(dict.fromkeys(left))
        place = {each: index for index, each in enumerate(params)}
        chains = np.split(batch.tokens, batch.offsets[1:-1])  # views: chains are long
        return replace(
            batch,
            tokens=np.concatenate([*chain.from_iterable(zip(chains, self.tokens, strict=True))]),
            offsets=batch.offsets + np.concatenate((np.zeros(1, np.int64), np.cumsum(count))),
            params=tuple(params),
            group_params=np.array([place[each] for each in left], np.int32),
        )

    def after(self, results: StepResults) -> StepResults:
        """The results with the step prompts ahead of what was sampled. A step that was not even begun stays empty."""
        begun = (results.finish != Finish.ERROR) & ((results.finish != Finish.CONTEXT) | (results.token_count > 0))
        groups = self.group[results.row[begun]].tolist()
        tokens, token_count = _ahead(results.tokens, results.token_count, begun, [self.tokens[group] for group in groups])
        text, text_count = _ahead(results.text, results.text_count, begun, [self.texts[group] for group in groups])
        return replace(results, tokens=tokens, token_count=token_count, text=text, text_count=text_count)


def _ahead(
    values: NDArray[V], count: NDArray[np.int32], which: NDArray[np.bool_], firsts: Sequence[NDArray[V]]
) -> tuple[NDArray[V], NDArray[np.int32]]:
    """Put `firsts`, one for each run that `which` `[R]` marks, ahead of those runs, of `count` `[R]` values each."""
    starts = np.cumsum(count, dtype=np.int64) - count
    added = np.array([len(first) for first in firsts], np.int32)
    longer = count.copy()
    longer[which] += added
    return np.insert(values, np.repeat(starts[which], added), np.concatenate((*firsts, values[:0]))), longer
