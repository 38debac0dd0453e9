"""A gateway that asks for API keys."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ramify.gateway.limits import GatewayLimits
from ramify.store.audit import Actor, Audit
from ramify.store.keys import Keys, Role
from ramify.v1 import job_service_pb2 as pb
from tests.unit.gateway.system import Metadata, System, running

SERVICE = pb.DESCRIPTOR.services_by_name["JobService"]
OPERATOR = Actor("", "test")


class Guarded(System):
    """A system that asks for keys."""

    @property
    def keys(self) -> Keys:
        return Keys(self.database)

    async def key(self, tenant: str, role: Role = Role.SUBMIT) -> Metadata:
        _, text = await self.keys.create(OPERATOR, tenant, role, f"{role} of {tenant}")
        return bearer(text)

    async def call(self, method: str, metadata: Metadata, **fields: Any) -> Any:
        """The first answer of a method."""
        request = getattr(pb, f"{method}Request")(**fields)
        stub, described = getattr(self.stub, method), SERVICE.methods_by_name[method]
        if described.client_streaming:
            call = stub(metadata=metadata)
            await call.write(request)
            await call.done_writing()
            return await call.read()
        call = stub(request, metadata=metadata)
        return await (call.read() if described.server_streaming else call)

    async def audited(self) -> list[tuple[str, str, str, str]]:
        """Tenant, action, subject and outcome of all that was done through the gateway, the oldest first."""
        entries = reversed(await Audit(self.database).latest(1000))
        return [(each.tenant, each.action, each.subject, each.outcome) for each in entries if not each.action.startswith("keys.")]


def bearer(text: str) -> Metadata:
    return (("authorization", f"Bearer {text}"),)


@asynccontextmanager
async def guarded(url: str) -> AsyncIterator[Guarded]:
    """One on an empty store, for a system with the tiny24 models; a revoked key counts for a twentieth of a second."""
    async with running(url, GatewayLimits(poll_s=0.005, key_fresh_s=0.05, key_recheck_s=0.02), keys=True) as found:
        await found.jobs.put_models(found.MODELS)
        yield Guarded(found.database, found.gateway, found.address, found.channel)
