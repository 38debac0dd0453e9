"""The verifier as a process of its own."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from ramify.tls import ClientTls
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.chains import Chain, ChainScores
from ramify.verifier.client import VerifierClient
from ramify.verifier.columns import ChainColumns
from ramify.verifier.errors import UnavailableError
from ramify.verifier.server import SERVICE_NAME
from tests.integration.test_verifier_server import SERVING, SOLUTION, health, reflected
from tests.unit.verifier.fakes import PATIENCE_S


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(3 * PATIENCE_S):
        yield


@asynccontextmanager
async def verifier_process(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """The real process, once it has said that it serves; and what it has said."""
    command = (sys.executable, "-m", "ramify.verifier", "--listen", "127.0.0.1:0", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stderr=PIPE)
    try:
        assert process.stderr is not None
        log = b""
        while b"INFO ramify.verifier: serving" not in log:
            line = await process.stderr.readline()
            assert line, log.decode()
            log += line
        yield process, log.decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_process_serves_until_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with verifier_process("--rule", "countdown", "--ready-file", str(ready)) as (process, _):
        content = json.loads(ready.read_text())
        assert content["pid"] == process.pid
        assert os.listdir(tmp_path) == ["ready.json"]
        address = content["address"]
        assert [await health(address), await health(address, SERVICE_NAME)] == [SERVING, SERVING]
        assert await reflected(address) == {SERVICE_NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        async with VerifierClient(address) as client:
            assert (await client.score("countdown", [SOLUTION])).chains == [ChainScores([1.0, 1.0, 1.0])]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_the_process_serves_a_simulated_model(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with verifier_process("--model", "sim-prm=simulated?base_ms=1", "--ready-file", str(ready)):
        address = json.loads(ready.read_text())["address"]
        async with VerifierClient(address) as client:
            assert (await client.get_model()).backend == "simulated"
            here = SimulatedScorer("sim-prm")
            scored = await client.score_columns("sim-prm", ChainColumns.of([SOLUTION]), revision=here.revision)
            assert scored.scores.tolist() == here.score_columns(ChainColumns.of([SOLUTION])).scores.tolist()


async def test_the_process_stops_while_it_loads(tmp_path: Path) -> None:
    """What it loads is a rule whose module never comes to its end."""
    (tmp_path / "endless.py").write_text(
        "import sys, threading\nprint('begins', file=sys.stderr, flush=True)\nthreading.Event().wait()\n"
    )
    (tmp_path / "endless-1.dist-info").mkdir()
    (tmp_path / "endless-1.dist-info" / "METADATA").write_text("Name: endless\nVersion: 1\n")
    (tmp_path / "endless-1.dist-info" / "entry_points.txt").write_text("[ramify.rules]\nendless = endless:Rule\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = (sys.executable, "-m", "ramify.verifier", "--listen", "127.0.0.1:0", "--rule", "endless")
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env={**os.environ, "PYTHONPATH": paths})
    assert process.stderr is not None
    said = b""
    while b"begins" not in said:
        said += await process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    said += await process.stderr.read()
    assert await process.wait() == 0, said.decode()
    assert b"stopping before all models are loaded" in said


async def test_the_process_ends_with_its_stdin() -> None:
    async with verifier_process("--rule", "countdown", "--exit-with-stdin") as (process, _):
        assert process.stdin is not None
        process.stdin.write(b"any input is ignored\n")
        await process.stdin.drain()
        process.stdin.close()
        assert await process.wait() == 0


async def test_the_process_tells_prometheus_how_it_fares(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    options = ("--model", "sim=simulated", "--rule", "countdown", "--ready-file", str(ready), "--metrics", "127.0.0.1:0")
    async with verifier_process(*options) as (_, log), VerifierClient(json.loads(ready.read_text())["address"]) as client:
        chains = [SOLUTION, SOLUTION, Chain("p", ()), Chain("p" * 70_000, ("too long",))]
        for model in ("sim", "sim", "countdown"):
            await client.score(model, chains)
        url = re.findall(r"http://127\.0\.0\.1:[0-9]+/metrics", log)[0]
        async with httpx.AsyncClient() as http:
            told = (await http.get(url)).text
    for line in (
        'ramify_verifier_chains_total{model="sim",outcome="scored"} 4.0',
        'ramify_verifier_chains_total{model="sim",outcome="invalid"} 2.0',
        'ramify_verifier_chains_total{model="sim",outcome="too_long"} 2.0',
        'ramify_verifier_chains_total{model="countdown",outcome="invalid"} 2.0',
        'ramify_verifier_remembered_chains_total{model="sim"} 1.0',
        'ramify_verifier_call_seconds_count{code="OK",method="ScoreColumns"} 3.0',
        'ramify_verifier_queue_chains{model="sim"} 0.0',
    ):
        assert line in told.splitlines(), line
    assert re.search(r'ramify_verifier_memory_bytes\{model="sim"\} [1-9]', told)


async def test_the_process_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    found = authority.issue_cert("localhost")
    found.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    both, ready = str(tmp_path / "both.pem"), tmp_path / "ready.json"
    options = ("--rule", "countdown", "--ready-file", str(ready), "--tls-cert", both, "--tls-key", both)
    async with verifier_process(*options):
        address = json.loads(ready.read_text())["address"].replace("127.0.0.1", "localhost")
        async with VerifierClient(address, tls=ClientTls(tmp_path / "ca.pem")) as client:
            assert (await client.score("countdown", [SOLUTION])).chains == [ChainScores([1.0, 1.0, 1.0])]
        async with VerifierClient(address) as client:
            with pytest.raises(UnavailableError):
                await client.score_columns("countdown", ChainColumns.of([SOLUTION]), wait_for_ready=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tls-cert", "a.pem"), "TLS needs a certificate and its key"),
        (("--tls-cert", "missing.pem", "--tls-key", "missing.pem"), "TLS: .*No such file or directory: 'missing.pem'"),
        (("--metrics", "nonsense"), "cannot serve metrics on 'nonsense'"),
    ],
)
async def test_options_that_are_wrong_are_told(options: tuple[str, ...], message: str) -> None:
    command = (sys.executable, "-m", "ramify.verifier", "--listen", "127.0.0.1:0", "--rule", "countdown", *options)
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    _, said = await process.communicate()
    assert process.returncode == 2
    assert re.search(message, said.decode())
    assert "Traceback" not in said.decode()
