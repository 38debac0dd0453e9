"""How both clients speak to a gateway: channel options, limits, and when a broken stream is worth another try."""

import json
import random
import time
from collections.abc import Callable
from types import MappingProxyType

import grpc

from ramify.client.errors import ClientError, client_error, said_by_gateway, status_code

#: How long a call that isn't a stream may take.
CALL_TIMEOUT_S = 60.0

#: How long a stream that had got somewhere goes on trying when it breaks.
RECONNECT_TIMEOUT_S = 60.0

#: How long a stream that has brought nothing yet waits for a connection.
FIRST_PATIENCE_S = 0.5

#: How long a gateway is left alone after a stream broke; twice as long after each further time, up to the one if it can't be
#: reached, and up to the other if it is there but can't serve, for one without a database. Without a pause a stream would use up
#: its tries in no time: a channel may be taken for ready for a while after its connection broke.
PAUSE_S = 0.1
UNREACHED_PAUSE_S_MAX = 0.5
REFUSED_PAUSE_S_MAX = 4.0

#: Items on a page of a listing.
PAGE_SIZE = 500

# gRPC itself repeats calls that break before their first answer, which is safe since every call of the API is. Not streams: a
# watch that it repeated while the gateway came back was seen to stay open for ever without an answer, and of an upload that it
# repeated a message was missing. `Lifeline` takes both up where they stood.
# Four tries in about half a second outlast a dropped connection and still tell soon that nobody listens.
_SERVICE_CONFIG = MappingProxyType(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": "ramify.v1.JobService", "method": method}
                    for method in ("GetJob", "ListJobs", "CancelJob", "ListResults", "GetTree", "ListModels")
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(dict(_SERVICE_CONFIG))),
    # A watch of a job that waits is silent for hours: without pings, a connection that a firewall dropped would hang
    # it for ever. Servers hang up on those that ping more often than every five minutes.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A tree of a hard problem is larger than gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", 256 << 20),
    # Connections of its own: those that a process shares, which is gRPC's way, make a new client wait out another one's backoff.
    ("grpc.use_local_subchannel_pool", 1),
    # The gateway may be restarted while a stream waits for it: look again soon.
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


#: A watch is taken up anew, at its cursor, after so long: a stream can be lost without either side being told.
WATCH_TIMEOUT_S = 20.0


class Lifeline:
    """Decides whether a stream that broke is taken up again.

    One that had got somewhere is, for as long as that may take in which it gets nowhere. One that had not is tried once more, at
    once: a connection may have broken under it, but where nobody listens from the start, waiting helps nobody.
    """

    def __init__(self, address: str, reconnect_timeout_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._address, self._reconnect_timeout_s, self._now_s = address, reconnect_timeout_s, now_s
        self._progressed = False
        self._broken_s: float | None = None  # since when it gets nowhere
        #: How long to wait for the gateway.
        self.patience_s = min(FIRST_PATIENCE_S, reconnect_timeout_s)
        #: How long to leave it alone before.
        self.pause_s = 0.0

    def progressed(self) -> None:
        """The stream brought something, or was open for as long as it may be."""
        self._progressed, self.patience_s = True, self._reconnect_timeout_s
        self._broken_s, self.pause_s = None, 0.0

    def broken(self, error: grpc.RpcError) -> ClientError:
        """The stream broke with `error`: returns if another try is worth it, with the error should that fail too.

        Raises:
            ClientError: it isn't.
        """
        failure = client_error(error, self._address)
        first = self._broken_s is None
        self._broken_s = self._now_s() if self._broken_s is None else self._broken_s
        worth = self._now_s() - self._broken_s <= self._reconnect_timeout_s if self._progressed else first
        if status_code(error) is not grpc.StatusCode.UNAVAILABLE or not worth:
            raise failure from error
        if self._progressed:
            most = REFUSED_PAUSE_S_MAX if said_by_gateway(error) else UNREACHED_PAUSE_S_MAX
            self.pause_s = min(max(2 * self.pause_s, PAUSE_S), most) * random.uniform(0.75, 1.0)
        return failure
