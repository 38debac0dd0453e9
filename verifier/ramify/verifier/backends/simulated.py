"""A process reward model that is none: scores are hashes of the text, computed for a whole batch at once.

A score follows from the model's name, the problem and the steps up to its own, and from nothing else: the same chain has the same
score in every process, whatever shares its batch. A text's hash is the polynomial of its bytes, a prefix's that of its texts'
hashes, both modulo 2**64. Every value is multiplied by the power of its place in the batch; a run's sum is then divided by the
power of the place where it begins. An odd number has an inverse modulo 2**64, so the division is exact.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from ramify.verifier.chains import NO_STEP, ChainError
from ramify.verifier.columns import ChainColumns, ChainFault, ColumnScores
from ramify.verifier.errors import StartupError
from ramify.verifier.mixing import mix64

U64 = NDArray[np.uint64]

SPEC = "simulated"
_SCHEME = "1"  # to be changed with anything that changes a score
_BASE = 0x5851F42D4C957F2D  # of the polynomials; odd
_INVERSE = pow(_BASE, -1, 2**64)


@dataclass(frozen=True, slots=True)
class SimulatedParams:
    """How long the modelled machine takes; by default no time at all."""

    base_ms: float = 0.0  # of each batch
    token_us: float = 0.0  # more of it for each token; a byte is a token
    time_scale: float = 1.0  # seconds waited for a modelled second
    context_tokens_max: int = 1 << 16

    def __post_init__(self) -> None:
        if min(self.base_ms, self.token_us, self.time_scale) < 0 or self.context_tokens_max < 1:
            raise ValueError(f"a time is negative, or there is no context: {self}")


class SimulatedScorer:
    """See the module.

    Args:
        name: Its name in requests; another name gives other scores.
        params: The machine.
        sleep: Waits for a number of seconds.
    """

    backend = "simulated"
    convention = ""
    batch_tokens_max = 1 << 20
    calls_max = 1
    rereads = False
    tokenizes = False
    failure = ""
    remembers = True
    batch_wait_ms_max = 0.0

    def __init__(self, name: str, params: SimulatedParams | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self._params = params or SimulatedParams()
        self._sleep = sleep
        digest = hashlib.blake2b(f"{_SCHEME}\0{name}".encode(), digest_size=8)
        self.revision = digest.hexdigest()
        self._key = np.frombuffer(digest.digest(), "<u8").astype(np.uint64)
        self._powers, self._inverses = _powers_of(_BASE, 1), _powers_of(_INVERSE, 1)

    @property
    def context_tokens_max(self) -> int:
        """See `Scorer`."""
        return self._params.context_tokens_max

    def tokens(self, chains: ChainColumns) -> NDArray[np.int64]:
        """See `Scorer`: the bytes of the steps whose scores are wanted, and of the problem where that is all of them."""
        return chains.fresh_bytes

    def close(self) -> None:
        """See `Scorer`."""

    def score_columns(self, chains: ChainColumns) -> ColumnScores:
        """See `Scorer`."""
        params = self._params
        modelled_ms = params.base_ms + params.token_us * int(chains.fresh_bytes.sum()) / 1000
        if modelled_ms * params.time_scale > 0:
            self._sleep(modelled_ms * params.time_scale / 1000)
        tokens = np.diff(chains.byte_ends, prepend=0)
        faulty = (chains.length == 0) | (tokens > self.context_tokens_max)
        scores = np.full(chains.step_count, np.nan, np.float32)
        if not faulty.all():  # a chain without bound would cost memory without bound
            code = _mix64(self._prefixes(chains), self._key)
            # The top 23 bits, and half of one more: neither 0 nor, rounded to 24 bits, 1.
            scores = ((code >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
            scores[np.repeat(faulty, chains.length)] = np.nan
        return ColumnScores(scores, [self._fault(index, int(tokens[index])) for index in np.flatnonzero(faulty).tolist()])

    def _fault(self, index: int, tokens: int) -> ChainFault:
        """What is wrong with a chain that has too many tokens or, otherwise, no step."""
        if tokens <= self.context_tokens_max:
            return ChainFault(index, NO_STEP.error, NO_STEP.message)
        message = f"the chain has {tokens} tokens; the model reads at most {self.context_tokens_max}"
        return ChainFault(index, ChainError.TOO_LONG, message)

    def _prefixes(self, chains: ChainColumns) -> U64:
        """`[sum of lengths]` a hash of the problem and the steps up to each step."""
        self._grow(max(len(chains.text), len(chains.text_count)))
        text = self._texts(chains.text, chains.text_count)
        sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum(text * self._powers[: len(text)], out=sums[1:])
        problems = chains.step_ends - chains.length + np.arange(len(chains))  # where each chain's first text is
        steps = np.ones(len(text), np.bool_)
        steps[problems] = False
        starts = np.repeat(problems, chains.length)
        found: U64 = (sums[1:][steps] - sums[starts]) * self._inverses[starts]
        return found

    def _texts(self, data: NDArray[np.uint8], counts: NDArray[np.int32]) -> U64:
        """`[N]` hashes of consecutive texts of `counts` `[N]` bytes."""
        terms = np.zeros(len(data) + 1, np.uint64)  # one more, where an empty text at the end may begin
        np.multiply(data, self._powers[: len(data)], out=terms[:-1], dtype=np.uint64)
        starts = np.cumsum(counts, dtype=np.int64) - counts
        found = np.add.reduceat(terms, starts) * self._inverses[starts]
        found[counts == 0] = 0  # `reduceat` gives what stands where an empty run begins
        return _mix64(found, counts.astype(np.uint64))

    def _grow(self, size: int) -> None:
        """Have powers for `size` values, and one more for where an empty text may begin."""
        if size >= len(self._powers):
            self._powers, self._inverses = _powers_of(_BASE, 2 * size), _powers_of(_INVERSE, 2 * size)


def load_simulated(name: str, spec: str) -> SimulatedScorer:
    """Make a model of that name from `simulated`, or `simulated?base_ms=2&token_us=5`: options are `SimulatedParams`' fields.

    Raises:
        StartupError: an option or its value is unknown.
    """
    options = dict(parse_qsl(spec.partition("?")[2], keep_blank_values=True))
    known = [field.name for field in fields(SimulatedParams)]
    if unknown := sorted(options.keys() - set(known)):
        raise StartupError(f"model '{name}': {SPEC} has no option {', '.join(unknown)}; there is {', '.join(known)}")
    try:
        return SimulatedScorer(name, TypeAdapter(SimulatedParams).validate_python(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StartupError(f"model '{name}': {where + ': ' if where else ''}{first['msg']}") from error


def _powers_of(base: int, size: int) -> U64:
    """`[size]` powers, modulo 2**64, from the 0th on."""
    powers = np.full(size, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)


def _mix64(a: U64, b: U64) -> U64:
    """`[N]` hashes of pairs of 64-bit numbers: SplitMix64's finaliser over a + golden * (b + 1)."""
    return mix64(a + np.uint64(0x9E3779B97F4A7C15) * (b + np.uint64(1)))
