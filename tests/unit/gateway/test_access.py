"""API keys, roles and tenants: who may call what, and that nobody sees what is another's."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ramify.gateway import access
from ramify.gateway.access import ROLES, KeyBook
from ramify.gateway.calls import METHODS
from ramify.gateway.errors import TooManyKeys
from ramify.gateway.limits import GatewayLimits
from ramify.store.audit import Audit
from ramify.store.database import Database
from ramify.store.keys import Key, Keys, Role
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.guarded import OPERATOR, Guarded, bearer, guarded
from tests.unit.gateway.system import PUZZLES, SPEC, failure, first, running, told


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with guarded(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}") as found:
        yield found


async def test_every_method_wants_a_good_key(system: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good, text = await system.keys.create(OPERATOR, "acme", Role.OPERATE, "good")
    revoked, revoked_text = await system.keys.create(OPERATOR, "acme", Role.OPERATE, "revoked")
    await system.keys.revoke(OPERATOR, revoked.key_id)
    _, expired_text = await system.keys.create(OPERATOR, "acme", Role.OPERATE, "expired", days=-1)
    wrong = f"{text[:-4]}{'AAAA' if not text.endswith('AAAA') else 'BBBB'}"
    bad = {
        (): "takes calls with an API key alone",
        (("authorization", text),): "is no API key",
        (("authorization", "Basic dXNlcjpwYXNz"),): "is no API key",
        bearer("rk_short"): "is no API key",
        (*bearer(text), *bearer(text)): "is no API key",
        bearer(f"rk_{'0' * 12}_{'A' * 43}"): "there is no such API key",
        bearer(wrong): "there is no such API key",
        bearer(revoked_text): f"API key {revoked.key_id} of tenant acme was revoked",
        bearer(expired_text): "has expired",
    }
    said = []
    for method in METHODS:
        for metadata, why in bad.items():
            code, message = await failure(system.call(method, metadata))
            assert (code, why in message) == (grpc.StatusCode.UNAUTHENTICATED, True), (method, metadata, message)
            said.append(message)
    assert await system.call("ListJobs", bearer(text)) == pb.ListJobsResponse()
    everything = caplog.text + " ".join(said) + repr(await Audit(system.database).latest(1000))
    for secret in (text, wrong, revoked_text, expired_text):
        assert secret.split("_", 2)[2] not in everything
    assert good.key_id in everything, "which is public"


@pytest.mark.parametrize("role", [*Role])
async def test_a_key_does_what_its_role_may(system: Guarded, role: Role) -> None:
    metadata = await system.key("acme", role)
    assert ROLES.keys() == set(METHODS)
    for method in METHODS:
        try:
            code, message = await system.call(method, metadata) and None, ""
        except grpc.aio.AioRpcError as error:
            code, message = told(error)
        assert (code is grpc.StatusCode.PERMISSION_DENIED) == (not role.reaches(ROLES[method])), (method, code, message)
        if code is grpc.StatusCode.PERMISSION_DENIED:
            assert f"{method} takes a key of role {ROLES[method]}" in message


async def test_a_stream_ends_with_its_key(system: Guarded) -> None:
    metadata, others = await system.key("acme"), await system.key("acme")
    job = await system.running_job(metadata=metadata)
    watch, kept = (system.stub.WatchJob(pb.WatchJobRequest(job_id=job.job_id), metadata=its) for its in (metadata, others))
    upload = system.upload(metadata)
    await upload.send(first("another", some=PUZZLES))
    for each in (watch, kept):
        assert (await each.read()).event.cursor == 1
    key = (await system.keys.listed("acme"))[0]
    await system.keys.revoke(OPERATOR, key.key_id)
    for call in (watch, upload.call):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        code, message = told(caught.value)
        assert (code, f"API key {key.key_id} is good no more" in message) == (grpc.StatusCode.UNAUTHENTICATED, True)
    assert (await failure(system.call("ListJobs", metadata)))[0] is grpc.StatusCode.UNAUTHENTICATED
    await system.finish(job, 0)
    assert (await kept.read()).event.progress.problems_done == 1, "the other key's goes on"
    kept.cancel()


async def test_health_takes_no_key(system: Guarded) -> None:
    health: Any = health_pb2_grpc.HealthStub(system.channel)
    status = (await health.Check(health_pb2.HealthCheckRequest())).status
    assert status == health_pb2.HealthCheckResponse.SERVING


async def test_what_is_done_is_written_down(system: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, submitter = await system.key("acme", Role.READ), await system.key("acme")
    job = await system.running_job(metadata=submitter)
    await system.running_job(metadata=submitter)
    for _ in range(3):
        await failure(system.call("CancelJob", reader, job_id=job.job_id))
        await failure(system.call("GetJob", ()))
    await system.call("CancelJob", submitter, job_id=job.job_id)
    await system.call("CancelJob", submitter, job_id=job.job_id)
    await system.call("GetJob", submitter, job_id=job.job_id)
    assert await system.audited() == [
        ("acme", "CreateJob", job.job_id, "OK"),
        ("acme", "CancelJob", job.job_id, "PERMISSION_DENIED"),
        ("", "GetJob", "", "UNAUTHENTICATED"),
        ("acme", "CancelJob", job.job_id, "OK"),
    ]
    assert (await Audit(system.database).latest(1, "acme"))[0].peer.startswith("ipv4:127.0.0.1:")
    monkeypatch.setattr(access, "REFUSAL_S", 0.0)
    await failure(system.call("ListJobs", ()))
    await failure(system.call("ListJobs", ()))
    assert len(await system.audited()) == 6


async def test_without_keys_all_are_the_default_tenant(tmp_path: Path) -> None:
    async with running(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", GatewayLimits()) as system:
        await system.jobs.put_models(system.MODELS)
        assert (await system.running_job()).tenant == "default"
        listed = await system.stub.ListJobs(pb.ListJobsRequest(), metadata=bearer("anything"))
        assert [job.spec.generator for job in listed.jobs] == [SPEC.generator], "what nobody asks for is not looked at"


class Gated(Keys):
    """Keys of which those that nobody has seen are told once somebody says so."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.gate = asyncio.Event()
        self.asked = list[str | frozenset[str]]()

    async def one(self, key_id: str) -> Key | None:
        self.asked.append(key_id)
        await self.gate.wait()
        return await super().one(key_id)

    async def known(self, key_ids: frozenset[str]) -> dict[str, Key]:
        self.asked.append(key_ids)
        return await super().known(key_ids)


