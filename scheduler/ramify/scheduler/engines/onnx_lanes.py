"""What an `OnnxDecoder` knows of the sequences that it runs, and of those that wait."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ramify.scheduler.engines.base import StepParams
from ramify.scheduler.engines.text import is_special, only_token, step_text

I32 = NDArray[np.int32]
KV = NDArray[Any]

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Delimiter:
    """Where a step ends: after one token, or when its text holds another."""

    tokenizer: Tokenizer
    text: str | None = None  # None: nowhere
    token: int = NO_TOKEN  # which alone says the text, if there is one
    special: bool = False  # whether it is one that texts leave out

    @classmethod
    def find(cls, tokenizer: Tokenizer, text: str | None) -> "Delimiter":
        """How a delimiter is seen among a model's tokens."""
        if text is None:
            return cls(tokenizer)
        token = only_token(tokenizer, text)
        return cls(tokenizer, text, NO_TOKEN if token is None else token, is_special(tokenizer, text))

    @property
    def in_text(self) -> bool:
        """Whether `completed` has to be asked: no token says it."""
        return self.text is not None and self.token == NO_TOKEN

    def completed(self, chain: I32, start: int) -> bool:
        """Whether the last token of a chain `[n]` completes the delimiter in the step that begins at `start`."""
        if self.text is None:
            return False
        tokens_max = len(self.text.encode())  # none says less than a byte
        return self.text.encode() in step_text(self.tokenizer, chain, max(start, len(chain) - tokens_max), special=self.special)

    def step(self, chain: I32, start: int, *, ended: bool) -> bytes:
        """What the step says that begins at `start` of a chain `[n]`, and with which that may have ended."""
        return step_text(self.tokenizer, chain, start, special=self.special, ended=ended)


@dataclass(slots=True, eq=False)
class Group:
    """Rows that continue one chain and have no slot yet."""

    place: int  # in the line at the door, see `StepBatch`
    arrival: int
    ticket: int
    chain: I32
    params: StepParams
    delimiter: Delimiter
    rows: NDArray[np.int64]  # places in the batch
    codes: NDArray[np.float64]
    seeds: NDArray[np.uint64]
    entered: int = 0  # how many of the rows have had a slot
    kv: list[KV] = field(default_factory=list)  # [C, H, _, D] one after the other: all tokens but the last, which is fed first

    def __lt__(self, other: "Group") -> bool:
        return (self.place, self.arrival) < (other.place, other.arrival)


class Lanes:
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
        self.logprob = np.zeros(slots, np.float64)
        self.code_used = np.zeros(slots, np.float64)  # nats of the code that tokens have used up
        self.end_token = np.full(slots, NO_TOKEN, np.int64)  # that ends a step
        self.in_text = np.zeros(slots, np.bool_)  # whether a step's end is looked for in its text
        self.delimiter: dict[int, Delimiter] = {}  # by lane

    def enter(self, lane: int, group: Group) -> None:
        """Put the next row of a group in a lane that holds its chain."""
        params, at = group.params, group.entered
        self.start[lane] = len(group.chain)
        self.row[lane] = group.rows[at]
        self.code[lane] = group.codes[at]
        self.seed[lane] = group.seeds[at]
        self.temperature[lane] = params.temperature
        self.top_p[lane] = params.top_p
        self.step_max[lane] = params.max_step_tokens
        self.end_token[lane] = group.delimiter.token
        self.in_text[lane] = group.delimiter.in_text
        self.delimiter[lane] = group.delimiter
        self.logprob[lane] = self.code_used[lane] = 0
        group.entered += 1

    def known(self, lane: int) -> I32:
        """View `[length]` of the tokens in a lane."""
        return self.chain[lane, : self.length[lane]]
