import pydantic
import pydantic_settings

from ramify.cli.errors import UsageError


class Settings(pydantic_settings.BaseSettings):
    """What the environment says; each field is RAMIFY_ and its name."""

    model_config = pydantic_settings.SettingsConfigDict(env_prefix="RAMIFY_", frozen=True)

    #: Where the gateway is, HOST:PORT or another gRPC target.
    address: str = "127.0.0.1:8700"

    @pydantic.field_validator("address")
    @classmethod
    def _has_a_port(cls, address: str) -> str:
        if "://" in address and not address.startswith(("dns:", "unix:")):
            raise ValueError(f"an address is HOST:PORT without a scheme, not {address!r}")
        _, colon, port = address.rpartition(":")
        if not address.startswith("unix:") and not (colon and port.isdecimal()):
            raise ValueError(f"an address is HOST:PORT, such as 127.0.0.1:8700, not {address!r}")
        return address


def load_settings(address: str | None = None) -> Settings:
    """The settings, with the address of the command line if it names one.

    Raises:
        UsageError: a value can't be used.
    """
    try:
        return Settings() if address is None else Settings(address=address)
    except pydantic.ValidationError as error:
        raise UsageError("; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())) from error
