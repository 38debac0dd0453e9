import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from ramify.client import AlreadyExists, AsyncClient, Client, InvalidRequest, NotFound, Overloaded, Unavailable
from ramify.client.upload import CHUNK_BYTES_MAX, WINDOW_CHUNKS
from ramify.v1 import job_pb2
from tests.unit.client.fake_gateway import FakeGateway, solved

PROBLEMS = [f"4 5 6 {i}" for i in range(5_500)]


def test_submitted_problems_arrive_in_chunks(client: Client, gateway: FakeGateway) -> None:
    counts: list[int] = []
    job = client.submit(iter(PROBLEMS), name="first", n=8, acknowledged=counts.append)
    assert job.state == job_pb2.JOB_STATE_RUNNING
    assert job.spec.name == "first"
    assert job.spec.search.n == 8
    assert [problem.text for problem in gateway.jobs[job.job_id].problems] == PROBLEMS
    assert [len(request.problems) for request in gateway.requests] == [1000] * 5 + [500]
    assert counts == [1000, 2000, 3000, 4000, 5000, 5500]


def test_small_job_is_one_message(client: Client, gateway: FakeGateway) -> None:
    spec = job_pb2.JobSpec(name="as it is")
    job = client.submit([job_pb2.Problem(text="a"), {"text": "b", "id": "x", "reference": "r"}], spec)
    assert len(gateway.requests) == 1
    assert gateway.jobs[job.job_id].problems[1] == job_pb2.Problem(text="b", id="x", reference="r")
    assert gateway.jobs[job.job_id].asked_spec == spec


