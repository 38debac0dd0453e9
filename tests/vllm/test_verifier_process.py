"""The verifier as a process, with a model on vLLM."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tenacity

from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.client import Scored, VerifierClient
from tests.vllm.conftest import BLOCK, SERVE_S

PRM = Path(__file__).parents[2] / "infra" / "models" / "tiny24" / "prm"
STEPS = ("10-4=6:5 6 6\n", "5*6=30:6 30\n", "30-6=24:24\n", "24-24=0:0\n")
CHAINS = [Chain(problem, STEPS[:steps]) for problem in ("4 5 6 10>24", "1 5 5 5>24", "") for steps in range(1, 5)]
CHAINS += [Chain("4 5 6 10>24", ("\n",)), Chain("4 5 6 10>24", (STEPS[1], *STEPS))]


class Process:
    """A verifier that serves the model by vLLM, as "vllm", and by ONNX Runtime, as "onnx"."""

    def __init__(self, folder: Path) -> None:
        self._ready, self.log = folder / "ready", folder / "log"
        self.start()

    def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        options = f"backend=vllm&dtype=float32&enforce_eager=true&block_size={BLOCK}"
        models = ["--model", f"vllm={PRM}?{options}", "--model", f"onnx={PRM}?backend=onnx"]
        command = [sys.executable, "-m", "ramify.verifier", "--listen", "127.0.0.1:0", "--ready-file", str(self._ready), *models]
        with self.log.open("w") as log:
            self.main = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.address = self._wait_address()

    @tenacity.retry(stop=tenacity.stop_after_delay(SERVE_S), wait=tenacity.wait_fixed(0.2), reraise=True)
    def _wait_address(self) -> str:
        if self.main.poll() is not None:
            return ""  # it failed; the first call tells
        return str(json.loads(self._ready.read_text())["address"])

    def cores(self) -> list[psutil.Process]:
        """What holds the model."""
        return [each for each in self.main.children(True) if "EngineCore" in each.name() + " ".join(each.cmdline())]

    async def score(self, model: str, chains: list[Chain]) -> Scored:
        assert self.main.poll() is None, self.log.read_text()
        async with VerifierClient(self.address) as client:
            return await client.score(model, chains)

    def kill(self) -> None:
        if self.main.poll() is None:
            processes = [self.main, *self.main.children(recursive=True)]
            self.main.kill()
            psutil.wait_procs(processes, timeout=30)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("verifier"))
    yield process
    process.kill()


def agree(found: list[ChainScores], wanted: list[ChainScores], close: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.error, ours.message) == (theirs.error, theirs.message)
        assert list(ours.scores) == pytest.approx(list(theirs.scores), abs=close)


async def test_scores_are_those_of_the_onnx_backend(process: Process) -> None:
    ours, theirs = await process.score("vllm", CHAINS), await process.score("onnx", CHAINS)
    assert ours.revision != theirs.revision
    assert {len(chain.scores) for chain in ours.chains} == {1, 2, 3, 4, 5}
    agree(ours.chains, theirs.chains, 1e-4)


async def test_chains_that_cannot_be_read_are_told_of(process: Process) -> None:
    chains = [Chain("4 5 6 10>24", ("1+1=2\n" * 100,)), Chain("4 5 6 10>24", ("🦊\n",)), CHAINS[0]]
    found = (await process.score("vllm", chains)).chains
    assert [chain.error for chain in found] == [ChainError.TOO_LONG, ChainError.INVALID, ChainError.NONE]
    assert "the model reads at most 255" in found[0].message


async def test_a_verifier_that_is_killed_takes_vllm_with_it_and_its_successor_gives_the_same_scores(process: Process) -> None:
    before = await process.score("vllm", CHAINS)
    children = process.main.children(recursive=True)
    assert process.cores()
    process.main.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    process.start()
    after = await process.score("vllm", CHAINS)
    assert after.revision == before.revision
    agree(after.chains, before.chains, 1e-6)


def test_an_engine_that_dies_ends_the_verifier_which_says_why(process: Process) -> None:
    """Whoever keeps it running starts it anew; nothing of it is left."""
    children = process.main.children(recursive=True)
    for core in process.cores():
        core.kill()
    assert process.main.wait(60) == 1
    assert "ramify.verifier: model 'vllm': vLLM's engine has died" in process.log.read_text()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
