"""The verifier over real gRPC: a server in this process, and the real process."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from ramify.v1 import verifier_service_pb2 as pb
from ramify.v1 import verifier_service_pb2_grpc as pb_grpc
from ramify.verifier.backends.base import Scorer
from ramify.verifier.backends.rule import RuleScorer
from ramify.verifier.backends.simulated import SimulatedScorer
from ramify.verifier.chains import Chain, ChainError, ChainScores
from ramify.verifier.client import VerifierClient
from ramify.verifier.columns import ChainColumns, ChainFault
from ramify.verifier.errors import (
    DeadlineError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
    RevisionError,
    StartupError,
    UnavailableError,
    UnknownModelError,
)
from ramify.verifier.messages import REQUEST_CHAINS_MAX
from ramify.verifier.rules import RULES
from ramify.verifier.server import SERVICE_NAME, STREAM_OPEN_MAX, Limits, VerifierServer
from tests.unit.verifier.fakes import PATIENCE_S, FakeScorer, chain, expected

SOLUTION = Chain("4 5 6 10>24", ("10-4=6:5 6 6\n", "5*6=30:6 30\n", "30-6=24:24"))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(3 * PATIENCE_S):
        yield


@asynccontextmanager
async def serving(*scorers: Scorer, queue_chains_max: int = 65_536) -> AsyncIterator[tuple[VerifierServer, str]]:
    server = VerifierServer(Limits(queue_chains_max))
    address = await server.start("127.0.0.1:0")
    try:
        await server.serve(scorers)
        yield server, address
    finally:
        for scorer in scorers:
            if isinstance(scorer, FakeScorer):
                scorer.gate.set()
        await server.stop(drain_s=0)


@asynccontextmanager
async def stub_of(address: str) -> AsyncIterator[Any]:
    """A client with nothing of ours in it."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield pb_grpc.VerifierServiceStub(channel)


