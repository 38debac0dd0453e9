"""What a client shows and whom it trusts: the channel's credentials and the API key."""

import ipaddress
import re

import grpc

from ramify.client.errors import InvalidRequest
from ramify.tls import ClientTls, TlsError

Metadata = tuple[tuple[str, str], ...]

_KEY = re.compile(r"rk_[0-9a-f]+_[A-Za-z0-9_-]+")


def channel_credentials(tls: ClientTls | None) -> grpc.ChannelCredentials | None:
    """Of a channel; None: it speaks without TLS. Raises `InvalidRequest`."""
    try:
        return None if tls is None else tls.credentials()
    except TlsError as error:
        raise InvalidRequest(f"TLS: {error}") from error


def key_metadata(address: str, api_key: str | None, tls: ClientTls | None) -> Metadata:
    """What every call carries: the API key, if there is one.

    Raises:
        InvalidRequest: it is no key, or would go over the network for everybody to read.
    """
    if not api_key:
        return ()
    if not _KEY.fullmatch(api_key.strip()):  # which is not shown: it may be one that was pasted badly
        raise InvalidRequest("the API key has not the form rk_ID_SECRET: give it as `ramify keys create` has printed it")
    if tls is None and not is_here(address):
        raise InvalidRequest(
            f"an API key is sent to another host over TLS alone, and {address} is to be spoken to without: give "
            "tls=ClientTls(...), or RAMIFY_TLS_CA with a file of authorities, or RAMIFY_TLS=1 to trust those of this machine"
        )
    return (("authorization", f"Bearer {api_key.strip()}"),)


def is_here(address: str) -> bool:
    """Whether what is sent to an address stays on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    target = re.sub(r"^(dns:(//[^/]*/)?/?|ipv4:|ipv6:)", "", address)
    host = target.rpartition(":")[0].strip("[]") or target
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
