"""TLS, mTLS and API keys between the clients and a gateway, and the gateway's process as an operator starts it."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ramify.cli.main import run
from ramify.client import AsyncClient, Client, ClientError, InvalidRequest, PermissionDenied, QuotaExceeded, Unavailable
from ramify.gateway.server import Gateway
from ramify.store.audit import Actor
from ramify.store.database import Database
from ramify.store.jobs import Jobs
from ramify.store.keys import Keys, Role
from ramify.store.tenants import DAY_MS, Tenant, Tenants
from ramify.tls import ClientTls, ServerTls
from tests.integration.test_gateway import start
from tests.unit.gateway.system import PATIENCE_S, PUZZLES, SPEC, System

OPERATOR = Actor("", "test")
TRIES = 5
VARIABLES = ("ADDRESS", "API_KEY", "API_KEY_FILE", "TLS", "TLS_CA", "TLS_CERT", "TLS_KEY", "STORE")


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(2 * PATIENCE_S):
        yield


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"RAMIFY_{name}", raising=False)


class Certificates:
    """An authority with a server's and a client's certificate, and another authority."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.other_ca, self.server, self.client = (
            folder / f"{name}.pem" for name in ("ca", "other", "server", "client")
        )
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        trustme.CA().cert_pem.write_to_path(str(self.other_ca))
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(self.server))
        authority.issue_cert("ci@example.org").private_key_and_cert_chain_pem.write_to_path(str(self.client))

    @property
    def trusting(self) -> ClientTls:
        return ClientTls(self.ca)

    @property
    def known(self) -> ClientTls:
        return ClientTls(self.ca, self.client, self.client)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'state.db'}"


@asynccontextmanager
async def serving(folder: Path, tls: ServerTls, *, keys: bool = False) -> AsyncIterator[tuple[Database, str]]:
    """A gateway in this process: its store and its address."""
    database = Database(url(folder))
    await database.migrate()
    await Jobs(database).put_models(System.MODELS)
    gateway = Gateway(database, tls=tls, keys=keys)
    port = await gateway.start("127.0.0.1:0")
    try:
        yield database, f"127.0.0.1:{port}"
    finally:
        await gateway.stop(0)
        await database.close()


def in_thread(address: str, **options: Any) -> list[str]:
    """What the plain client sees of jobs."""
    with Client(address, **options) as client:
        return [job.job_id for job in client.jobs()]


async def test_both_clients_with_a_key_over_tls(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, ServerTls(certificates.server, certificates.server), keys=True) as (database, address):
        _, key = await Keys(database).create(OPERATOR, "acme", Role.SUBMIT, "test")
        await Tenants(database).put(Tenant("acme", jobs_max=1))
        async with AsyncClient(address, api_key=key, tls=certificates.trusting) as client:
            job = await client.submit(PUZZLES, SPEC)
            assert job.tenant == "acme"
            await client.cancel(job.job_id)
            assert [event.cursor async for event in client.watch(job.job_id)] == [1, 2]
            assert (await client.submit(PUZZLES[:1], SPEC)).job_id != job.job_id
            with pytest.raises(QuotaExceeded, match="tenant acme has 1 open jobs") as caught:
                await client.submit(PUZZLES, SPEC)
            assert caught.value.retry_after_s is None
            await Tenants(database).put(Tenant("acme", tokens_per_day_max=0))
            with pytest.raises(QuotaExceeded, match="begins at midnight UTC") as caught:
                await client.submit(PUZZLES, SPEC)
            assert 0 < (caught.value.retry_after_s or 0) <= DAY_MS / 1000
        assert job.job_id in await asyncio.to_thread(in_thread, address, api_key=key, tls=certificates.trusting)
        with pytest.raises(PermissionDenied, match="API key alone"):
            await asyncio.to_thread(in_thread, address, tls=certificates.trusting)
        wrong = key[:-8] + "AAAAAAAA"
        with pytest.raises(PermissionDenied, match="no such API key") as refused:
            async with AsyncClient(address, api_key=wrong, tls=certificates.trusting) as client:
                await client.submit(PUZZLES, SPEC)
        assert "AAAAAAAA" not in repr(refused.value)


async def refusal(address: str, **options: Any) -> str:
    """What a client is told that can't connect. On a busy machine the transport now and then does not say why."""
    told = "no gateway answers"
    for _ in range(TRIES):
        if "no gateway answers" in told:
            with pytest.raises(Unavailable) as caught:
                await asyncio.to_thread(in_thread, address, **options)
            told = str(caught.value)
    return told


