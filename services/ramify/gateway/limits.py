"""What bounds a gateway."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Each protects the gateway from clients that leave calls open."""

    watches_max: int = 1000  # open at once
    uploads_max: int = 1000  # open at once
    upload_idle_s: float = 300.0  # between two messages of an upload
    poll_s: float = 0.1  # how far a watch may lag behind a commit