def test_chunks_stay_under_the_byte_limit(client: Client, gateway: FakeGateway) -> None:
    client.submit(["x" * (CHUNK_BYTES_MAX // 3)] * 7)
    assert [len(request.problems) for request in gateway.requests] == [2, 2, 2, 1]
    assert all(sum(p.ByteSize() for p in request.problems) <= CHUNK_BYTES_MAX for request in gateway.requests)


def test_upload_holds_a_window_and_no_more(client: Client, gateway: FakeGateway) -> None:
    taken = 0
    ahead: list[int] = []

    def problems() -> Iterator[str]:
        nonlocal taken
        for taken in range(1, 30_001):
            yield str(taken)

    client.submit(problems(), acknowledged=lambda received: ahead.append(taken - received))
    assert max(ahead) <= WINDOW_CHUNKS * 1_000 + 1


@pytest.mark.parametrize("chunks", [0, 1, 3, 5])
def test_broken_upload_goes_on_by_itself(client: Client, gateway: FakeGateway, chunks: int) -> None:
    gateway.faults.drop_upload_after_chunks = chunks
    job = client.submit(iter(PROBLEMS), request_id="mine")
    assert job.request_id == "mine"
    assert len(gateway.jobs) == 1
    assert [problem.text for problem in gateway.jobs[job.job_id].problems] == PROBLEMS


def test_upload_outlives_a_restart_of_the_gateway(client: Client, gateway: FakeGateway) -> None:
    restarted = False

    def restart(received: int) -> None:
        nonlocal restarted
        if received >= 2_000 and not restarted:
            restarted = True
            gateway.stop()
            gateway.start()

    job = client.submit(iter(PROBLEMS), acknowledged=restart)
    assert restarted
    assert [problem.text for problem in gateway.jobs[job.job_id].problems] == PROBLEMS


def test_upload_to_a_gateway_that_stays_away_ends(gateway: FakeGateway) -> None:
    def stop(received: int) -> None:
        if received == 1_000:
            gateway.stop()

    with Client(gateway.address, reconnect_timeout_s=0.05) as client, pytest.raises(Unavailable, match="no gateway"):
        client.submit(iter(PROBLEMS * 6), acknowledged=stop)


def test_same_request_twice_is_one_job(client: Client, gateway: FakeGateway) -> None:
    first = client.submit(PROBLEMS, request_id="mine")
    assert client.submit(PROBLEMS, request_id="mine").job_id == first.job_id
    with pytest.raises(AlreadyExists, match="request mine has other problems"):
        client.submit(["7 7 7 7"], request_id="mine")
    with pytest.raises(AlreadyExists, match="another spec"):
        client.submit(PROBLEMS, request_id="mine", n=2)
    assert len(gateway.jobs) == 1


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"text": "a", "answer": "24"}, "problem 1 has the unknown field 'answer'; it can have id, text, reference"),
        (7, "problem 1 is a int"),
        ({"text": 7}, "problem 1: "),
        ("\ud800", "problem 1: "),
        ("x" * CHUNK_BYTES_MAX, "at most 1,048,576 are sent"),
        ("", "problem 1 has no text"),  # the gateway's word
    ],
)
def test_bad_problem_is_named_and_leaves_no_job(client: Client, gateway: FakeGateway, problem: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        client.submit(["4 5 6 10", problem])
    assert not gateway.jobs


def test_failure_of_the_callers_iterable_comes_through(client: Client) -> None:
    def problems() -> Iterator[str]:
        yield "4 5 6 10"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.submit(problems())


def test_jobs_come_page_by_page_newest_first(client: Client, gateway: FakeGateway) -> None:
    for _ in range(501):
        gateway.add_job(job_pb2.JobSpec(), [job_pb2.Problem(text="a")])
    gateway.finish(gateway.jobs["job-7"], [])
    assert [job.job_id for job in client.jobs()] == [f"job-{i}" for i in range(501, 0, -1)]
    assert [job.job_id for job in client.jobs(job_pb2.JOB_STATE_DONE)] == ["job-7"]


def test_results_come_page_by_page(client: Client, gateway: FakeGateway) -> None:
    problems = [job_pb2.Problem(text=text) for text in PROBLEMS[:1001]]
    fake = gateway.add_job(job_pb2.JobSpec(), problems)
    gateway.finish(fake, [solved(i, problem) for i, problem in enumerate(problems)])
    assert [result.problem_index for result in client.results("job-1")] == list(range(1001))


def test_cancel_and_tree(client: Client, gateway: FakeGateway) -> None:
    fake = gateway.add_job(job_pb2.JobSpec(), [job_pb2.Problem(text="a")])
    fake.trees[0] = job_pb2.Tree(job_id="job-1", nodes=[job_pb2.TreeNode(node_id=7)])
    assert client.tree("job-1", 0) == fake.trees[0]
    assert client.cancel("job-1").state == job_pb2.JOB_STATE_CANCELLED
    assert client.cancel("job-1").state == job_pb2.JOB_STATE_CANCELLED
    assert client.job("job-1").state == job_pb2.JOB_STATE_CANCELLED


def test_watch_is_live_and_ends_with_the_job(client: Client, gateway: FakeGateway) -> None:
    fake = gateway.add_job(job_pb2.JobSpec(), [job_pb2.Problem(text="a")])
    events = client.watch("job-1")
    assert next(events).state == job_pb2.JOB_STATE_RUNNING
    gateway.progress(fake, tokens=5)
    assert next(events).progress.tokens == 5
    gateway.finish(fake, [])
    assert [event.cursor for event in events] == [3]
    assert [event.cursor for event in client.watch("job-1", cursor=1)] == [2, 3]
    assert not list(client.watch("job-1", cursor=3))


def test_broken_watch_goes_on_without_gap_or_duplicate(client: Client, gateway: FakeGateway) -> None:
    fake = gateway.add_job(job_pb2.JobSpec(), [job_pb2.Problem(text="a")])
    for tokens in range(5):
        gateway.progress(fake, tokens=tokens)
    gateway.finish(fake, [])
    gateway.faults.drop_watch_after_events = 3
    assert [event.cursor for event in client.watch("job-1")] == [1, 2, 3, 4, 5, 6, 7]
    assert gateway.watches == [0, 3]


def test_watch_outlives_a_restart_of_the_gateway(client: Client, gateway: FakeGateway) -> None:
    fake = gateway.add_job(job_pb2.JobSpec(), [job_pb2.Problem(text="a")])
    events = client.watch("job-1")
    assert next(events).cursor == 1
    gateway.stop()
    gateway.start()
    gateway.finish(fake, [])
    assert [event.cursor for event in events] == [2]


def test_watch_of_a_gateway_that_stays_away_ends(gateway: FakeGateway) -> None:
    gateway.add_job(job_pb2.JobSpec(), [job_pb2.Problem(text="a")])
    with Client(gateway.address, reconnect_timeout_s=0.05) as client:
        events = client.watch("job-1")
        next(events)
        gateway.stop()
        with pytest.raises(Unavailable):
            next(events)


def test_errors_carry_the_gateways_words(client: Client, gateway: FakeGateway) -> None:
    with pytest.raises(NotFound, match="there is no job nope; `ramify jobs` lists"):
        client.job("nope")
    with pytest.raises(NotFound, match="there is no job nope"):
        list(client.watch("nope"))
    gateway.faults.answer = (grpc.StatusCode.RESOURCE_EXHAUSTED, "your quota of 3 jobs is used up")
    with pytest.raises(Overloaded, match="quota of 3 jobs"):
        client.submit(["a"])


def test_a_lost_call_is_repeated(client: Client, gateway: FakeGateway) -> None:
    gateway.add_job(job_pb2.JobSpec(), [])
    gateway.faults.answer = (grpc.StatusCode.UNAVAILABLE, "draining")
    assert client.job("job-1").job_id == "job-1"


def test_without_a_gateway_every_call_says_where_it_looked() -> None:
    with Client("127.0.0.1:1") as client:
        calls: list[Callable[[], object]] = [
            lambda: client.job("a"),
            lambda: client.submit(["a"]),
            lambda: list(client.watch("a")),
        ]
        for call in calls:
            with pytest.raises(Unavailable) as caught:
                call()
            assert str(caught.value) == (
                "no gateway answers at 127.0.0.1:1; start one with `ramify up`, "
                "or say where it is with --address or RAMIFY_ADDRESS"
            )


async def test_async_client_does_the_same(gateway: FakeGateway) -> None:
    gateway.faults.drop_upload_after_chunks = 3
    async with AsyncClient(gateway.address) as client:
        counts: list[int] = []
        job = await client.submit(iter(PROBLEMS), n=4, request_id="mine", acknowledged=counts.append)
        fake = gateway.jobs[job.job_id]
        assert [problem.text for problem in fake.problems] == PROBLEMS
        assert counts == [1000, 2000, 3000, 4000, 5000, 5500]
        gateway.progress(fake, tokens=3)
        gateway.finish(fake, [solved(i, problem) for i, problem in enumerate(fake.problems[:501])])
        gateway.faults.drop_watch_after_events = 2
        assert [event.cursor async for event in client.watch(job.job_id)] == [1, 2, 3]
        assert [j.job_id async for j in client.jobs()] == ["job-1"]
        assert [r.problem_index async for r in client.results(job.job_id)] == list(range(501))
        assert (await client.job(job.job_id)).spec.search.n == 4
        assert (await client.cancel(job.job_id)).state == job_pb2.JOB_STATE_DONE
        assert (await client.tree(job.job_id, 0)).job_id == job.job_id
        with pytest.raises(NotFound):
            await client.job("nope")
        with pytest.raises(AlreadyExists):
            await client.submit(["other"], request_id="mine", n=4)
        with pytest.raises(InvalidRequest, match="problem 1 is a int"):
            await client.submit(["a", 7])  # type: ignore[list-item]


async def test_async_upload_and_watch_end_where_the_gateway_stays_away(gateway: FakeGateway) -> None:
    def stop(received: int) -> None:
        if received == 1_000:
            gateway.stop()

    async with AsyncClient(gateway.address, reconnect_timeout_s=0.05) as client:
        with pytest.raises(Unavailable, match="no gateway answers"):
            await client.submit(iter(PROBLEMS * 6), acknowledged=stop)
        with pytest.raises(Unavailable, match="no gateway answers"):
            await client.job("a")


def test_threads_share_a_client(client: Client, gateway: FakeGateway) -> None:
    threads = [threading.Thread(target=client.submit, args=(["a", "b"],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gateway.jobs) == 8


def test_objection_in_the_midst_of_an_upload_comes_through(client: Client, gateway: FakeGateway) -> None:
    with pytest.raises(InvalidRequest, match="problem 2500 has no text"):
        client.submit([*PROBLEMS[:2_500], "", *PROBLEMS])
    assert not gateway.jobs


async def test_async_upload_outlives_a_restart_and_shows_objections(gateway: FakeGateway) -> None:
    restarted = False

    def restart(received: int) -> None:
        nonlocal restarted
        if received >= 2_000 and not restarted:
            restarted = True
            gateway.stop()
            gateway.start()

    async with AsyncClient(gateway.address) as client:
        job = await client.submit(iter(PROBLEMS), acknowledged=restart)
        assert [problem.text for problem in gateway.jobs[job.job_id].problems] == PROBLEMS
        with pytest.raises(InvalidRequest, match="problem 2500 has no text"):
            await client.submit([*PROBLEMS[:2_500], "", *PROBLEMS])
        assert list(gateway.jobs) == [job.job_id]
    assert restarted
