"""What is asked of vLLM, and how: all of the verifier that imports it."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vllm.config import PoolerConfig  # pyright: ignore[reportMissingImports]
from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
from vllm.exceptions import VLLMClientError, VLLMValidationError  # pyright: ignore[reportMissingImports]
from vllm.inputs.engine import tokens_input  # pyright: ignore[reportMissingImports]
from vllm.pooling_params import PoolingParams  # pyright: ignore[reportMissingImports]
from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

from ramify.verifier.errors import ModelError, StartupError
from ramify.verifier.reading import Head, Labels, Pair, Row
from ramify.vllm_options import VllmOptionError, engine_options

logger = logging.getLogger(__name__)

_RESERVED = {
    "model": "it is the folder",
    "runner": "the convention says how the model is asked",
    "logprobs_mode": "scores are made of logits",
    "skip_tokenizer_init": "vLLM is given tokens",
    "max_num_queued_reqs": "the verifier has a queue of its own (--queue-chains-max)",
    "max_num_queued_tokens": "the verifier has a queue of its own (--queue-chains-max)",
}
_TASK = "token_classify"
_CANARY_BLOCKS, _CANARY_TOKENS = 2, 8  # of what its rows share, and what each has for itself
_CANARY_TOLERANCE = 1e-3


def load(model: str, head: Head, arguments: Mapping[str, object]) -> "Model":
    """Have vLLM load the model in a folder; to be started, within an event loop, before it is asked.

    Raises:
        StartupError: an argument is unknown or wrong, or vLLM cannot load the model.
    """
    defaults: dict[str, Any] = {"scheduling_policy": "priority"}  # older calls first
    if isinstance(head, Pair):
        defaults |= {"runner": "generate", "enable_prefix_caching": True}
    else:
        # The rows of all tokens: with STEP, its default for process reward models, vLLM neither caches nor cuts prompts.
        defaults |= {"runner": "pooling", "pooler_config": PoolerConfig(tok_pooling_type="ALL")}
    fixed = {"model": model, "logprobs_mode": "raw_logits", "skip_tokenizer_init": True}
    try:
        args = AsyncEngineArgs(**{**defaults, **engine_options(arguments, reserved=_RESERVED), **fixed})
        llm = AsyncLLM.from_engine_args(args)
    except VllmOptionError as error:
        raise StartupError(f"vllm: {error}") from error
    except Exception as error:  # of any kind: the configuration's, the weights', the driver's
        reason = " ".join(str(error).split())  # in one line: of several, a terminal may show one
        raise StartupError(f"vLLM can't load '{model}': {reason} (more is in the log of this process)") from error
    return LanguageModel(llm, head) if isinstance(head, Pair) else Classifier(llm, head)


class Model(ABC):
    """A model that vLLM has loaded. Its coroutines run in one event loop."""

    def __init__(self, llm: AsyncLLM, context_tokens_max: int) -> None:
        self._llm = llm
        self.context_tokens_max = context_tokens_max
        self.batch_tokens_max = int(llm.scheduler_config.max_num_batched_tokens)
        self.reads_cache = bool(llm.vllm_config.cache_config.enable_prefix_caching)
        config = llm.model_config
        self._vocabulary = int(config.get_vocab_size())
        held = {"dtype": config.dtype, "quantization": config.quantization, "cache": llm.vllm_config.cache_config.cache_dtype}
        self.precision = {name: str(value) for name, value in held.items()}

    @property
    def dead(self) -> bool:
        """Whether vLLM's process has ended."""
        return bool(self._llm.errored)

    @abstractmethod
    async def start(self) -> None:
        """Warm it up and check it. Raises `StartupError`."""

    async def read(self, rows: Sequence[Row], order: int) -> list[NDArray[np.float64]]:
        """The log-odds of each row; calls of a lower `order` go first. No numbers where vLLM refuses a row."""
        return await asyncio.gather(*(self._try(row, f"{order}-{at}", order) for at, row in enumerate(rows)))

    async def _try(self, row: Row, name: str, order: int) -> NDArray[np.float64]:
        try:
            if (highest := int(row.tokens.max())) >= self._vocabulary:  # without a tokenizer vLLM does not look, and dies of it
                raise VLLMValidationError(f"the model has {self._vocabulary} tokens, none with the number {highest}")
            return await self._read(row, name, order)
        except VLLMClientError as error:
            logger.warning("vLLM can't read a chain of %d tokens: %s", len(row.tokens), error)
            return np.full(len(row.reads), np.nan)

    @abstractmethod
    async def _read(self, row: Row, name: str, order: int) -> NDArray[np.float64]:
        """The log-odds of a row. Raises `VLLMClientError` where vLLM refuses it."""

    async def close(self) -> None:
        """End vLLM's processes. No read is open."""
        self._llm.shutdown()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}  # vLLM's own
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class LanguageModel(Model):
    """Reads the logits of two tokens as the next one: a request for each read, as prefix caching makes that cheap."""

    def __init__(self, llm: AsyncLLM, head: Pair) -> None:
        super().__init__(llm, llm.model_config.max_model_len - 1)  # vLLM has to have room for the token that it samples
        self._head = head
        self._params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=list(head),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def start(self) -> None:
        """Warm it up. Raises `StartupError`: it has no such tokens."""
        if (highest := max(self._head)) >= self._vocabulary:
            raise StartupError(
                f"the model has {self._vocabulary} tokens, none with the number {highest}: its tokenizer is another's"
            )
        await self._log_odds([0], "start", 0)

    async def _read(self, row: Row, name: str, order: int) -> NDArray[np.float64]:
        asked = (self._log_odds(row.tokens[: read + 1].tolist(), f"{name}-{read}", order) for read in row.reads.tolist())
        return np.array(await asyncio.gather(*asked), np.float64)

    async def _log_odds(self, tokens: list[int], name: str, order: int) -> float:
        answers = self._llm.generate(tokens_input(tokens), self._params, name, priority=order)
        (completion,) = [each.outputs[0] async for each in answers]
        if not completion.logprobs:
            raise ModelError(f"vLLM ended a request with {completion.finish_reason!r}")
        logits = completion.logprobs[0]
        return float(logits[self._head.good].logprob - logits[self._head.bad].logprob)


