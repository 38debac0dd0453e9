"""What an engine is: a language model that samples steps of reasoning, many at a time, columns in and columns out."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Finish(IntEnum):
    """Why a step ended. The numbers are stored and equal those of `ramify.v1.Finish`."""

    STEP = 1  # at its boundary; the chain can go on
    STEP_CUT = 2  # at `max_step_tokens`; the chain can go on
    END = 3  # the generator ended the chain
    CONTEXT = 4  # the model's context is full: the chain is cut
    ERROR = 5  # the step could not be generated or scored; the chain is given up


@dataclass(frozen=True, slots=True)
class StepParams:
    """How to sample a step. Part of a job's spec, the same for all of its steps."""

    temperature: float  # 0 is greedy
    top_p: float  # nucleus mass, 0 < top_p <= 1
    max_step_tokens: int
    delimiter: str | None  # a step ends with this text; None: only at max_step_tokens or the chain's end


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Steps to sample: G groups (a group is one chain to be continued), B rows (a row is one continuation of a chain).

    What a row yields depends on its chain's tokens, its code, its seed and its params alone, never on the rest of the batch.
    Rows without a slot stand in line in order of arrival. A row of priority p stands as if p more had come before it: those of
    lower priorities that came not much earlier go after it, and it is passed by none but some of the next p rows that come.
    """

    tokens: NDArray[np.int32]  # [sum of lengths] the groups' chains one after the other: prompt and all steps so far
    offsets: NDArray[np.int64]  # [G+1] group g's chain is tokens[offsets[g]:offsets[g+1]], never empty
    params: tuple[StepParams, ...]
    group_params: NDArray[np.int32]  # [G] index into params
    group: NDArray[np.int32]  # [B] the group each row continues, ascending
    code: NDArray[np.float64]  # [B] in [0, 1): the place of the sampled step among all steps, in the order of their token ids
    seed: NDArray[np.uint64]  # [B] of what the code is too short to decide
    priority: NDArray[np.int32] | None = None  # [B] at least 0: the place that each takes in the line at the door; None: 0

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True, slots=True)
class StepResults:
    """Some rows of a batch that have ended, R of them, in any order; each row of a batch comes exactly once."""

    row: NDArray[np.int32]  # [R] index in the batch
    finish: NDArray[np.uint8]  # [R] a Finish
    logprob: NDArray[np.float32]  # [R] sum over the step's tokens, under the distribution they were sampled from
    tokens: NDArray[np.int32]  # [sum of counts] sampled ids without the end-of-sequence token
    token_count: NDArray[np.int32]  # [R]
    token_cost: NDArray[np.int32]  # [R] tokens sampled, the end-of-sequence token included
    text: NDArray[np.uint8]  # [sum of counts] UTF-8, the delimiter included
    text_count: NDArray[np.int32]  # [R]
    message: str = ""  # why, where a finish is ERROR


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a shard and a gateway have to know of an engine's model."""

    name: str
    revision: str  # content hash of the weights and the tokenizer
    backend: str  # "onnx", "vllm", "openai" or "simulated"
    tokenizer_json: str  # Hugging Face tokenizers format; empty: one token a byte
    context_tokens_max: int
    slots: int  # sequences that run at once
    prompt_template: str = "{problem}"
    delimiter: str = "\n"  # where a step ends unless the job says otherwise
    problem_format: str = ""  # rule that problems must satisfy, e.g. "countdown"; empty: any text
    chat_template: str = ""  # Jinja, in the conventions of transformers; empty: the model is not made for chats
    bos_token: str = ""  # texts of special tokens, as the chat template names them
    eos_token: str = ""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was made, and what it holds now."""

    rows_running: int  # slots in use
    rows_waiting: int
    prefix_hits: int  # groups whose chain needed no prefill of its own
    prefix_misses: int
    tokens_prefilled: int
    rows_sampled: int  # steps that were sampled to their end, whoever still wanted them
    tokens_sampled: int  # end-of-sequence tokens included
    slot_busy_s: float  # sum over slots of the time that they were in use
    tokens_cached: int = 0  # of chains looked up, those that needed no prefill, where the engine knows


class Engine(Protocol):
    """A generator. One process may run several; each is driven from one event loop."""

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        ...

    def stats(self) -> EngineStats:
        """What it has done so far."""
        ...

    def generate(self, batch: StepBatch) -> AsyncGenerator[StepResults, None]:
        """Sample every row of a batch; rows are yielded in groups as they end.

        Several calls may be open at once: their rows share the engine's slots in order of arrival and priority. Closing
        the iterator early gives the rows up.

        Raises:
            EngineError: the batch can't be sampled at all (malformed columns, a delimiter that the engine can't see).
                A fault of one row is a `Finish.ERROR` of that row instead.
        """
        ...

    async def close(self) -> None:
        """Give up open work and free what is held. Idempotent."""
        ...
