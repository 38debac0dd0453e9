"""Tenants: nobody sees what is another's, and each has what it may have and no more."""

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from ramify.gateway.calls import METHODS
from ramify.gateway.errors import TooManyCalls
from ramify.gateway.places import Places
from ramify.store.clock import db_now_ms
from ramify.store.keys import Role
from ramify.store.tenants import DAY_MS, Tenant, Tenants, spend
from ramify.v1 import job_pb2
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.guarded import SERVICE, Guarded, guarded
from tests.unit.gateway.system import PUZZLES, SPEC, failure, first, told

NOWHERE = "0" * 16


@pytest.fixture
async def system(store_url: str) -> AsyncIterator[Guarded]:
    async with guarded(store_url) as found:
        yield found


async def test_another_tenant_s_job_is_as_one_that_is_not_there(system: Guarded) -> None:
    """For every method that names a job; of the others two have tests of their own, and models are everybody's."""
    mine, theirs, operators = await system.key("acme"), await system.key("other"), await system.key("ops", Role.OPERATE)
    job_id = (await system.running_job(metadata=mine)).job_id
    naming = [method.name for method in SERVICE.methods if "job_id" in method.input_type.fields_by_name]
    assert set(METHODS) - set(naming) == {"CreateJob", "ListJobs", "ListModels"}
    for method in naming:
        nowhere = await failure(system.call(method, theirs, job_id=NOWHERE))
        code, message = await failure(system.call(method, theirs, job_id=job_id))
        assert (code, message.replace(job_id, NOWHERE)) == nowhere
        assert code is grpc.StatusCode.NOT_FOUND
    assert (await system.call("GetJob", mine, job_id=job_id)).job.state == job_pb2.JOB_STATE_RUNNING, "nobody has cancelled it"
    for method in naming:
        await system.call(method, mine, job_id=job_id)
        await system.call(method, operators, job_id=job_id)


async def test_tenants_list_their_own_jobs_and_operators_all(system: Guarded) -> None:
    mine, theirs, operators = await system.key("acme"), await system.key("other"), await system.key("ops", Role.OPERATE)
    first_job = await system.running_job("same", mine)
    second_job = await system.running_job("same", theirs)
    assert first_job.job_id != second_job.job_id, "request ids are each tenant's own"
    assert (await system.running_job("same", mine)).job_id == first_job.job_id
    assert [first_job.tenant, first_job.request_id, second_job.tenant] == ["acme", "same", "other"]
    for metadata, expected in ((mine, [first_job]), (theirs, [second_job]), (operators, [second_job, first_job])):
        page = await system.call("ListJobs", metadata)
        assert [job.job_id for job in page.jobs] == [job.job_id for job in expected]


