"""The verifier's client: several endpoints, names in place of prefixes, TLS. The servers are real ones in this process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from prometheus_client import CollectorRegistry

from ramify.tls import ClientTls, ServerTls, TlsError
from ramify.v1 import verifier_service_pb2 as pb
from ramify.v1 import verifier_service_pb2_grpc as pb_grpc
from ramify.verifier import client as client_module
from ramify.verifier import endpoints as endpoints_module
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.chains import Chain
from ramify.verifier.client import NAMED_BYTES_MIN, VerifierClient
from ramify.verifier.columns import ChainColumns
from ramify.verifier.endpoints import SHARE
from ramify.verifier.errors import (
    InvalidRequestError,
    OverloadedError,
    RevisionError,
    UnavailableError,
    UnknownModelError,
    VerifierError,
)
from ramify.verifier.messages import REQUEST_CHAINS_MAX, columns_of
from ramify.verifier.metrics import Metrics
from ramify.verifier.server import Limits, VerifierServer, VerifierService
from tests.unit.verifier.fakes import PATIENCE_S, FakeScorer

MODEL = "sim"
STEP = "s" * NAMED_BYTES_MIN + "\n"


class Recorder(VerifierService):
    """The service, with what it was asked for; fails with `error` if there is one."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits or Limits(), Metrics(CollectorRegistry()))
        self.asked: list[pb.ScoreColumnsRequest] = []
        self.error: tuple[grpc.StatusCode, str] | None = None

    async def ScoreColumns(self, request: pb.ScoreColumnsRequest, context: Any) -> pb.ScoreColumnsResponse:  # noqa: N802
        self.asked.append(request)
        if self.error:
            await context.abort(*self.error)
        return await super().ScoreColumns(request, context)

    @property
    def problems(self) -> list[str]:
        """Of all chains that came whole."""
        return [each.problem for request in self.asked for each in columns_of(request).chains.chains()]


@asynccontextmanager
async def recording(service: Recorder, listen: str = "127.0.0.1:0", model: SimulatedScorer | None = None) -> AsyncIterator[str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20)])
    pb_grpc.add_VerifierServiceServicer_to_server(service, server)
    port = server.add_insecure_port(listen)
    await server.start()
    service.open([model or SimulatedScorer(MODEL)])
    try:
        async with asyncio.timeout(3 * PATIENCE_S):
            yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await service.close()


@asynccontextmanager
async def several(*services: Recorder) -> AsyncIterator[tuple[VerifierClient, list[str]]]:
    async with AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(recording(service)) for service in services]
        yield await stack.enter_async_context(VerifierClient(",".join(addresses))), addresses


def grown(steps: int, problems: int = 3) -> ChainColumns:
    return ChainColumns.of([Chain(f"problem {index}", (STEP,) * steps) for index in range(problems)])


def right(chains: ChainColumns) -> list[float]:
    return list(map(float, SimulatedScorer(MODEL).score_columns(chains).scores))


async def test_of_long_chains_only_the_new_step_is_sent() -> None:
    service = Recorder()
    async with recording(service) as address, VerifierClient(address) as client:
        for steps in range(1, 6):
            assert (await client.score_columns(MODEL, grown(steps))).scores.tolist() == right(grown(steps))
        last = await client.score_columns(MODEL, grown(6), last_only=True)
        assert last.scores.tolist() == right(grown(6))[5::6]
    assert [len(request.text) > 3 * 2 * len(STEP) for request in service.asked] == [False] * 6
    assert [len(request.prefix) for request in service.asked] == [0] + [3 * 16] * 5


async def test_short_chains_are_sent_whole_and_cost_no_names() -> None:
    service = Recorder()
    chains = ChainColumns.of([Chain("p", ("a", "b")), Chain("p", ("a",))])
    async with recording(service) as address, VerifierClient(address) as client:
        for _ in range(2):
            assert (await client.score_columns(MODEL, chains)).scores.tolist() == right(chains)
    assert not any(request.prefix or request.names for request in service.asked)


async def test_a_verifier_that_has_forgotten_everything_changes_no_score() -> None:
    service = Recorder()
    async with recording(service) as address, VerifierClient(address) as client:
        await client.score_columns(MODEL, grown(3))
    fresh = Recorder()
    async with VerifierClient(address) as client:
        async with recording(Recorder(), address):
            await client.score_columns(MODEL, grown(3))
        async with recording(fresh, address):
            found = await client.score_columns(MODEL, grown(4))
            assert found.scores.tolist() == right(grown(4))
            assert not found.faults
    assert [bool(request.prefix) for request in fresh.asked] == [True, False]


async def test_a_memory_that_is_too_small_changes_no_score() -> None:
    service = Recorder(Limits(memory_bytes_max=20_000))
    async with recording(service) as address, VerifierClient(address) as client:
        for steps in range(1, 8):
            assert (await client.score_columns(MODEL, grown(steps, 8))).scores.tolist() == right(grown(steps, 8))


