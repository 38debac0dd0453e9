"""A reader on vLLM: its thread, its life and its death. What is asked of vLLM is in `vllm_model.py`, which imports it."""

import asyncio
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ramify.verifier.backends.folder import content_hash, open_tokenizer
from ramify.verifier.backends.vllm_guard import Guard
from ramify.verifier.errors import ModelError, StartupError
from ramify.verifier.reading import Head, Row

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.json", "*.jinja")
_INSTALL = "the vllm backend needs vLLM, which is not installed here: pip install 'ramify[vllm]'"
_DIED = "vLLM's engine has died (why is in the log of this process); start the verifier anew"

T = TypeVar("T")


class VllmReader:
    """Implements `Reader` with an `AsyncLLM` in processes of its own; starting it takes from half a minute to many.

    A request a row (a `Pair` has one for each read), all of a call handed over at once and older calls first: vLLM batches as it
    goes. Its prefix cache holds what a chain shares with its parent and its siblings.

    Args:
        model: The model's folder.
        head: What is read.
        arguments: Engine arguments of vLLM's by their names there, texts or values.

    Raises:
        StartupError: vLLM is not installed or cannot load the model, an argument is unknown or wrong, or the model has no such
            head.
    """

    backend = "vllm"
    calls_max = 4

    def __init__(self, model: str, head: Head, *, arguments: Mapping[str, object]) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # gRPC has threads here, which a fork does not survive
        try:
            from ramify.verifier.backends.vllm_model import load
        except ImportError as error:
            raise StartupError(f"{_INSTALL} ({error})") from error
        self.tokenizer = open_tokenizer(Path(model))
        self._guard = Guard()
        try:
            self._model = load(model, head, arguments)
        except BaseException:
            self._guard.close()
            raise
        self._guard.settle()
        self._order = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"vllm {Path(model).name}", daemon=True)
        self._thread.start()
        try:
            self._wait(self._model.start())
            self.revision = _revision(Path(model), self._model.precision)
        except BaseException as error:
            self.close()
            if isinstance(error, StartupError) or not isinstance(error, Exception):
                raise
            raise StartupError(f"vLLM has loaded '{model}' but cannot run it: {type(error).__name__}: {error}") from error
        self.context_tokens_max = self._model.context_tokens_max
        self.batch_tokens_max = self._model.batch_tokens_max

    @property
    def failure(self) -> str:
        """Why it reads no more, for people; empty while it can."""
        return _DIED if self._model.dead else ""

    @property
    def reads_cache(self) -> bool:
        """Whether what vLLM's prefix cache holds of a row is not computed again."""
        return self._model.reads_cache

    def read(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """See `Reader`. What vLLM refuses, or answers otherwise than asked, is no number either; the log says why.

        Raises:
            ModelError: vLLM failed. If its engine has died, all later calls fail too.
        """
        if self.failure:
            raise ModelError(self.failure)
        try:
            return self._wait(self._model.read(rows, next(self._order)))
        except Exception as error:  # of vLLM's classes, which are not known here
            raise ModelError(self.failure or f"vLLM failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Ends vLLM's processes. May be called again."""
        if self._thread.is_alive():
            self._wait(self._model.close())
            self._guard.close()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wait(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _revision(folder: Path, precision: Mapping[str, str]) -> str:
    """A hash of the folder's weights and configuration, and of how vLLM holds them."""
    names = sorted({file.name for pattern in _WEIGHTS for file in folder.glob(pattern)})
    parts = [content_hash(folder, names), dict(precision)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
