"""The applications that `serve deploy` and KubeRay are told of: `ramify.serving.apps:system`, `:http` and `:verifier`."""

from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from ramify.serving.config import read_system
from ramify.serving.surface import HttpArgs, Surface
from ramify.serving.system import System
from ramify.serving.verifier import Verifier, VerifierArgs


class SystemArgs(BaseModel):
    """Where the system is described."""

    model_config = ConfigDict(extra="forbid")

    config: Path = Path("/etc/ramify/system.toml")  # see `config.SystemFile`; on the node where the application runs


def system(args: SystemArgs) -> Application:
    """Supervisor, shards and engines, as a system file says."""
    return System.bind(partial(read_system, args.config))  # type: ignore[attr-defined] # Serve has no types


def http(args: HttpArgs) -> Application:
    """The HTTP surface."""
    return Surface.bind(args)  # type: ignore[attr-defined]


def verifier(args: VerifierArgs) -> Application:
    """A verifier on a port of its node."""
    return Verifier.bind(args)  # type: ignore[attr-defined]
