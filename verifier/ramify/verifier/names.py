"""Names of chains: a chain that was scored is spoken of by its name, so that only its next step has to be sent.

A name is made of the problem and of all steps up to the chain's last, so two chains have one name only if they are one; and of
the name before it and the new step, so that whoever holds a chain can name the next. `Chain` in the proto says how.
"""

from collections.abc import Iterable
from hashlib import blake2b

NAME_BYTES = 16
NO_NAME = bytes(NAME_BYTES)
"""Stands where there is no name."""


def problem_name(problem: bytes) -> bytes:
    """The name of a problem without any step."""
    return blake2b(problem, digest_size=NAME_BYTES, person=b"ramify:problem").digest()


def step_name(name: bytes, step: bytes) -> bytes:
    """The name of the chain that goes on with a step from the one of that name."""
    return blake2b(name + step, digest_size=NAME_BYTES, person=b"ramify:step").digest()


def names_from(name: bytes, steps: Iterable[bytes]) -> list[bytes]:
    """The names of the chains that end with each of the steps, one after the other."""
    found = []
    for step in steps:
        name = step_name(name, step)
        found.append(name)
    return found
