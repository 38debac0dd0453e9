"""What bounds a gateway."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Each protects the gateway from clients that leave calls open, and tenants from each other."""

    watches_max: int = 4096  # open at once
    uploads_max: int = 1024  # open at once
    trees_max: int = 64  # read at once: each may be as large as memory allows
    calls_max: int = 8192  # of the job API, open at once
    other_streams_max: int = 256  # of health and reflection, open at once, which take no key
    goodbyes_max: int = 64  # refused uploads at once whose clients are waited for
    tenant_watches_max: int = 2048  # of one tenant, likewise
    tenant_uploads_max: int = 512
    tenant_trees_max: int = 32
    tenant_calls_max: int = 4096
    upload_idle_s: float = 300.0  # between two messages of an upload
    read_s: float = 60.0  # for a client to read a message
    poll_s: float = 0.1  # how far a watch may lag behind a commit
    key_fresh_s: float = 1.5  # how long a key that was revoked may still be taken
    key_recheck_s: float = 5.0  # between two looks at the keys of streams that are open
