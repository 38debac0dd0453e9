"""What a model is given to read, and what is asked of it: between conventions, which know text, and readers, which run models."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class Pair(NamedTuple):
    """Two tokens of a causal language model: the logit of the one as next token, less that of the other."""

    good: int
    bad: int


class Labels(NamedTuple):
    """Two labels of a classifier of tokens: the logit of the one, less that of the other."""

    good: int = 1
    bad: int = 0


class Value(NamedTuple):
    """The only number that a reward model gives for a token."""


Head: TypeAlias = Pair | Labels | Value
"""How a model's outputs at one position become one number, its log-odds: the score is their logistic function."""


class Row(NamedTuple):
    """A sequence of T tokens for a model."""

    tokens: NDArray[np.int32]  # [T]
    reads: NDArray[np.int32]  # [K] positions whose log-odds are wanted, in ascending order; at least one
    chunks: NDArray[np.int32]  # [C] where its parts end, the last at T. A part is the same in every longer chain


class Reader(Protocol):
    """A model that reads rows. Loaded and warmed up once constructed."""

    @property
    def backend(self) -> str:
        """What runs it: "onnx", "transformers" or "vllm"."""
        ...

    @property
    def revision(self) -> str:
        """Changes with everything in the model's folder that bears on a number that it gives."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's; text in it that looks like a special token is none."""
        ...

    @property
    def context_tokens_max(self) -> int:
        """Tokens of the longest row."""
        ...

    @property
    def batch_tokens_max(self) -> int:
        """Tokens that are worth one call; a row that is longer goes alone."""
        ...

    @property
    def calls_max(self) -> int:
        """Calls that may be open at once, each in a thread of its own."""
        ...

    @property
    def failure(self) -> str:
        """Why it reads no more, for people; empty while it can."""
        ...

    def read(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """The log-odds `[K]` of each row; what is no finite number comes as it is. Blocks; an exception fails all rows.

        A row's numbers do not depend on what else is in the call, as far as the machine's arithmetic allows.
        """
        ...

    def close(self) -> None:
        """Frees what it holds; no call is open."""
        ...
