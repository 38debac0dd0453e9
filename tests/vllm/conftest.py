"""A real vLLM, on the CPU. `make test-vllm` runs these tests in an environment of its own; elsewhere they are not collected.

Warnings are no errors there (`-W default`): vLLM, and what it imports, has some.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio

from tests.unit.engines.helpers import MODEL

if TYPE_CHECKING:
    from ramify.scheduler.engines.vllm import VllmEngine

VLLM = importlib.util.find_spec("vllm") is not None
collect_ignore = [] if VLLM else [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_there.py"]

SLOTS = 8
BLOCK = 32  # tokens of a block of the prefix cache, the fewest on a CPU
OPTIONS = f"dtype=float32&enforce_eager=true&block_size={BLOCK}&max_num_seqs={SLOTS}"
SPEC = f"vllm:{MODEL}?{OPTIONS}"
SERVE_S = 300

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All share one event loop with the engine."""
    for item in items:
        if item.path.parent == Path(__file__).parent and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


class Lent:
    """An AsyncLLM that outlives the engines that it is lent to; it tells what was asked of it."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.requests: list[tuple[str, int]] = []  # ids and priorities, in order of arrival

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, prompt: Any, params: Any, request_id: str, **options: Any) -> Any:
        self.requests.append((request_id, options["priority"]))
        return self._llm.generate(prompt, params, request_id, **options)

    def shutdown(self) -> None:
        """It is shut down by who has lent it."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def llm() -> AsyncIterator[Any]:
    """vLLM with the tiny generator."""
    from ramify.scheduler.engines.registry import load_engine

    engine: Any = load_engine(SPEC)
    yield engine._llm
    await engine.close()


@pytest_asyncio.fixture(loop_scope="session")
async def make(llm: Any) -> AsyncIterator[Any]:
    """Engines on one vLLM, with their own bounds."""
    from ramify.scheduler.engines.vllm import VllmEngine, VllmParams

    async with AsyncExitStack() as stack:

        def made(**options: Any) -> "VllmEngine":
            engine = VllmEngine(Lent(llm), str(MODEL), VllmParams(**options))
            stack.push_async_callback(engine.close)
            return engine

        yield made


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real `vllm serve` of the tiny generator (its name there is tiny24), such as http://127.0.0.1:PORT/v1."""
    import httpx
    import tenacity

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    flags = ["--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK), "--max-num-seqs", "64"]
    flags += ["--served-model-name", "tiny24", "--host", "127.0.0.1", "--port", str(port)]
    # What `vllm serve` runs: that itself looks for a package by the name of vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), *flags]
    with log.open("w") as file:
        server = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    @tenacity.retry(stop=tenacity.stop_after_delay(SERVE_S), wait=tenacity.wait_fixed(0.5), reraise=True)
    def wait_ready() -> None:
        if server.poll() is None:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).raise_for_status()

    try:
        wait_ready()
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            processes = [server, *server.children(recursive=True)]
            server.terminate()
            _, alive = psutil.wait_procs(processes, timeout=30)
            for process in alive:
                process.kill()
