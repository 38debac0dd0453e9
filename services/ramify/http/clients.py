"""Clients of the gateway, one for each API key."""

import asyncio
import base64
import binascii
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request

from ramify.client import AsyncClient
from ramify.tls import ClientTls

IDLE_MAX = 256  # clients that are kept open though nobody uses them
READS = ("GET", "HEAD")
OURS = "rk_"  # how a key begins; others are ignored, for OpenAI's clients always send one


@dataclass(slots=True)
class Held:
    """A client, and by how many it is used."""

    client: AsyncClient
    users: int = 0


class Clients:
    """See the module. Belongs to an event loop."""

    def __init__(self, gateway: str, tls: ClientTls | None) -> None:
        self._gateway, self._tls = gateway, tls
        self._held: OrderedDict[str, Held] = OrderedDict()  # by key, the last used at the end

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[AsyncClient]:
        """The client that calls for whoever has made a request. Raises `ClientError`."""
        key = key_of(request)
        if key not in self._held:
            self._held[key] = Held(AsyncClient(self._gateway, api_key=key or None, tls=self._tls))
        held = self._held[key]
        self._held.move_to_end(key)
        held.users += 1
        try:
            yield held.client
        finally:
            held.users -= 1
            idle = [key for key, each in self._held.items() if not each.users]
            for key in idle[: max(0, len(idle) - IDLE_MAX)]:
                await self._held.pop(key).client.close()

    async def close(self) -> None:
        """Close all."""
        held, self._held = self._held, OrderedDict()
        await asyncio.gather(*(each.client.close() for each in held.values()))


def key_of(request: Request) -> str:
    """The API key that came as a bearer token, or from a browser that looks at a page as a password; empty: none of ours."""
    scheme, _, value = request.headers.get("authorization", "").strip().partition(" ")
    key = value.strip()
    if scheme.lower() == "basic" and request.method in READS:  # else any page of the web could have a browser act with it
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    elif scheme.lower() != "bearer":
        return ""
    return key if key.startswith(OURS) else ""
