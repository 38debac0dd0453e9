"""An engine on the CPU, for any decoder that was exported with past key values."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ramify.scheduler.engines.base import EngineStats, ModelInfo, StepBatch
from ramify.scheduler.engines.loop import Ended, EngineLoop
from ramify.scheduler.engines.onnx_decoder import OnnxDecoder
from ramify.scheduler.engines.onnx_folder import OnnxParams, read_folder
from ramify.scheduler.engines.onnx_model import OnnxModel

__all__ = ["OnnxEngine", "OnnxParams"]


class OnnxEngine(EngineLoop):
    """Samples with ONNX Runtime: continuous batching, and a cache of keys and values that chains share.

    With `prefill_tokens=1` a row's tokens, log-probability and text are the same bits whatever shares its batch and wherever its
    prefix came from (on one kind of machine with one version of ONNX Runtime). It costs: every call of the model feeds one
    token a row, also in a prefill, since a prefill in one piece rounds otherwise; the past is padded to a length that
    follows from the row's own position; and a call has two rows at least. With more, prompts are fed many tokens at once,
    and results are the same within rounding.

    Args:
        folder: what `read_folder` describes.
        params: bounds, and what is said of the model.

    Raises:
        EngineError: the folder lacks a file, or the model is not of the layout.
    """

    def __init__(self, folder: Path, params: OnnxParams | None = None) -> None:
        self.params = params or OnnxParams()
        read = read_folder(folder, self.params)
        self._info = read.info
        self._model = OnnxModel(read.file, read.config, self.params.threads)
        super().__init__(self._model.vocabulary, self.params.waiting_rows_max)
        self._decoder = OnnxDecoder(self._model, read, self.params.cache_bytes_max)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnx-engine")

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        return self._info

    @property
    def cache_bytes(self) -> int:
        """Keys and values kept for chains that may go on."""
        return self._decoder.cache.bytes

    def stats(self) -> EngineStats:
        """What was done so far."""
        decoder = self._decoder
        return EngineStats(
            rows_running=decoder.slots_used,
            rows_waiting=decoder.rows_waiting,
            prefix_hits=decoder.prefix_hits,
            prefix_misses=decoder.prefix_misses,
            tokens_prefilled=decoder.tokens_prefilled,
            rows_sampled=self._rows_sampled,
            tokens_sampled=decoder.tokens_sampled,
            slot_busy_s=decoder.slot_busy_s,
            tokens_cached=decoder.tokens_cached,
        )

    def _check(self, batch: StepBatch) -> None:
        """Nothing: any delimiter will do."""

    def _submit(self, ticket: int, batch: StepBatch) -> None:
        self._decoder.submit(ticket, batch)

    def _cancel(self, ticket: int) -> None:
        self._decoder.cancel(ticket)

    async def _turn(self) -> Ended:
        # ONNX Runtime lets go of the interpreter lock, so the event loop stays free meanwhile.
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._decoder.advance, self.params.turn_tokens)

    def _idle(self) -> bool:
        return self._decoder.idle

    async def _release(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
