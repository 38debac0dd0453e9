"""What the HTTP surface is told, and what an effort means."""

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ramify.client import InvalidRequest, job_spec
from ramify.tls import ClientTls

Effort = Literal["minimal", "low", "medium", "high"]

EFFORTS = MappingProxyType[str, dict[str, Any]](
    {
        "minimal": {"policy": "best_of_n", "n": 1},
        "low": {"policy": "best_of_n", "n": 4},
        "medium": {"policy": "beam", "n": 16},
        "high": {"policy": "beam", "n": 64},
    }
)
"""The knobs of each effort, see docs/knobs.md."""

TIMEOUT_S = 600.0


class HttpSettings(BaseModel):
    """Where the gateway is, and what requests get that say nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway: str = "127.0.0.1:8700"
    tls: bool = False  # without tls_ca, the machine's authorities are trusted
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    effort: Effort = "medium"
    search: dict[str, Any] = Field(default_factory=dict)  # knobs of all requests
    efforts: dict[str, dict[str, Any]] = Field(default_factory=dict)  # in place of those above
    checker: str = ""  # that says whether answers are right
    timeout_s: Annotated[float, Field(gt=1)] = TIMEOUT_S  # after which a search ends with the best answer that there is

    @model_validator(mode="after")
    def _has_knobs(self) -> "HttpSettings":
        if unknown := self.efforts.keys() - EFFORTS.keys():
            raise ValueError(f"efforts: there is none called {min(unknown)}; there are {', '.join(EFFORTS)}")
        for effort in EFFORTS:
            try:
                job_spec(**self.knobs(effort))
            except InvalidRequest as error:
                raise ValueError(f"the knobs of effort {effort}: {error}") from error
        return self

    def knobs(self, effort: str) -> dict[str, Any]:
        """Of a search."""
        return {**{**EFFORTS, **self.efforts}[effort], **self.search}

    def client_tls(self) -> ClientTls | None:
        """How to speak to the gateway; None: without TLS. Raises `TlsError`."""
        wanted = self.tls or self.tls_ca or self.tls_cert or self.tls_key
        return ClientTls(self.tls_ca, self.tls_cert, self.tls_key) if wanted else None