async def test_ids_that_are_made_up_hold_up_no_key_that_is_in_use(sqlite_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LOOKUPS_MAX", 3)
    monkeypatch.setattr(access, "KEYS_MAX", 3)
    database = Database(sqlite_store)
    keys = Gated(database)
    (good, _), (new, _) = [await keys.create(OPERATOR, "acme", Role.READ, name) for name in ("good", "new")]
    book, short = KeyBook(keys, fresh_s=1000.0), KeyBook(keys, fresh_s=0.0)
    keys.gate.set()
    for each in (book, short):
        assert await each.find(good.key_id) == await each.find(good.key_id) == good
    for number in range(5):
        assert await book.find(f"made up {number}") is None
    keys.gate.clear()
    keys.asked.clear()
    assert (await book.find(good.key_id), await book.find("made up 4")) == (good, None)
    assert keys.asked == [], "both are remembered"
    made_up = [asyncio.create_task(short.find(f"{number % 3}")) for number in range(6)]
    await asyncio.sleep(0)
    assert await short.find(good.key_id) == good, "read again, while the others wait"
    assert keys.asked == ["0", "1", "2", frozenset({good.key_id})]
    with pytest.raises(TooManyKeys, match="try again"):
        await short.find(new.key_id)
    keys.gate.set()
    assert await asyncio.gather(*made_up) == [None] * 6
    assert await short.find(new.key_id) == new
    await database.close()
