"""An engine on GPUs: vLLM's `AsyncLLM`, token ids in and out."""

import asyncio
import heapq
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from vllm.exceptions import VLLMClientError  # pyright: ignore[reportMissingImports]
from vllm.inputs.engine import tokens_input  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
from vllm.outputs import CompletionOutput, RequestOutput  # pyright: ignore[reportMissingImports]
from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]
from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # pyright: ignore[reportMissingImports]

from ramify.scheduler.engines.base import EngineStats, Finish, ModelInfo, StepBatch, StepParams, StepResults
from ramify.scheduler.engines.columns import Door, ResultsBuilder
from ramify.scheduler.engines.loop import Ended, EngineLoop
from ramify.scheduler.engines.served import Served
from ramify.scheduler.engines.text import is_special, only_token, step_text
from ramify.scheduler.engines.vllm_args import VllmParams, engine_args, model_info, tokenizer_of
from ramify.scheduler.errors import EngineError

__all__ = ["VllmEngine", "VllmParams", "load_vllm"]

_SEED_BITS = np.uint64((1 << 63) - 1)  # that vLLM has room for
_NO_TOKENS = np.empty(0, np.int32)


def load_vllm(model: str, params: VllmParams, options: Mapping[str, Any]) -> "VllmEngine":
    """Start vLLM and have it load a model; takes from half a minute to many, within an event loop or without.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        params: what is Ramify's own.
        options: vLLM's engine arguments, texts or values.

    Raises:
        EngineError: an option is unknown or wrong, or vLLM can't load the model.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    args = engine_args(model, params, options)
    try:
        llm = AsyncLLM.from_engine_args(args)
    except Exception as error:  # of any kind: the configuration's, the hub's, the driver's
        reason = " ".join(str(error).split())  # in one line: of several, a terminal may show one
        raise EngineError(f"vLLM can't load {model}: {reason} (more is in the log of this process)") from error
    try:
        return VllmEngine(llm, model, params)
    except BaseException:
        llm.shutdown()
        raise


@dataclass(frozen=True, slots=True)
class _Stop:
    """How vLLM is told where a step ends."""

    token: int | None = None
    text: str | None = None  # looked for in the text: costs vLLM a detokenizer
    special: bool = False  # whether it is a special token


@dataclass(slots=True, eq=False)
class _Call:
    """A batch and what has become of it."""

    ticket: int
    batch: StepBatch
    places: list[int]  # [B] in the line
    rows_left: NDArray[np.int64]  # [G] that have not ended
    missed: NDArray[np.bool_]  # [G] whether a row was prefilled with more than the prefix cache could ever hold
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    open: int = 0  # rows not handed out
    ended: int = 0  # rows in `results`
    results: ResultsBuilder = field(default_factory=ResultsBuilder)

    def chain(self, row: int) -> NDArray[np.int32]:
        group = self.batch.group[row]
        return self.batch.tokens[self.batch.offsets[group] : self.batch.offsets[group + 1]]

    def params(self, row: int) -> StepParams:
        return self.batch.params[int(self.batch.group_params[self.batch.group[row]])]

    def end(self, row: int, finish: Finish, logprob: float, cost: int, tokens: NDArray[np.int32], text: bytes) -> None:
        self.results.add(row, finish, logprob, cost, tokens, text)
        self.ended += 1

    def refuse(self, row: int, reason: str) -> None:
        self.end(row, Finish.ERROR, 0.0, 0, _NO_TOKENS, b"")
        self.results.explain(reason)

    def take(self) -> StepResults:
        """What has ended since the last time."""
        taken, self.results = self.results.build(), ResultsBuilder()
        self.open -= self.ended
        self.ended = 0
        return taken


class VllmEngine(EngineLoop):
    """Samples with vLLM: a request a row, all rows of a call handed over at once, so that a group shares its prefix.

    Rows stand in line as `StepBatch` says (with `scheduling_policy="priority"`). A row's tokens follow from its chain, seed and
    params as far as vLLM's kernels give the same logits whatever shares their batch; `VLLM_BATCH_INVARIANT=1` makes more of
    them do so. Its code has no effect: vLLM draws by seed alone, so siblings are independent. What vLLM's own limits
    (`max_num_queued_reqs`, `max_num_queued_tokens`) do not admit waits here.

    Args:
        llm: is shut down with this engine.
        model: the name or folder that it was loaded from.
        params: what is Ramify's own.

    Raises:
        EngineError: the model has no fast tokenizer.
    """

    def __init__(self, llm: AsyncLLM, model: str, params: VllmParams) -> None:
        self.params = params
        self._llm = llm
        self._tokenizer: Tokenizer = tokenizer_of(llm, model)
        self._info = model_info(llm, model, params, self._tokenizer)
        super().__init__(llm.model_config.get_vocab_size(), params.waiting_rows_max)
        self._lora = LoRARequest(lora_name=params.lora, lora_int_id=1, lora_path=params.lora) if params.lora else None
        self._block = int(llm.vllm_config.cache_config.block_size)
        self._requests_max = _bound(llm.scheduler_config.max_num_queued_reqs)
        self._queued_tokens_max = _bound(llm.scheduler_config.max_num_queued_tokens)
        self._stops: dict[str | None, _Stop] = {None: _Stop()}
        self._calls: dict[int, _Call] = {}  # by ticket, in order of arrival
        self._waiting: list[tuple[int, int, int, _Call]] = []  # a heap: places and rows, with ticket and call, that vLLM lacks
        self._door = Door()
        self._news = asyncio.Event()
        self._fault: BaseException | None = None
        self._inside = self._inside_tokens = 0  # rows that vLLM has, and the tokens of their chains
        self._served = Served()

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    def stats(self) -> EngineStats:
        """What was done so far. A group whose chain the prefix cache held but for its last block is a hit."""
        running = min(self._inside, self.info.slots)
        waiting = len(self._waiting) + self._inside - running
        return self._served.stats(rows_running=running, rows_waiting=waiting, rows_sampled=self._rows_sampled)

    def _check(self, batch: StepBatch) -> None:
        if self._llm.errored:
            self._fail(EngineDeadError())
            self._raise_failure()
        for params in batch.params:
            if params.delimiter is not None and params.delimiter not in self._stops:
                self._stops[params.delimiter] = self._stop(params.delimiter)

    def _stop(self, delimiter: str) -> _Stop:
        special = is_special(self._tokenizer, delimiter)
        token = only_token(self._tokenizer, delimiter)
        return _Stop(token, None if token is not None else delimiter, special)

    def _submit(self, ticket: int, batch: StepBatch) -> None:
        groups = len(batch.offsets) - 1
        places, left = self._door.places(batch).tolist(), np.bincount(batch.group, minlength=groups)
        call = _Call(ticket, batch, places, left, np.zeros(groups, np.bool_), open=len(batch))
        self._calls[ticket] = call
        for row in range(len(batch)):
            if len(call.chain(row)) < self.info.context_tokens_max:
                heapq.heappush(self._waiting, (places[row], ticket, row, call))
            else:
                call.end(row, Finish.CONTEXT, 0.0, 0, _NO_TOKENS, b"")
        self._news.set()

    def _cancel(self, ticket: int) -> None:
        call = self._calls.pop(ticket, None)
        if call is not None:
            self._waiting = [each for each in self._waiting if each[-1] is not call]
            heapq.heapify(self._waiting)
            for task in call.tasks:
                task.cancel()  # which aborts its request

    def _idle(self) -> bool:
        return not self._calls

    def _wake(self) -> None:
        self._news.set()
        super()._wake()

    async def _release(self) -> None:
        tasks = [task for call in self._calls.values() for task in call.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._waiting.clear()
        self._calls.clear()
        self._llm.shutdown()  # here, and not in a thread: vLLM's own task would take it for a crash before it is ended

    async def _turn(self) -> Ended:
        if self._idle():
            return []
        self._admit()
        await self._news.wait()
        if any(call.ended for call in self._calls.values()):
            await asyncio.sleep(self.params.gather_ms / 1000)
        self._news.clear()
        if self._fault is not None:
            raise self._fault
        ended = [(ticket, call.take()) for ticket, call in self._calls.items() if call.ended]
        for ticket, _ in ended:
            if not self._calls[ticket].open:
                del self._calls[ticket]
        return ended

    def _admit(self) -> None:
        """Hand rows to vLLM in the order of the line, as far as its own limits allow."""
        while self._waiting and self._inside < self._requests_max and self._inside_tokens < self._queued_tokens_max:
            _, _, row, call = heapq.heappop(self._waiting)
            tokens = len(call.chain(row))
            task = asyncio.get_running_loop().create_task(self._sample(call, row))
            call.tasks.add(task)
            self._inside += 1
            self._inside_tokens += tokens
            task.add_done_callback(partial(self._leave, call, tokens))  # also runs for a task that is cancelled before it begins

    def _leave(self, call: _Call, tokens: int, task: "asyncio.Task[None]") -> None:
        call.tasks.discard(task)
        self._inside -= 1
        self._inside_tokens -= tokens
        self._news.set()

    async def _sample(self, call: _Call, row: int) -> None:
        chain, final = call.chain(row).tolist(), None
        try:
            async for output in self._llm.generate(
                tokens_input(chain),
                self._sampling(call, row),
                f"ramify-{call.ticket}-{row}",
                lora_request=self._lora,
                priority=call.places[row],
            ):
                final = output
            self._end_row(call, row, final)
        except (VLLMClientError, ValueError, EngineGenerateError) as error:
            call.refuse(row, f"vLLM refuses it: {error.__cause__ or error}")
        except Exception as fault:  # the engine is dead, or we are at fault
            self._fault = self._fault or fault

    def _sampling(self, call: _Call, row: int) -> SamplingParams:
        step, room = call.params(row), self.info.context_tokens_max - len(call.chain(row))
        stop = self._stops[step.delimiter]
        return SamplingParams(
            temperature=step.temperature,
            top_p=step.top_p,
            seed=int(call.batch.seed[row] & _SEED_BITS),
            max_tokens=min(step.max_step_tokens, room),
            logprobs=0,
            stop=stop.text,
            stop_token_ids=None if stop.token is None else [stop.token],
            include_stop_str_in_output=True,
            detokenize=stop.text is not None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )

    def _end_row(self, call: _Call, row: int, output: RequestOutput) -> None:
        completion, chain = output.outputs[0], call.chain(row)
        stop = self._stops[call.params(row).delimiter]
        finish = self._finish(completion, stop, self.info.context_tokens_max - len(chain))
        self._count(call, row, output)
        if finish == Finish.ERROR:
            call.refuse(row, f"vLLM ended it with {completion.finish_reason!r}")
            return
        cost = len(completion.token_ids)
        tokens = np.array(completion.token_ids, np.int32)[: cost - (finish == Finish.END)]
        kept = zip(tokens.tolist(), completion.logprobs or (), strict=False)
        logprob = sum(candidates[token].logprob for token, candidates in kept)
        whole, ended = np.concatenate([chain, tokens]), finish in (Finish.END, Finish.CONTEXT)
        text = step_text(self._tokenizer, whole, len(chain), special=stop.special, ended=ended)
        call.end(row, finish, logprob, cost, tokens, text)

    def _finish(self, completion: CompletionOutput, stop: _Stop, room: int) -> Finish:
        match completion.finish_reason:
            case "stop" if completion.stop_reason is not None and completion.stop_reason in (stop.token, stop.text):
                return Finish.STEP
            case "stop":  # by an end-of-sequence token, the last of its tokens
                return Finish.END
            case "length":
                return Finish.CONTEXT if len(completion.token_ids) >= room else Finish.STEP_CUT
        return Finish.ERROR

    def _count(self, call: _Call, row: int, output: RequestOutput) -> None:
        group, cached = call.batch.group[row], output.num_cached_tokens or 0
        prefilled = len(call.chain(row)) - cached
        self._served.prefilled += prefilled
        self._served.sampled += len(output.outputs[0].token_ids)
        if output.metrics is not None and output.metrics.scheduled_ts:
            self._served.slot_busy_s += output.metrics.last_token_ts - output.metrics.scheduled_ts
        call.missed[group] |= not cached or prefilled > self._block
        call.rows_left[group] -= 1
        if not call.rows_left[group]:
            self._served.looked_up(missed=bool(call.missed[group]))


def _bound(limit: int | None) -> float:
    """A limit of vLLM's; at 0 it would admit nothing for ever."""
    return float("inf") if limit is None else max(1, limit)
