"""TLS of every gRPC port and channel, from PEM files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger(__name__)


class TlsError(Exception):
    """The operator's fault: a file is missing or no PEM, or one is given without the other it belongs to."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server shows, and whom it lets in."""

    certificate: Path  # its own, and those between it and the authority
    key: Path
    client_ca: Path | None = None  # authorities whose clients are let in (mTLS); None: every client is

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that are read again whenever a file changes: certificates are renewed under a running server.

        Raises:
            TlsError: a file can't be read, or is not what it should be.
        """
        stamp, first = self._stamp(), self._read()

        def renew() -> grpc.ServerCertificateConfiguration | None:
            nonlocal stamp
            try:
                now = self._stamp()
                fresh = self._read() if now != stamp else None
            except TlsError as error:  # half-way through being replaced
                log.warning("the certificate is not renewed: %s", error)
                return None
            stamp = now
            return fresh

        asks = self.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(first, renew, asks)  # type: ignore[arg-type] # None: all is as it was

    def _files(self) -> list[Path]:
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]

    def _stamp(self) -> list[tuple[int, int]]:
        try:
            return [(found.st_mtime_ns, found.st_ino) for found in (path.stat() for path in self._files())]
        except OSError as error:
            raise TlsError(str(error)) from error

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *authorities = (_pem(path) for path in self._files())
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """Whom a client trusts, and what it shows."""

    ca: Path | None = None  # authorities; None: those of the machine
    certificate: Path | None = None  # shown to a server that asks for one; with its key
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise TlsError("a client's certificate and its key belong together: give both, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a channel, with what the files hold now. Raises `TlsError`, see `read`."""
        return grpc.ssl_channel_credentials(*self.read())

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Authorities, key and certificate, as PEM.

        Raises:
            TlsError: a file can't be read, or is not what it should be.
        """
        ca, key, certificate = (None if path is None else _pem(path) for path in (self.ca, self.key, self.certificate))
        return ca, key, certificate


def server_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """From three options; None if none is given.

    Raises:
        TlsError: one is given without the others that it needs.
    """
    if certificate is not None and key is not None:
        return ServerTls(certificate, key, client_ca)
    given: Sequence[Path] = [path for path in (certificate, key, client_ca) if path is not None]
    if given:
        raise TlsError("TLS needs a certificate and its key, and for mTLS the clients' authority too")
    return None


def _pem(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TlsError(str(error)) from error
    if b"-----BEGIN " not in data:
        raise TlsError(f"{path} is no PEM file: it has no line '-----BEGIN ...-----'")
    return data