async def health(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
        return status


async def test_scores_and_errors_of_chains() -> None:
    async with serving(RuleScorer(RULES["countdown"])) as (_, address), VerifierClient(address) as client:
        chains = [SOLUTION, Chain("4 5 six", ("a",)), Chain("4 5 6 10", ())]
        scored = await client.score("countdown", chains)
        assert scored.revision == RULES["countdown"].revision
        assert scored.chains[0] == ChainScores([1.0, 1.0, 1.0])
        assert [each.error for each in scored.chains[1:]] == [ChainError.INVALID, ChainError.INVALID]
        assert [len(each.scores) for each in scored.chains[1:]] == [0, 0]
        assert scored.chains[1].message.startswith("'4 5 six' is no puzzle: 'six' is not a number")
        assert scored.chains[2].message == "a chain needs at least one step"


async def test_a_batch_larger_than_a_request() -> None:
    async with serving(FakeScorer(1 << 20)) as (_, address), VerifierClient(address) as client:
        chains = [chain(f"p{index}", "s" * (index % 5)) for index in range(REQUEST_CHAINS_MAX + 10)]
        assert (await client.score("fake", chains)).chains == [expected(each) for each in chains]
        assert await client.score("fake", []) == ([], "r1")


async def test_messages_beyond_grpcs_own_default() -> None:
    async with serving(RuleScorer(RULES["countdown"])) as (_, address), VerifierClient(address) as client:
        scored = await client.score("countdown", [Chain("4 5" + " " * (5 << 20), ("a",))])
        assert "more than 512" in scored.chains[0].message


async def test_models() -> None:
    async with serving(FakeScorer(), RuleScorer(RULES["countdown"])) as (_, address), VerifierClient(address) as client:
        fake = pb.Model(name="fake", revision="r1", backend="rule", context_tokens_max=7, models=["fake", "countdown"])
        assert await client.get_model() == await client.get_model("fake") == fake
        assert (await client.get_model("countdown")).name == "countdown"
        for call in (client.get_model("nobody"), client.score("nobody", [SOLUTION])):
            with pytest.raises(UnknownModelError, match="no model 'nobody' here; there is fake, countdown"):
                await call


async def test_limits_of_a_request() -> None:
    async with serving(FakeScorer()) as (_, address), VerifierClient(address) as client, stub_of(address) as stub:
        with pytest.raises(InvalidRequestError, match="a text can't be written as UTF-8"):
            await client.score("fake", [Chain("\ud800", ("s",))])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(pb.ScoreRequest(model="fake", chains=[pb.Chain()] * (REQUEST_CHAINS_MAX + 1)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "the request has 4097 chains, more than 4096"


async def test_columns_give_what_chains_give() -> None:
    rule, simulated = RuleScorer(RULES["countdown"]), SimulatedScorer("sim")
    async with serving(rule, simulated) as (_, address), VerifierClient(address) as client:
        chains = [SOLUTION, Chain("4 5 six", ("a",)), Chain("4 5 6 10", ()), Chain("ä", ("€", ""))]
        for model in ("countdown", "sim"):
            scored = await client.score(model, chains)
            columns = await client.score_columns(model, ChainColumns.of(chains), revision=scored.revision)
            scores = iter(columns.scores.tolist())
            each = [[next(scores) for _ in chain.steps] for chain in chains]
            faulty = {fault.chain: fault for fault in columns.faults}
            for index, one in enumerate(scored.chains):
                assert each[index] == one.scores or (index in faulty and np.isnan(each[index]).all())
                assert faulty.get(index, (index, ChainError.NONE, "")) == (index, one.error, one.message)
            assert (columns.revision, next(scores, None)) == (scored.revision, None)
            last = await client.score_columns(model, ChainColumns.of(chains), last_only=True)
            np.testing.assert_array_equal(last.scores, np.array([one[-1] if one else np.nan for one in each], np.float32))
            assert last.faults == columns.faults


async def test_columns_bring_references_to_a_rule() -> None:
    class Comparing(FakeScorer):
        def score(self, chains: Sequence[Chain]) -> list[ChainScores]:
            return [ChainScores([float(chain.reference == step) for step in chain.steps]) for chain in chains]

    async with serving(Comparing()) as (_, address), VerifierClient(address) as client:
        chains = ChainColumns.of([Chain("p", ("1", "2"), "2"), Chain("p", ("1", "2"), "1"), chain("p", "3")])
        assert (await client.score_columns("fake", chains)).scores.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]


async def test_columns_larger_than_a_request() -> None:
    async with serving(FakeScorer(1 << 20)) as (_, address), VerifierClient(address) as client:
        lengths = [index % 5 for index in range(REQUEST_CHAINS_MAX + 10)]
        columns = ChainColumns.of([Chain("p", tuple("s" * size for size in range(length))) for length in lengths])
        scored = await client.score_columns("fake", columns, last_only=True)
        assert scored.faults == []
        expect = [(length - 1) / 1024 if length else np.nan for length in lengths]
        np.testing.assert_array_equal(scored.scores, np.array(expect, np.float32))
        none = await client.score_columns("fake", ChainColumns.of([]))
        assert (none.scores.tolist(), none.faults, none.revision) == ([], [], "r1")


async def test_columns_of_faulty_chains_in_a_large_batch() -> None:
    async with serving(SimulatedScorer("sim")) as (_, address), VerifierClient(address) as client:
        at = [0, REQUEST_CHAINS_MAX - 1, REQUEST_CHAINS_MAX, REQUEST_CHAINS_MAX + 1]
        chains = [Chain("p", () if index in at else ("s",)) for index in range(REQUEST_CHAINS_MAX + 2)]
        scored = await client.score_columns("sim", ChainColumns.of(chains))
        assert scored.faults == [ChainFault(index, ChainError.INVALID, "a chain needs at least one step") for index in at]


async def test_a_revision_that_the_model_has_not() -> None:
    async with serving(FakeScorer()) as (_, address), VerifierClient(address) as client, stub_of(address) as stub:
        columns = ChainColumns.of([SOLUTION])
        assert (await client.score_columns("fake", columns, revision="r1")).revision == "r1"
        with pytest.raises(RevisionError, match="model 'fake' is of revision r1 here, not r0"):
            await client.score_columns("fake", columns, revision="r0")
        with pytest.raises(UnknownModelError, match="no model 'nobody' here"):
            await client.score_columns("nobody", columns)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ScoreColumns(pb.ScoreColumnsRequest(model="fake", revision="r0"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ScoreColumnsRequest(length=b"12345"), "length has 5 bytes; it must hold numbers of four bytes each"),
        (pb.ScoreColumnsRequest(text_count=b"1"), "text_count has 1 bytes; it must hold numbers of four bytes each"),
        (pb.ScoreColumnsRequest(text=b"1"), "text has 1 bytes; the numbers in text_count add up to 0"),
        (pb.ScoreColumnsRequest(length=b"\1\0\0\0"), "text_count has 0 numbers; 1 problems and 1 steps need 2"),
        (pb.ScoreColumnsRequest(length=b"\xff" * 4), "length[0] is -1; it must not be negative"),
        (
            pb.ScoreColumnsRequest(length=b"\0\0\0\0", text_count=bytes(4), priority=101),
            "priority is 101; it must be from -100 to 100",
        ),
        (pb.ScoreColumnsRequest(length=bytes(4 * (REQUEST_CHAINS_MAX + 1))), "the request has 4097 chains, more than 4096"),
        (pb.ScoreColumnsRequest(references=["a"]), "there are 1 references for 0 chains; give one for each, or none"),
    ],
)
async def test_columns_that_do_not_fit(request_: pb.ScoreColumnsRequest, message: str) -> None:
    request_.model = "fake"
    async with serving(FakeScorer()) as (_, address), stub_of(address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ScoreColumns(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == message


async def test_columns_wait_in_the_same_queue_as_chains() -> None:
    scorer = FakeScorer()
    async with serving(scorer, queue_chains_max=2) as (_, address), VerifierClient(address) as client:
        scorer.gate.clear()
        held = asyncio.create_task(client.score("fake", [chain("held")]))
        await scorer.wait_entered()
        with pytest.raises(OverloadedError) as caught:
            await client.score_columns("fake", ChainColumns.of([chain("a"), chain("b"), chain("c")]))
        assert caught.value.retry_delay_ms > 0
        with pytest.raises(DeadlineError):
            await client.score_columns("fake", ChainColumns.of([chain("late")]), deadline_ms=1)
        scorer.gate.set()
        await held
        with pytest.raises(ModelError, match="the fake was told to"):
            await client.score_columns("fake", ChainColumns.of([chain("fail")]))
    assert chain("late") not in [each for call in scorer.calls for each in call]


async def test_a_server_that_is_away_is_told_at_once_if_so_it_is_wanted() -> None:
    async with serving(FakeScorer()) as (_, address):
        pass
    async with VerifierClient(address) as client:
        with pytest.raises(UnavailableError):
            await client.score_columns("fake", ChainColumns.of([SOLUTION]), wait_for_ready=False)


async def test_overload_says_when_to_come_back() -> None:
    scorer = FakeScorer()
    async with (
        serving(scorer, queue_chains_max=1) as (_, address),
        VerifierClient(address) as client,
        stub_of(address) as stub,
    ):
        scorer.gate.clear()
        held = asyncio.create_task(client.score("fake", [chain("a")]))
        await scorer.wait_entered()
        with pytest.raises(OverloadedError) as caught:
            await client.score("fake", [chain("b"), chain("c")])
        assert caught.value.retry_delay_ms > 0
        status: Any = await rpc_status.aio.from_call(
            stub.Score(pb.ScoreRequest(model="fake", chains=[pb.Chain(steps=["s"])] * 2))
        )
        retry = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == caught.value.retry_delay_ms
        scorer.gate.set()
        assert (await held).chains == [expected(chain("a"))]


async def test_a_failing_model() -> None:
    async with serving(FakeScorer()) as (_, address), VerifierClient(address) as client:
        with pytest.raises(ModelError, match="model 'fake' failed: ValueError: the fake was told to"):
            await client.score("fake", [chain("fail")])
        assert (await client.score("fake", [chain("a")])).chains == [expected(chain("a"))]


async def test_work_whose_caller_has_gone_is_not_computed() -> None:
    scorer = FakeScorer()
    async with serving(scorer, queue_chains_max=2) as (_, address), VerifierClient(address) as client:
        scorer.gate.clear()
        held = asyncio.create_task(client.score("fake", [chain("held")]))
        await scorer.wait_entered()
        with pytest.raises(DeadlineError):
            await client.score("fake", [chain("late")], deadline_ms=1)
        scorer.gate.set()
        await held
        await client.score("fake", [chain("next")])
    assert chain("late") not in [each for call in scorer.calls for each in call]


async def test_a_stream_answers_every_request() -> None:
    async with serving(FakeScorer(1 << 10)) as (_, address), stub_of(address) as stub:
        count = 3 * STREAM_OPEN_MAX
        requests = [
            pb.ScoreStreamRequest(sequence=index, model="fake", chains=[pb.Chain(problem=str(index), steps=["s" * index])])
            for index in range(count)
        ]
        answers = {answer.sequence: answer async for answer in stub.ScoreStream(iter(requests))}
        assert [list(answers[index].chains[0].scores) for index in range(count)] == [[index / 1024] for index in range(count)]
        assert {answer.revision for answer in answers.values()} == {"r1"}


async def test_a_stream_goes_on_while_a_model_is_busy() -> None:
    scorer = FakeScorer()
    async with serving(scorer, RuleScorer(RULES["countdown"])) as (_, address), stub_of(address) as stub:
        scorer.gate.clear()
        stream = stub.ScoreStream()
        await stream.write(pb.ScoreStreamRequest(sequence=7, model="fake", chains=[pb.Chain(steps=["s"])]))
        await scorer.wait_entered()
        await stream.write(pb.ScoreStreamRequest(sequence=8, model="countdown", chains=[pb.Chain(steps=["s"])]))
        assert (await stream.read()).sequence == 8
        scorer.gate.set()
        assert (await stream.read()).sequence == 7
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_ends_on_a_bad_request() -> None:
    scorer = FakeScorer()
    async with serving(scorer) as (_, address), stub_of(address) as stub:
        scorer.gate.clear()
        twice = stub.ScoreStream(iter([pb.ScoreStreamRequest(sequence=1, model="fake", chains=[pb.Chain()])] * 2))
        assert await twice.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await twice.details() == "sequence 1 is open already in this stream"
        unknown = stub.ScoreStream(iter([pb.ScoreStreamRequest(model="nobody")]))
        assert await unknown.code() is grpc.StatusCode.NOT_FOUND


async def test_a_port_is_not_shared_with_another_server() -> None:
    async with serving(FakeScorer()) as (_, address):
        second = VerifierServer()
        with pytest.raises(StartupError, match=f"cannot listen on '{address}': the address is taken"):
            await second.start(address)


async def test_health_follows_the_models() -> None:
    server, scorer = VerifierServer(), FakeScorer()
    address = await server.start("127.0.0.1:0")
    async with stub_of(address) as stub:
        assert [await health(address), await health(address, SERVICE_NAME)] == [NOT_SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(pb.ScoreRequest(model="fake"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the server is loading its models"
        await server.serve([scorer])
        assert [await health(address), await health(address, SERVICE_NAME)] == [SERVING, SERVING]
        assert (await stub.Score(pb.ScoreRequest(model="fake"))).revision == "r1"
    await server.stop()


async def test_stopping_drains_calls_and_streams() -> None:
    server, scorer = VerifierServer(), FakeScorer()
    address = await server.start("127.0.0.1:0")
    await server.serve([scorer])
    async with stub_of(address) as stub, grpc.aio.insecure_channel(address) as watcher:
        watch = await watching(watcher)
        idle = stub.ScoreStream()
        await idle.write(pb.ScoreStreamRequest(model="fake", chains=[pb.Chain(steps=["s"])]))
        await idle.read()
        scorer.gate.clear()
        scorer.entered.clear()
        call = asyncio.create_task(_score(stub))
        await scorer.wait_entered()
        stopping = asyncio.create_task(server.stop(drain_s=PATIENCE_S))
        assert await idle.code() is grpc.StatusCode.UNAVAILABLE
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        assert not stopping.done()
        scorer.gate.set()
        assert (await call).revision == "r1"
        await stopping


async def watching(channel: grpc.aio.Channel) -> Any:
    """A health watch that has seen SERVING."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
    assert (await watch.read()).status == SERVING
    return watch


async def _score(stub: Any) -> Any:
    return await stub.Score(pb.ScoreRequest(model="fake", chains=[pb.Chain(steps=["s"])]))


class FlakyScore:
    """A `ScoreColumns` that is unavailable at first."""

    def __init__(self, failures: int) -> None:
        self.failures, self.attempts = failures, 0

    async def score(self, request: pb.ScoreColumnsRequest, context: Any) -> pb.ScoreColumnsResponse:
        self.attempts += 1
        if self.attempts <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return pb.ScoreColumnsResponse(scores=np.float32(0.5).tobytes() * (len(request.length) // 4), revision="f")


@asynccontextmanager
async def serving_score(score: FlakyScore) -> AsyncIterator[str]:
    server = grpc.aio.server()
    parse, write = pb.ScoreColumnsRequest.FromString, pb.ScoreColumnsResponse.SerializeToString
    handler = grpc.unary_unary_rpc_method_handler(score.score, parse, write)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE_NAME, {"ScoreColumns": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("problem", ["small", "large" * 300_000])
async def test_the_client_retries_what_is_unavailable_a_few_times(problem: str) -> None:
    """The large request would lose its retries to the default of gRPC's buffer."""
    score = FlakyScore(failures=2)
    async with serving_score(score) as address, VerifierClient(address) as client:
        assert (await client.score("m", [chain(problem)])).chains == [ChainScores([0.5])]
    assert score.attempts == 3


async def test_the_client_gives_up_after_a_few_times() -> None:
    score = FlakyScore(failures=100)
    async with serving_score(score) as address, VerifierClient(address) as client:
        with pytest.raises(UnavailableError, match="not yet"):
            await client.score("m", [chain("p")])
    assert score.attempts == 5


async def test_a_model_that_can_score_no_more_is_seen() -> None:
    scorer = FakeScorer()
    async with serving(scorer) as (server, address):
        failed = asyncio.create_task(server.failed())
        assert await health(address) == SERVING
        scorer.failure = "its engine has died"
        assert await failed == "model 'fake': its engine has died"
        assert [await health(address), await health(address, SERVICE_NAME)] == [NOT_SERVING, NOT_SERVING]


async def reflected(address: str) -> set[str]:
    """The services that reflection lists."""
    async with grpc.aio.insecure_channel(address) as channel:
        untyped: Any = reflection_pb2_grpc
        stub = untyped.ServerReflectionStub(channel)
        async for answer in stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])):
            return {service.name for service in answer.list_services_response.service}
    return set()
