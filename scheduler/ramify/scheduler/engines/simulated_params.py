"""The GPU, the model and the faults that a simulated engine has."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ramify.scheduler.errors import EngineError


@dataclass(frozen=True, slots=True)
class SimulatedParams:
    """The machine that is modelled, the model that it runs, and what goes wrong with it.

    The times are those of Llama 3.1 8B in FP8 on one H100 SXM, as `infra/engines/h100-8b.toml` says with its source.
    """

    slots: int = 256  # sequences that decode at once
    token_ms: float = 4.5  # time of one decoded token of a sequence that runs alone, but for reading its context
    token_extra_ms: float = 0.0124  # more of it for each other sequence that runs
    context_token_ns: float = 20.7  # more of it for each token of the contexts of all sequences that run
    prefill_tokens_per_s: float = 72_400.0  # of the whole engine; decoding halts meanwhile
    kv_tokens_max: int = 1_000_000  # room for keys and values: of the sequences that run, and of the prefix cache
    block_tokens: int = 16  # keys and values are kept and shared in blocks of so many tokens
    time_scale: float = 1.0  # seconds waited for a modelled second; 0: no time is modelled, no prefix is looked up

    step_lengths: Literal["log-normal", "uniform"] = "log-normal"
    step_tokens_median: float = 32.0  # of log-normal lengths, the step's end included
    step_tokens_sigma: float = 0.8  # of their logarithm: one in a hundred has more than six times the median
    step_tokens_min: int = 4  # no step is shorter
    step_tokens_max: int = 512  # or longer
    end_probability: float = 0.15  # that a step is the chain's last
    context_tokens_max: int = 8_192
    waiting_rows_max: int = 1 << 20  # rows without a slot

    crash_on: str = ""  # a chain that holds this text ends the engine's process at once, as a driver's fault would
    die_after_steps: int = 0  # the process ends once it has sampled so many steps; 0: never
    stall_every_steps: int = 0  # each time that so many more were sampled, all stands still for `stall_s`; 0: never
    stall_s: float = 10.0
    slow_factor: float = 1.0  # all times are so many times as long
    error_rate: float = 0.0  # steps that end as errors, a part of all; which ones follows from their seeds

    def __post_init__(self) -> None:
        if min(self.slots, self.block_tokens, self.step_tokens_min, self.prefill_tokens_per_s) <= 0:
            raise EngineError(f"a rate, length or number of slots is not positive: {self}")
        times = (self.token_ms, self.token_extra_ms, self.context_token_ns, self.time_scale, self.stall_s, self.slow_factor)
        if min(*times, self.waiting_rows_max, self.die_after_steps, self.stall_every_steps) < 0:
            raise EngineError(f"a time or bound is negative: {self}")
        if not self.step_tokens_min <= self.step_tokens_max or self.step_tokens_median <= 0 or self.step_tokens_sigma < 0:
            raise EngineError(f"step lengths are out of range: {self}")
        if not (0 <= self.end_probability <= 1 and 0 <= self.error_rate <= 1):
            raise EngineError(f"end_probability or error_rate is not between 0 and 1: {self}")
        if self.blocks_max < self.blocks(self.context_tokens_max + 1):
            raise EngineError(f"kv_tokens_max: a sequence as long as the context does not fit: {self}")

    @property
    def blocks_max(self) -> int:
        """Blocks that there is room for."""
        return self.kv_tokens_max // self.block_tokens

    def blocks(self, tokens: int) -> int:
        """Blocks that a sequence of so many tokens takes."""
        return -(-tokens // self.block_tokens)


def read_options(file: Path) -> dict[str, Any]:
    """Options of a simulated engine from a TOML file.

    Raises:
        EngineError: it can't be read.
    """
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise EngineError(f"{file} is no file of options for a simulated engine: {error}") from error
