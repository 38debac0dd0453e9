"""Places for open calls: of all tenants together, and of each."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ramify.gateway.errors import TooManyCalls


class Places:
    """Bounds the open calls of one kind."""

    def __init__(self, what: str, most: int, tenant_most: int | None = None) -> None:
        """`tenant_most`: of one tenant; None: as many as there are."""
        self._what, self._most, self._tenant_most = what, most, most if tenant_most is None else tenant_most
        self._taken = Counter[str]()  # by tenant

    @contextmanager
    def one(self, tenant: str = "") -> Iterator[None]:
        """Holds a place. Raises `TooManyCalls`."""
        if self._taken.total() >= self._most:
            raise TooManyCalls(f"this gateway holds {self._most} open {self._what}, which is its bound: try again later")
        if self._taken[tenant] >= self._tenant_most:
            raise TooManyCalls(
                f"tenant {tenant} has {self._tenant_most} open {self._what} at this gateway, which is its bound: end one, or "
                "try again later"
            )
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
