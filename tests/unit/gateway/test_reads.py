"""The calls that read, and CancelJob, over real gRPC."""

from math import nan
from typing import Any

import grpc
import numpy as np
import pytest

from ramify.scheduler.forest.ids import root_ids
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.system import System, failure, first
from tests.unit.store.helpers import Step, all_slots, commit, delta, result, rows, scores, tree_id


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("GetJob", pb.GetJobRequest),
        ("CancelJob", pb.CancelJobRequest),
        ("ListResults", pb.ListResultsRequest),
        ("GetTree", pb.GetTreeRequest),
    ],
)
async def test_unknown_jobs(system: System, method: str, request_of: Any) -> None:
    for job_id in ("", "nobody", "\0"):
        code, message = await failure(getattr(system.stub, method)(request_of(job_id=job_id)))
        assert code is grpc.StatusCode.NOT_FOUND
        assert f"there is no job {job_id!r}" in message


async def test_get_and_cancel(system: System) -> None:
    job = await system.running_job()
    await all_slots(system.work)  # without a shard, it would wait for one
    assert (await system.stub.GetJob(pb.GetJobRequest(job_id=job.job_id))).job == job
    cancelled = (await system.stub.CancelJob(pb.CancelJobRequest(job_id=job.job_id))).job
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    assert (await system.stub.CancelJob(pb.CancelJobRequest(job_id=job.job_id))).job == cancelled


async def test_list_jobs(system: System) -> None:
    made = [(await system.create(first(f"request {index}"))).job_id for index in range(5)]
    seen, token = [], ""
    while True:
        page = await system.stub.ListJobs(pb.ListJobsRequest(page_size=2, page_token=token))
        assert len(page.jobs) <= 2
        seen += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]
    cancelled = await system.stub.ListJobs(pb.ListJobsRequest(state=job_pb2.JOB_STATE_CANCELLED))
    assert (list(cancelled.jobs), cancelled.next_page_token) == ([], "")
    assert len((await system.stub.ListJobs(pb.ListJobsRequest(page_size=2**32 - 1))).jobs) == 5


async def test_list_jobs_in_a_state_that_nobody_knows(system: System) -> None:
    code, message = await failure(system.stub.ListJobs(pb.ListJobsRequest(state=99)))  # type: ignore[arg-type]
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "state is 99" in message
    assert "JOB_STATE_UPLOADING, JOB_STATE_RUNNING" in message


async def test_list_results(system: System) -> None:
    job = await system.running_job()
    await system.finish(job, 2, 0)
    page = await system.stub.ListResults(pb.ListResultsRequest(job_id=job.job_id, page_size=1))
    assert [each.problem_index for each in page.results] == [0]
    token = page.next_page_token
    page = await system.stub.ListResults(pb.ListResultsRequest(job_id=job.job_id, page_token=token))
    assert [(each.problem_index, each.problem.text) for each in page.results] == [(2, "3 3 8 8")]
    assert page.next_page_token == ""


@pytest.mark.parametrize("token", ["?", "aGVsbG8=", "ä", "am9iczp4", "am9iczotMQ==", "am9iczo5OTk5OTk5OTk5OTk5OTk5OTk5OQ=="])
async def test_page_tokens_that_are_none(system: System, token: str) -> None:
    job = await system.running_job()
    for call in (
        system.stub.ListJobs(pb.ListJobsRequest(page_token=token)),
        system.stub.ListResults(pb.ListResultsRequest(job_id=job.job_id, page_token=token)),
    ):
        code, message = await failure(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"page_token {token!r} is none of this listing's" in message
        assert "leave it empty" in message


async def test_a_page_token_of_another_listing(system: System) -> None:
    job = await system.running_job()
    await system.running_job("another")
    token = (await system.stub.ListJobs(pb.ListJobsRequest(page_size=1))).next_page_token
    code, _ = await failure(system.stub.ListResults(pb.ListResultsRequest(job_id=job.job_id, page_token=token)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def root_of(index: int) -> int:
    return int(root_ids(0, np.array([index], np.int64))[0])


async def test_a_tree_that_grows_and_one_that_is_finished(system: System) -> None:
    job, claim = await system.running_job(), await all_slots(system.work)
    tree, root, firsts = tree_id(job, 1), root_of(1), dict[int, int]()
    get = pb.GetTreeRequest(job_id=job.job_id, problem_index=1)
    empty = (await system.stub.GetTree(get)).tree
    assert (empty.job_id, empty.problem_index, empty.problem.text) == (job.job_id, 1, "1 2 3 4")
    assert (empty.root_id, len(empty.nodes), empty.HasField("result")) == (root, 0, False)
    level = rows(Step(tree, 20, root, child=1, text=b"two\n"), Step(tree, 10, root, text="ä\n".encode(), score=nan))
    await system.work.commit(claim, commit(1, delta(job), nodes=level), firsts)
    growing = (await system.stub.GetTree(get)).tree
    assert [(node.node_id, node.text, node.HasField("score")) for node in growing.nodes] == [
        (10, "ä\n", False),
        (20, "two\n", True),
    ]
    deeper = rows(Step(tree, 5, 20, depth=2), Step(tree, 30, 10, depth=2, finish=job_pb2.FINISH_END))
    await system.work.commit(claim, commit(2, delta(job, result(job, 1)), nodes=deeper, late=scores((tree, 10, 0.25))), firsts)
    done = (await system.stub.GetTree(get)).tree
    assert [(node.node_id, node.parent_id, node.depth) for node in done.nodes] == [
        (10, root, 1),
        (20, root, 1),
        (30, 10, 2),
        (5, 20, 2),
    ]
    assert done.nodes[0].score == 0.25
    assert (list(done.nodes[2].tokens), done.nodes[2].logprob, done.nodes[2].finish) == ([30], -0.25, job_pb2.FINISH_END)
    assert done.result.answer == "two"


async def test_equal_trees_are_equal_bytes_in_whatever_order_they_were_committed(system: System) -> None:
    trees = []
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [1, 3, 0, 2]):
        job = await system.running_job(str(order))
        tree, root, firsts = tree_id(job, 0), root_of(0), dict[int, int]()
        steps = [
            Step(tree, 7, root),
            Step(tree, 3, root, child=1),
            Step(tree, 9, 7, depth=2),
            Step(tree, 1, 3, depth=2),
        ]
        claim = await all_slots(system.work)
        for sequence, which in enumerate(order):
            await system.work.commit(claim, commit(sequence, delta(job), nodes=rows(steps[which])), firsts)
        found = (await system.stub.GetTree(pb.GetTreeRequest(job_id=job.job_id))).tree
        found.job_id = ""
        trees.append(found.SerializeToString(deterministic=True))
    assert trees[0] == trees[1] == trees[2]


async def test_a_problem_that_is_not_there(system: System) -> None:
    job = await system.running_job()
    for index in (3, 2**64 - 1):
        code, message = await failure(system.stub.GetTree(pb.GetTreeRequest(job_id=job.job_id, problem_index=index)))
        assert code is grpc.StatusCode.NOT_FOUND
        assert f"no problem {index}: it has 3, counted from 0" in message


async def test_list_models(system: System) -> None:
    found = (await system.stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.kind, model.name, model.revision) for model in found] == [
        ("checker", "countdown", "1"),
        ("generator", "tiny24", "1"),
        ("verifier", "tiny24-prm", "1"),
    ]
