"""What the environment says of the gateway, for the `ramify` command and `Client.from_environment`."""

from pathlib import Path
from typing import Self, TypedDict

import pydantic
import pydantic_settings

from ramify.client.errors import InvalidRequest
from ramify.tls import ClientTls, TlsError


class Settings(pydantic_settings.BaseSettings):
    """Each field is RAMIFY_ and its name."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="RAMIFY_", env_ignore_empty=True, frozen=True)

    #: Where the gateway is, HOST:PORT or another gRPC target.
    address: str = "127.0.0.1:8700"

    #: The key to show, or the file that holds it.
    api_key: pydantic.SecretStr | None = None
    api_key_file: Path | None = None

    #: Whether to speak TLS; without `tls_ca` the authorities of this machine are trusted.
    tls: bool = False
    tls_ca: Path | None = None

    #: What to show to a gateway that asks for it (mTLS).
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @pydantic.field_validator("address")
    @classmethod
    def _has_a_port(cls, address: str) -> str:
        if "://" in address and not address.startswith(("dns:", "unix:")):
            raise ValueError(f"an address is HOST:PORT without a scheme, not {address!r}")
        _, colon, port = address.rpartition(":")
        if not address.startswith("unix:") and not (colon and port.isdecimal()):
            raise ValueError(f"an address is HOST:PORT, such as 127.0.0.1:8700, not {address!r}")
        return address

    @pydantic.model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.api_key and self.api_key_file:
            raise ValueError("RAMIFY_API_KEY and RAMIFY_API_KEY_FILE both give the key: set one of them")
        try:
            self.client_tls()
        except TlsError as error:
            raise ValueError(f"RAMIFY_TLS_CERT and RAMIFY_TLS_KEY: {error}") from error
        return self

    def client_tls(self) -> ClientTls | None:
        """How to speak TLS; None: not at all."""
        if not (self.tls or self.tls_ca or self.tls_cert or self.tls_key):
            return None
        return ClientTls(self.tls_ca, self.tls_cert, self.tls_key)

    def key(self) -> str | None:
        """The API key, if there is one. Raises `OSError` if its file can't be read."""
        if self.api_key_file is not None:
            return self.api_key_file.read_text(encoding="utf-8").strip()
        return self.api_key.get_secret_value() if self.api_key else None


class Arguments(TypedDict):
    """Of a client."""

    address: str
    api_key: str | None
    tls: ClientTls | None


def arguments(settings: Settings) -> Arguments:
    """Of the client that the settings describe. Raises `InvalidRequest` if the key's file can't be read."""
    try:
        return {"address": settings.address, "api_key": settings.key(), "tls": settings.client_tls()}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"RAMIFY_API_KEY_FILE can't be read: {error}") from error


def from_environment(address: str | None = None) -> Arguments:
    """Of the client that the environment describes; `address` goes before RAMIFY_ADDRESS. Raises `InvalidRequest`."""
    try:
        return arguments(Settings() if address is None else Settings(address=address))
    except pydantic.ValidationError as error:
        raise InvalidRequest("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())) from None