async def test_page_tokens_tell_nothing_of_other_tenants(system: Guarded) -> None:
    mine, theirs, operators = await system.key("acme"), await system.key("other"), await system.key("ops", Role.OPERATE)
    made = [(await system.running_job(f"{number}", mine)).job_id for number in range(2)]
    others = [(await system.running_job(f"{number}", theirs)).job_id for number in range(2)]
    token = (await system.call("ListJobs", theirs, page_size=1)).next_page_token
    assert urlsafe_b64decode(token).decode() == f"jobs:{others[1]}"
    assert [job.job_id for job in (await system.call("ListJobs", theirs, page_token=token)).jobs] == others[:1]
    seen = (await system.call("ListJobs", operators, page_token=token)).jobs
    assert [job.job_id for job in seen] == [others[0], *reversed(made)], "who sees the job goes on after it"
    for foreign in (token, urlsafe_b64encode(b"jobs:4").decode(), urlsafe_b64encode(b"jobs:\0").decode()):
        code, message = await failure(system.call("ListJobs", mine, page_token=foreign))
        assert (code, "leave it empty for the first page" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_an_upload_is_its_tenant_s(system: Guarded) -> None:
    mine, theirs = await system.key("acme"), await system.key("other")
    upload = system.upload(mine)
    job = (await upload.send(first("same", some=PUZZLES[:1]))).job
    other = await system.running_job("same", theirs)
    assert other.job_id != job.job_id
    assert (await upload.send(pb.CreateJobRequest(offset=1, last=True))).job.progress.problems_total == 1
    await upload.end()


async def test_open_jobs_are_bounded_whoever_comes_at_once(system: Guarded) -> None:
    await Tenants(system.database).put(Tenant("acme", jobs_max=2))
    mine, theirs = await system.key("acme"), await system.key("other")
    made = await asyncio.gather(*(system.running_job(f"{number}", mine) for number in range(6)), return_exceptions=True)
    jobs = {job.request_id: job for job in made if isinstance(job, job_pb2.Job)}
    refused = [told(error) for error in made if isinstance(error, grpc.aio.AioRpcError)]
    assert (len(jobs), len(refused)) == (2, 4), made
    assert {code for code, _ in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("tenant acme has 2 open jobs, and may have 2 (jobs_max)" in message for _, message in refused)
    for request_id, job in jobs.items():
        assert (await system.running_job(request_id, mine)).job_id == job.job_id, "what is there is not refused"
    again = await asyncio.gather(*(system.running_job(request_id, mine) for request_id in [*jobs] * 3))
    assert {job.job_id for job in again} == {job.job_id for job in jobs.values()}
    await system.running_job("theirs", theirs)
    await system.call("CancelJob", mine, job_id=next(iter(jobs.values())).job_id)
    await system.running_job("one more", mine)


async def test_one_request_at_once_is_one_job_that_nobody_refuses(system: Guarded) -> None:
    await Tenants(system.database).put(Tenant("acme", jobs_max=1))
    mine = await system.key("acme")
    made = await asyncio.gather(*(system.running_job("same", mine) for _ in range(6)))
    assert len({job.job_id for job in made}) == 1


async def test_tokens_of_a_day(system: Guarded) -> None:
    await Tenants(system.database).put(Tenant("acme", tokens_per_day_max=1000))
    mine = await system.key("acme")
    async with system.database.write() as connection:
        now_ms = await db_now_ms(connection)
        await spend(connection, "shard", now_ms, {"acme": (10, 999), "other": (10, 9999)})
        await spend(connection, "shard", now_ms - DAY_MS, {"acme": (10, 9999)})
    await system.running_job("before", mine)
    async with system.database.write() as connection:
        await spend(connection, "another", now_ms, {"acme": (1, 1)})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await system.running_job("after", mine)
    code, message = told(caught.value)
    assert (code, "has spent 1,000 tokens today" in message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    (body,) = (
        bytes(value) if not isinstance(value, str) else b""
        for key, value in caught.value.trailing_metadata() or ()
        if key == "grpc-status-details-bin"
    )
    failed, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    for detail, any_of in zip((failed, retry), status_pb2.Status.FromString(body).details, strict=True):
        assert any_of.Unpack(detail)
    assert failed.violations[0].subject == "tenant:acme"
    assert 0 < retry.retry_delay.seconds <= DAY_MS / 1000
    assert ("acme", "CreateJob", "", "RESOURCE_EXHAUSTED") in await system.audited()


async def test_a_job_that_can_never_fit_is_refused_for_good(system: Guarded) -> None:
    tenants, mine = Tenants(system.database), await system.key("acme")
    for search, chains in (
        (job_pb2.Search(policy="best_of_n", n=9), 9),
        (job_pb2.Search(policy="mcts", parallel=3, branch=4), 12),
        (job_pb2.Search(policy="self_consistency", n=64, parallel=7), 7),
    ):
        spec = job_pb2.JobSpec(generator=SPEC.generator, verifier=SPEC.verifier, search=search)
        request = first(search.policy, spec, PUZZLES, last=True)
        await tenants.put(Tenant("acme", live_chains_max=chains - 1))
        code, message = await failure(system.create(request, metadata=mine))
        assert (code, f"has {chains} chains at once" in message) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        await tenants.put(Tenant("acme", live_chains_max=chains))
        await system.create(request, metadata=mine)


def test_places_are_bounded_for_all_and_for_each() -> None:
    places = Places("watches", 3, 2)
    with places.one("a"), places.one("a"):
        with pytest.raises(TooManyCalls, match="tenant a has 2 open watches"), places.one("a"):
            pass
        with places.one("b"), pytest.raises(TooManyCalls, match="holds 3 open watches"), places.one("c"):
            pass
    with places.one("a"), places.one("a"), places.one("b"):
        pass
