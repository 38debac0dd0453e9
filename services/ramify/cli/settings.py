import pydantic

from ramify.cli.errors import UsageError
from ramify.client.settings import Settings


def load_settings(address: str | None = None) -> Settings:
    """The settings, with the address of the command line if it names one.

    Raises:
        UsageError: a value can't be used.
    """
    try:
        return Settings() if address is None else Settings(address=address)
    except pydantic.ValidationError as error:
        raise UsageError("; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())) from error
