"""The verifiers that a client knows: which there are, how they fare, and which of them a chain goes to.

A problem's chains go to one endpoint, which holds what they begin with: that with the highest hash of endpoint and problem
(rendezvous hashing; Thaler and Ravishankar 1998). An endpoint that has more than its share open is passed over (bounded loads;
Mirrokni et al. 2018), and so is one that is away or overloaded, for a while.
"""

import asyncio
import ipaddress
import json
import logging
import random
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import grpc
import numpy as np
from numpy.typing import NDArray

from ramify.tls import ClientTls, TlsError
from ramify.v1 import verifier_service_pb2 as pb
from ramify.v1 import verifier_service_pb2_grpc as pb_grpc
from ramify.verifier.errors import OverloadedError, UnavailableError, VerifierError
from ramify.verifier.mixing import mix64

log = logging.getLogger(__name__)

RESOLVE_S = 10.0  # between two looks at what names stand for
AGAIN_S = 1.0  # likewise, while they stand for nothing
PAUSE_S, DOUBLINGS_MAX = 0.25, 5  # for which an endpoint that is away is passed over, doubled with each failure in a row
SHARE = 1.25  # of the mean load, up to which an endpoint takes what is its own
CLOSE_S = 30.0  # for the calls of an endpoint that is there no more

_RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": pb.DESCRIPTOR.services_by_name["VerifierService"].full_name}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    # Overload is not among them: the caller must slow down, not gRPC try again.
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_OPTIONS = (
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # A request larger than this buffer would silently lose its retries; gRPC's default is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 16 << 20),
    # gRPC's default is two minutes: so long a verifier could be back without anyone's knowing.
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(eq=False, slots=True)
class Endpoint:
    """One verifier."""

    address: str
    target: str  # what it was found under
    channel: grpc.aio.Channel
    stub: "pb_grpc.VerifierServiceAsyncStub" = field(init=False)
    seed: np.uint64 = field(init=False)
    open_chains: int = 0
    failures: int = 0  # in a row
    until_s: float = 0.0  # it is passed over until then

    def __post_init__(self) -> None:
        self.use(self.channel)
        self.seed = np.uint64(int.from_bytes(blake2b(self.address.encode(), digest_size=8).digest(), "little"))

    def use(self, channel: grpc.aio.Channel) -> None:
        """Call it through a channel from now on."""
        self.channel, self.stub = channel, pb_grpc.VerifierServiceStub(channel)


class Endpoints:
    """See the module. To be used in one event loop.

    Args:
        addresses: HOST:PORT each, or any gRPC target; a host's name stands for all the addresses that it resolves to.
        tls: None: no TLS. Its files are read again with each look at the names: certificates are renewed under a running client.
        chance: A number in [0, 1): clients that lost one verifier must not all come back at one moment.
    """

    def __init__(self, addresses: Sequence[str], tls: ClientTls | None, chance: Callable[[], float] = random.random) -> None:
        self._targets = list(dict.fromkeys(addresses))
        self._tls, self._pems = tls, tls.read() if tls else ()
        self._chance = chance
        self._known: dict[str, Endpoint] = {}
        self._next_s = 0.0
        self._look: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def all(self, until_s: float, *, wait: bool) -> list[Endpoint]:
        """Those that there are.

        Args:
            until_s: When it is too late, on the event loop's clock.
            wait: Whether to wait until then for one.

        Raises:
            UnavailableError: no name stands for any.
        """
        clock = asyncio.get_running_loop().time
        if clock() >= self._next_s and self._look is None:
            self._look = asyncio.create_task(self._resolve())
        while not self._known and clock() < until_s:
            if self._look is None:
                self._look = asyncio.create_task(self._resolve())
            await asyncio.wait([self._look], timeout=until_s - clock())
            if self._known or not wait:
                break
            await asyncio.sleep(min(AGAIN_S, max(until_s - clock(), 0)))
        if not self._known:
            raise UnavailableError(f"no verifier is found: {', '.join(self._targets)} stands for no address")
        return list(self._known.values())

    async def close(self) -> None:
        """Cancels open calls and closes the channels."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)
        await asyncio.gather(*(endpoint.channel.close() for endpoint in self._known.values()), *self._closing)

    def failed(self, endpoint: Endpoint, error: VerifierError) -> None:
        """Passes an endpoint over for a while."""
        pause_s = PAUSE_S * 2 ** min(endpoint.failures, DOUBLINGS_MAX) * (1 + self._chance()) / 2
        if isinstance(error, OverloadedError):
            pause_s = max(pause_s, error.retry_delay_ms / 1000)
        endpoint.failures += 1
        endpoint.until_s = asyncio.get_running_loop().time() + pause_s

    def route(
        self, problems: NDArray[np.uint64], endpoints: Sequence[Endpoint], passed: Collection[Endpoint]
    ) -> NDArray[np.int64]:
        """`[R]` which of the endpoints each problem's chains go to.

        Args:
            problems: `[R]` hashes.
            endpoints: All that there are.
            passed: Those that have failed already; one of them is chosen only if there is no other.
        """
        now_s, count = asyncio.get_running_loop().time(), len(problems)
        share = SHARE * (sum(each.open_chains for each in endpoints) + count) / len(endpoints)
        fit = [each not in passed for each in endpoints]
        well = [is_fit and each.until_s <= now_s for is_fit, each in zip(fit, endpoints, strict=True)]
        free = [is_well and each.open_chains < share for is_well, each in zip(well, endpoints, strict=True)]
        may = next((mask for mask in (free, well, fit) if any(mask)), [True] * len(endpoints))
        chosen = np.flatnonzero(may)
        seeds = np.array([endpoints[index].seed for index in chosen.tolist()], np.uint64)
        found = chosen[np.argmax(mix64(problems[:, None] ^ seeds), axis=1)]
        return np.asarray(found, np.int64)

    async def _resolve(self) -> None:
        found = await asyncio.gather(*(_addresses(target) for target in self._targets))
        self._look = None
        self._next_s = asyncio.get_running_loop().time() + (RESOLVE_S if any(found) else AGAIN_S)
        known = {address: target for target, addresses in zip(self._targets, found, strict=True) for address in addresses}
        if not known:
            return  # what there was is better than nothing
        renewed, alone = self._renew(), len(known) == 1
        for address in self._known.keys() - known.keys():
            self._close(self._known.pop(address).channel)
        for endpoint in self._known.values() if renewed else ():
            self._close(endpoint.channel)
            endpoint.use(self._channel(endpoint.address, endpoint.target, alone=alone))
        for address in known.keys() - self._known.keys():
            target = known[address]
            self._known[address] = Endpoint(address, target, self._channel(address, target, alone=alone))

    def _renew(self) -> bool:
        """Whether the files of TLS hold something else than before, which new channels use."""
        try:
            pems = self._tls.read() if self._tls else ()
        except TlsError as error:  # half-way through being replaced
            log.warning("the certificate shown to verifiers is not renewed: %s", error)
            return False
        renewed, self._pems = pems != self._pems, pems
        return renewed

    def _close(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.create_task(channel.close(CLOSE_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _channel(self, address: str, target: str, *, alone: bool) -> grpc.aio.Channel:
        # With one endpoint gRPC tries again by itself; with several, another one is tried at once.
        options = (*_OPTIONS, ("grpc.service_config", _RETRIES)) if alone else (*_OPTIONS, ("grpc.enable_retries", 0))
        if not self._pems:
            return grpc.aio.insecure_channel(address, options=options)
        if address != target:  # the certificate is of the name
            options = (*options, ("grpc.ssl_target_name_override", target.rpartition(":")[0]))
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(*self._pems), options=options)


async def _addresses(target: str) -> list[str]:
    """What a target stands for; one that is no name stands for itself."""
    host, colon, port = target.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in host or host == "unix" or _is_ip(host):
        return [target]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.warning("%s can't be resolved: %s", target, error)
        return []
    families = {family for family, *_ in found}
    # A server that listens on both has an address of each.
    wanted = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    hosts = sorted({str(address[0]) for family, _, _, _, address in found if family == wanted})
    return [f"{each}:{port}" if wanted == socket.AF_INET else f"[{each}]:{port}" for each in hosts]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
