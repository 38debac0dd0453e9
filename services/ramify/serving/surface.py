"""The HTTP surface as an application of Ray Serve."""

from ray import serve
from starlette.applications import Starlette

from ramify.http.app import make_app
from ramify.http.settings import HttpSettings

NAME = "http"
REQUESTS_MAX = 1000  # at once: each waits for a search
STOP_S = 20.0  # for requests that are open
HttpArgs = HttpSettings


@serve.deployment(
    name=NAME,
    num_replicas=1,
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=REQUESTS_MAX,
    max_queued_requests=REQUESTS_MAX,
    graceful_shutdown_timeout_s=STOP_S,
)
@serve.ingress()
class Surface:
    """See the module. It holds nothing: another replica is as good."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> Starlette:
        return make_app(self._settings)