class _Output(NamedTuple):
    """What a classifier gave for a row."""

    positions: NDArray[np.intp]  # [P] of the tokens that there are logits for
    logits: NDArray[np.float32]  # [P, L]
    cached: int  # tokens that were not computed

    @property
    def whole(self) -> bool:
        """Whether it has logits for just these positions."""
        return len(self.positions) == len(self.logits)

    def has(self, reads: NDArray[np.int32]) -> bool:
        """Whether it has logits for all of these."""
        return self.whole and bool(np.isin(reads, self.positions).all())


class Classifier(Model):
    """Reads the logits of tokens.

    Of a row that the prefix cache holds in part, vLLM gives the logits of the rest alone. That is what is asked for here with
    `skip_reading_prefix_cache`, a field that vLLM keeps for itself: `start` tries whether it still does what it is to do.
    """

    def __init__(self, llm: AsyncLLM, head: Head) -> None:
        super().__init__(llm, llm.model_config.max_model_len)
        self._head = head
        pooler = llm.model_config.pooler_config
        self._step_tag = pooler.step_tag_id if pooler.tok_pooling_type == "STEP" else None
        self.reads_cache &= pooler.tok_pooling_type != "STEP"  # which takes all tokens for new ones
        self._plain = PoolingParams(task=_TASK, use_activation=False)

    async def start(self) -> None:
        """Warm it up, and have it read the prefix cache if that changes nothing.

        Raises:
            StartupError: the model gives no logits for tokens, or not those of the head.
        """
        tasks = await self._llm.get_supported_tasks()
        if _TASK not in tasks:
            raise StartupError(f"vLLM gives no logits for the tokens of this model; it can {', '.join(tasks)}")
        shared = _CANARY_BLOCKS * int(self._llm.vllm_config.cache_config.block_size)
        rows = self._canary_rows(min(shared, self.context_tokens_max - _CANARY_TOKENS))
        plain = await asyncio.gather(*(self._ask(row, f"start-{at}", 0, cached=False) for at, row in enumerate(rows)))
        if not all(each.whole for each in plain):
            raise StartupError(f"vLLM gives {len(plain[0].logits)} logits for {len(plain[0].positions)} tokens of this model")
        labels = plain[0].logits.shape[1]
        if max(self._head, default=0) >= labels or (not isinstance(self._head, Labels) and labels != 1):
            wanted = f"labels {self._head.good} and {self._head.bad}" if isinstance(self._head, Labels) else "one number"
            raise StartupError(f"the convention wants {wanted} of a token; the model gives {labels}")
        if self.reads_cache and (reason := await self._cache_fault(rows, plain)):
            self.reads_cache = False
            logger.warning("vLLM's prefix cache is not read, so each row is computed as a whole: %s", reason)

    async def _read(self, row: Row, name: str, order: int) -> NDArray[np.float64]:
        output = await self._ask(row.tokens, name, order, cached=self.reads_cache)
        if self.reads_cache and not output.has(row.reads):  # what is wanted lies in what was cached
            output = await self._ask(row.tokens, f"{name}-all", order, cached=False)
        if not output.has(row.reads):
            raise VLLMValidationError(f"of the {len(row.reads)} that are wanted, it gave {len(output.logits)} others")
        return self._log_odds(output.logits[np.searchsorted(output.positions, row.reads)].astype(np.float64))

    def _log_odds(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        if isinstance(self._head, Labels):
            return logits[:, self._head.good] - logits[:, self._head.bad]
        return logits[:, 0]

    async def _ask(self, tokens: NDArray[np.int32], name: str, order: int, *, cached: bool) -> _Output:
        params = PoolingParams(task=_TASK, use_activation=False, skip_reading_prefix_cache=False) if cached else self._plain
        (output,) = [each async for each in self._llm.encode(tokens_input(tokens.tolist()), params, name, priority=order)]
        held = int(output.num_cached_tokens) if cached else 0
        every = np.arange(held, len(tokens)) if self._step_tag is None else np.flatnonzero(tokens == self._step_tag)
        return _Output(every, output.outputs.data.float().numpy(), held)

    def _canary_rows(self, shared: int) -> list[NDArray[np.int32]]:
        """Two rows that begin alike, and end with the step tag if there is one."""
        random = np.random.default_rng(0)
        start, *ends = (
            random.integers(self._vocabulary, size=size, dtype=np.int32) for size in (shared, _CANARY_TOKENS, _CANARY_TOKENS)
        )
        for end in ends:
            end[-1] = end[-1] if self._step_tag is None else self._step_tag
        return [np.concatenate([start, end]) for end in ends]

    async def _cache_fault(self, rows: list[NDArray[np.int32]], plain: list[_Output]) -> str:
        """What is wrong with the answers to rows that were computed before, as against those without the cache; or nothing."""
        try:
            warm = await asyncio.gather(*(self._ask(row, f"canary-{at}", 0, cached=True) for at, row in enumerate(rows)))
        except (TypeError, AttributeError) as error:
            return f"this vLLM has other fields than 0.32: {error}"
        for full, rest in zip(plain, warm, strict=True):
            if not rest.cached:
                return "it held nothing of a row that it had just computed"
            if not rest.whole:
                return f"{len(rest.logits)} of {len(full.logits)} tokens have logits, {rest.cached} were cached"
            if not self._alike(full.logits[rest.cached :], rest.logits):
                return "logits are others than without it"
        return ""

    def _alike(self, full: NDArray[np.float32], rest: NDArray[np.float32]) -> bool:
        """Whether logits agree, but for rounding: in half precision, far better than those of two tokens do."""
        exact = "float32" in self.precision["dtype"]
        room = _CANARY_TOLERANCE if exact else max(_CANARY_TOLERANCE, float(full.std(axis=0).min()) / 2)
        return bool(np.allclose(full, rest, rtol=0, atol=room, equal_nan=True))