async def test_a_problem_stays_with_one_of_several_verifiers() -> None:
    services = [Recorder() for _ in range(3)]
    async with several(*services) as (client, _):
        for steps in range(1, 4):
            chains = ChainColumns.of([Chain(f"problem {index}", ("s",) * steps) for index in range(60)])
            assert (await client.score_columns(MODEL, chains)).scores.tolist() == right(chains)
    seen = [service.problems for service in services]
    assert sorted(problem for each in seen for problem in each) == sorted([f"problem {index}" for index in range(60)] * 3)
    assert all(each.count(problem) == 3 for each in seen for problem in each)
    assert all(len({*each}) <= SHARE * 60 for each in seen)
    assert min(len({*each}) for each in seen) >= 8


async def test_new_steps_go_where_the_prefix_is_held_and_elsewhere_whole() -> None:
    services = [Recorder() for _ in range(2)]
    async with several(*services) as (client, _):
        for steps in (1, 2):
            assert (await client.score_columns(MODEL, grown(steps, 12))).scores.tolist() == right(grown(steps, 12))
        assert all([bool(request.prefix) for request in service.asked] == [False, True] for service in services)
        services[0].error = (grpc.StatusCode.UNAVAILABLE, "gone")
        before = len(services[1].asked)
        assert (await client.score_columns(MODEL, grown(3, 12))).scores.tolist() == right(grown(3, 12))
        assert [bool(request.prefix) for request in services[1].asked[before:]] == [True, False]
        asked = len(services[0].asked)
        assert (await client.score_columns(MODEL, grown(4, 12))).scores.tolist() == right(grown(4, 12))
        assert len(services[0].asked) == asked  # it is left alone for a while


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.FAILED_PRECONDITION, RevisionError),
        (grpc.StatusCode.NOT_FOUND, UnknownModelError),
    ],
)
async def test_what_all_verifiers_refuse_is_told(code: grpc.StatusCode, error: type[VerifierError]) -> None:
    services = [Recorder() for _ in range(2)]
    async with several(*services) as (client, _):
        services[0].error = (code, "not here")
        chains = grown(1, 12)
        assert (await client.score_columns(MODEL, chains, wait_for_ready=False)).scores.tolist() == right(chains)
        services[1].error = (code, "nor here")
        with pytest.raises(error, match="here"):
            await client.score_columns(MODEL, chains, wait_for_ready=False)


async def test_what_may_pass_is_told_before_what_does_not() -> None:
    """The verifier that is away may have the model that the other one lacks."""
    services = [Recorder() for _ in range(2)]
    services[0].error, services[1].error = (grpc.StatusCode.NOT_FOUND, "no such model"), (grpc.StatusCode.UNAVAILABLE, "away")
    async with several(*services) as (client, _):
        for _ in range(4):
            with pytest.raises(UnavailableError, match="away"):
                await client.score_columns(MODEL, grown(1, 12), wait_for_ready=False)
            with pytest.raises(UnavailableError, match="away"):
                await client.score_columns(MODEL, ChainColumns.of([]), wait_for_ready=False)


async def test_a_stop_in_the_middle_of_a_call_is_an_absence() -> None:
    scorer = FakeScorer()
    server = VerifierServer()
    address = await server.start("127.0.0.1:0")
    await server.serve([scorer])
    scorer.gate.clear()
    async with VerifierClient(address) as client:
        call = asyncio.create_task(client.score_columns("fake", grown(1), wait_for_ready=False))
        await scorer.wait_entered()
        stopping = asyncio.create_task(server.stop(drain_s=0))
        with pytest.raises(UnavailableError):
            await call
        scorer.gate.set()
        await stopping


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_what_another_would_fail_at_too_is_asked_once(code: grpc.StatusCode) -> None:
    services = [Recorder() for _ in range(2)]
    for service in services:
        service.error = (code, "no")
    async with several(*services) as (client, _):
        with pytest.raises(VerifierError, match="no"):
            await client.score_columns(MODEL, grown(1, 1))
    assert sorted(len(service.asked) for service in services) == [0, 1]


async def test_verifiers_of_two_revisions_do_not_mix() -> None:
    newer = SimulatedScorer(MODEL)
    newer.revision = "newer"
    old = Recorder()
    async with recording(old) as one, recording(Recorder(), model=newer) as other, VerifierClient(f"{one}, {other}") as client:
        for revision in (SimulatedScorer(MODEL).revision, "newer"):
            assert (await client.score_columns(MODEL, grown(1, 12), revision=revision)).revision == revision
        with pytest.raises(RevisionError, match="newest"):
            await client.score_columns(MODEL, grown(1, 12), revision="newest")
    async with (
        recording(Recorder()) as one,
        recording(Recorder(), model=newer) as other,
        VerifierClient(f"{one}, {other}") as client,
    ):
        with pytest.raises(UnavailableError, match="changed its revision meanwhile"):
            await client.score_columns(MODEL, grown(1, 12))


async def test_no_verifier_and_no_name() -> None:
    async with VerifierClient("nowhere.invalid:1") as client:
        with pytest.raises(UnavailableError, match=r"nowhere\.invalid:1 stands for no address"):
            await client.get_model(deadline_ms=50)
        with pytest.raises(UnavailableError, match="stands for no address"):
            await client.score_columns(MODEL, grown(1), wait_for_ready=False)
    async with VerifierClient("") as client:
        with pytest.raises(UnavailableError, match="no verifier"):
            await client.get_model(deadline_ms=50)


