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

#: How long to wait for a gateway to come back in the middle of a stream.
RECONNECT_TIMEOUT_S = 60.0

#: Reconnections in a row that may bring nothing before a stream is given up.
RECONNECTS_MAX = 5

#: How long a stream that has brought nothing yet waits for a connection.
FIRST_PATIENCE_S = 0.5

#: How long a gateway is left alone that is there but can't serve, for one without a database; twice as long after each try.
PAUSE_S = 0.25
PAUSE_S_MAX = 4.0

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
                    for method in ("GetJob", "ListJobs", "CancelJob", "ListResults", "GetTree")
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
    # The gateway may be restarted while a stream waits for it: look again soon.
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


#: A watch is taken up anew, at its cursor, after so long: a stream can be lost without either side being told.
WATCH_TIMEOUT_S = 20.0


class Lifeline:
    """Decides whether a stream that broke is taken up again.

    One that had got somewhere is, and waits for the gateway; and where that is there but can't serve, for what that waits for.
    One that had not is tried once more, at once: a connection may have broken under it, but where nobody listens from the start,
    waiting helps nobody.
    """

    def __init__(self, address: str, reconnect_timeout_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._address, self._reconnect_timeout_s, self._now_s = address, reconnect_timeout_s, now_s
        self._reconnects_left = 1
        self._progressed = False
        self._refused_s: float | None = None  # since when the gateway says that it can't serve
        #: How long to wait for the gateway.
        self.patience_s = min(FIRST_PATIENCE_S, reconnect_timeout_s)
        #: How long to leave it alone before.
        self.pause_s = 0.0

    def progressed(self) -> None:
        """The stream brought something, or was open for as long as it may be."""
        self._reconnects_left, self.patience_s = RECONNECTS_MAX, self._reconnect_timeout_s
        self._progressed, self._refused_s, self.pause_s = True, None, 0.0

    def broken(self, error: grpc.RpcError) -> ClientError:
        """The stream broke with `error`: returns if another try is worth it, with the error should that fail too.

        Raises:
            ClientError: it isn't.
        """
        failure = client_error(error, self._address)
        if status_code(error) is not grpc.StatusCode.UNAVAILABLE:
            raise failure from error
        if self._progressed and said_by_gateway(error):
            self._refused_s = self._now_s() if self._refused_s is None else self._refused_s
            if self._now_s() - self._refused_s > self._reconnect_timeout_s:
                raise failure from error
            self.pause_s = min(max(2 * self.pause_s, PAUSE_S), PAUSE_S_MAX) * random.uniform(0.75, 1.0)
            return failure
        if not self._reconnects_left:
            raise failure from error
        self._reconnects_left -= 1
        self.pause_s = 0.0
        return failure