async def test_an_authority_that_nobody_trusts_and_no_tls_at_all(tmp_path: Path, certificates: Certificates) -> None:
    async with serving(tmp_path, ServerTls(certificates.server, certificates.server)) as (_, address):
        told = await refusal(address, tls=ClientTls(certificates.other_ca))
        assert "its certificate is of no authority that is trusted here" in told
        assert "as one does that wants TLS" in await refusal(address)
        assert await asyncio.to_thread(in_thread, address, tls=certificates.trusting) == []


async def test_mtls_lets_in_who_shows_a_certificate(tmp_path: Path, certificates: Certificates) -> None:
    tls = ServerTls(certificates.server, certificates.server, certificates.ca)
    async with serving(tmp_path, tls) as (_, address):
        assert "a client's certificate" in await refusal(address, tls=certificates.trusting)
        async with AsyncClient(address, tls=certificates.known) as client:
            assert (await client.submit(PUZZLES, SPEC)).tenant == "default"


async def test_the_process_with_all_of_it(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    place, ready, key_file = tmp_path / "url", tmp_path / "ready", tmp_path / "key"
    place.write_text(url(tmp_path) + "\n")
    assert await asyncio.to_thread(run, ["migrate", "--store-file", str(place)]) == 0
    both = str(certificates.server)
    process = await start(
        *("--store-file", str(place), "--no-migrate", "--listen", "127.0.0.1:0", "--ready-file", str(ready), "--keys"),
        *("--tls-cert", both, "--tls-key", both, "--health", "127.0.0.1:0", "--drain-s", "1"),
    )
    assert process.stderr is not None
    try:
        said = b""
        while b"serving on" not in said:
            line = await process.stderr.readline()
            assert line, said
            said += line
        health_address = said.decode().partition("health is at ")[2].split()[0]
        async with grpc.aio.insecure_channel(health_address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            status = (await health.Check(health_pb2.HealthCheckRequest(service="ramify.v1.JobService"))).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        address = json.loads(ready.read_text())["address"]
        key_file.write_text(await made_key(tmp_path))
        for name, value in {"ADDRESS": address, "API_KEY_FILE": str(key_file), "TLS_CA": str(certificates.ca)}.items():
            monkeypatch.setenv(f"RAMIFY_{name}", value)
        async with AsyncClient.from_environment() as client:
            assert [job async for job in client.jobs()] == []
        assert await asyncio.to_thread(run, ["jobs"]) == 0
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        said += await process.stderr.read()
        assert key_file.read_text().strip().rpartition("_")[2].encode() not in said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def made_key(folder: Path) -> str:
    database = Database(url(folder))
    _, key = await Keys(database).create(OPERATOR, "acme", Role.SUBMIT, "test")
    await database.close()
    return f"{key}\n"


@pytest.mark.parametrize(
    "address", ["gateway.example.org:443", "10.0.0.1:8700", "dns:///gateway:8700", "ipv6:[2001:db8::1]:8700"]
)
def test_a_key_goes_to_another_host_over_tls_alone(address: str, certificates: Certificates) -> None:
    key = "rk_000000000000_secret"
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidRequest, match="sent to another host over TLS alone") as caught:
            kind(address, api_key=key)
        assert "secret" not in str(caught.value)
    Client(address, api_key=key, tls=certificates.trusting).close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "localhost:1", "dns:///localhost:1", "[::1]:1", "ipv4:127.0.0.2:1", "unix:/x"]
)
def test_a_key_may_stay_on_this_machine(address: str) -> None:
    Client(address, api_key="rk_000000000000_secret").close()


def test_what_is_no_key_is_not_told() -> None:
    with pytest.raises(ClientError, match="has not the form rk_ID_SECRET") as caught:
        Client("127.0.0.1:1", api_key="my password")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"API_KEY": "rk_1_x", "API_KEY_FILE": "/x"}, "both give the key"),
        ({"API_KEY_FILE": "/nowhere/key"}, "RAMIFY_API_KEY_FILE can't be read"),
        ({"TLS_CERT": "/x.pem"}, "belong together"),
        ({"TLS_CA": "/nowhere/ca.pem"}, "No such file"),
        ({"ADDRESS": "https://gateway"}, "without a scheme"),
    ],
)
def test_an_environment_that_can_t_be_used(given: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"RAMIFY_{name}", value)
    with pytest.raises(InvalidRequest, match=why):
        Client.from_environment()