async def test_large_batches_are_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Recorder()
    many = ChainColumns.of([Chain(str(index), ("a\n", "b")[: 1 + index % 2]) for index in range(2 * REQUEST_CHAINS_MAX + 1)])
    async with recording(service) as address, VerifierClient(address) as client:
        assert (await client.score_columns(MODEL, many)).scores.tolist() == right(many)
        assert all(len(request.length) <= 4 * REQUEST_CHAINS_MAX for request in service.asked)
        service.asked.clear()
        monkeypatch.setattr(client_module, "REQUEST_BYTES_MAX", 1000)
        few = ChainColumns.of([Chain(f"{index}" + "p" * 300, ("a",)) for index in range(10)])
        assert (await client.score_columns(MODEL, few)).scores.tolist() == right(few)
        assert sorted(map(len, service.problems)) == [301] * 10
        assert all(request.ByteSize() <= 1000 for request in service.asked)
        with pytest.raises(InvalidRequestError, match="one chain has 1"):
            await client.score_columns(MODEL, ChainColumns.of([Chain("p" * 1000, ("a",))]))
        nothing = await client.score_columns(MODEL, ChainColumns.of([]))
        assert (len(nothing.scores), nothing.revision) == (0, SimulatedScorer(MODEL).revision)


class Authority:
    """Certificates in files."""

    def __init__(self, folder: Path) -> None:
        self._ca, self._folder = trustme.CA(), folder
        self.file = folder / f"ca-{id(self)}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str) -> tuple[Path, Path]:
        found = self._ca.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(each.bytes() for each in found.cert_chain_pems))
        found.private_key_pem.write_to_path(str(key))
        return certificate, key


@asynccontextmanager
async def serving(tls: ServerTls, listen: str = "localhost:0") -> AsyncIterator[str]:
    server = VerifierServer(tls=tls)
    address = await server.start(listen)
    await server.serve([SimulatedScorer(MODEL)])
    try:
        async with asyncio.timeout(3 * PATIENCE_S):
            yield address
    finally:
        await server.stop(0)


async def score(address: str, tls: ClientTls | None) -> Sequence[float]:
    async with VerifierClient(address, tls=tls) as client:
        found = await client.score_columns(MODEL, grown(1), wait_for_ready=False, deadline_ms=10_000)
        return list(found.scores.tolist())


async def test_tls_both_ways(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path)
    client_pair, stranger = ours.issue("client"), theirs.issue("stranger")
    async with serving(ServerTls(*ours.issue("localhost"), client_ca=ours.file)) as address:
        assert await score(address, ClientTls(ours.file, *client_pair)) == right(grown(1))
        for tls in (None, ClientTls(ours.file), ClientTls(ours.file, *stranger), ClientTls(theirs.file, *client_pair)):
            with pytest.raises(UnavailableError):
                await score(address, tls)


async def test_a_certificate_is_renewed_while_the_server_runs(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path)
    async with serving(ServerTls(*ours.issue("localhost"))) as address:
        assert await score(address, ClientTls(ours.file)) == right(grown(1))
        (tmp_path / "localhost.pem").write_text("half-way")  # what is no certificate changes nothing
        assert await score(address, ClientTls(ours.file)) == right(grown(1))
        theirs.issue("localhost")
        assert await score(address, ClientTls(theirs.file)) == right(grown(1))
        with pytest.raises(UnavailableError):
            await score(address, ClientTls(ours.file))


async def test_certificates_are_renewed_while_a_client_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them: the verifier comes back at its place with those of another authority."""
    monkeypatch.setattr(endpoints_module, "RESOLVE_S", 0.0)
    ours, theirs = Authority(tmp_path), Authority(tmp_path)
    client_pair = ours.issue("client")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(ours.file.read_bytes())
    async with serving(ServerTls(*ours.issue("localhost"), client_ca=ca)) as address:
        client = VerifierClient(address, tls=ClientTls(ca, *client_pair))
        assert (await client.score_columns(MODEL, grown(1))).scores.tolist() == right(grown(1))
    async with client:
        ca.write_bytes(b"half-way")
        with pytest.raises(VerifierError):
            await client.score_columns(MODEL, grown(1), wait_for_ready=False, deadline_ms=1_000)
        theirs.issue("client")
        ca.write_bytes(theirs.file.read_bytes())
        async with serving(ServerTls(*theirs.issue("localhost"), client_ca=ca), address):
            while True:  # as shards do
                with suppress(UnavailableError):
                    found = await client.score_columns(MODEL, grown(2), wait_for_ready=False, deadline_ms=5_000)
                    break
            assert found.scores.tolist() == right(grown(2))


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(TlsError, match="text is no PEM file"):
        ClientTls(tmp_path / "text").credentials()
    with pytest.raises(TlsError, match="No such file"):
        ServerTls(tmp_path / "missing", tmp_path / "text").credentials()
    with pytest.raises(TlsError, match="give both, or neither"):
        ClientTls(None, tmp_path / "text")
