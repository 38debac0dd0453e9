"""Random variates from keys: the same key always gives the same number, and different keys give independent ones."""

import numpy as np
from numpy.typing import NDArray

from ramify.scheduler.forest.ids import U64, mix64, uniforms

Reals = NDArray[np.float64]
ROUNDS = 8  # of rejection: one in 10^10 variates is still open then and gets the distribution's mode


def branch_key(key: U64, salt: int) -> U64:
    """`[R]` keys that are independent of `key` `[R]` and of those of any other salt."""
    return mix64(key, np.full(len(key), salt, np.uint64))


def normal(key: U64) -> Reals:
    """`[R]` standard normal variates (Box and Muller 1958)."""
    radius: Reals = np.sqrt(-2 * np.log1p(-uniforms(key, 0)))
    return radius * np.cos(2 * np.pi * uniforms(key, 1))


def student_t(key: U64, freedom: Reals) -> Reals:
    """`[R]` variates of Student's t with `freedom` `[R]` degrees of freedom.

    Bailey 1994, "Polar generation of random variates with the t-distribution": like Box and Muller's method, and as exact.
    """
    radius: Reals = np.sqrt(freedom * np.expm1(-2 / freedom * np.log1p(-uniforms(key, 0))))
    return radius * np.cos(2 * np.pi * uniforms(key, 1))


def gamma(key: U64, shape: Reals) -> Reals:
    """`[R]` variates of the gamma distribution with `shape` `[R]` above 0 and scale 1 (Marsaglia and Tsang 2000).

    Their method wants a shape of 1 or more, so it draws for `shape + 1`, and a power of a uniform number leads back (section 6).
    """
    d = shape + 2 / 3
    c = 1 / np.sqrt(9 * d)
    cube, waits = np.ones(len(key)), np.arange(len(key))
    for salt in range(ROUNDS):
        x, u = normal(branch_key(key[waits], 2 * salt)), 1 - uniforms(key[waits], 2 * salt + 1)
        v = np.maximum(1 + c[waits] * x, 0) ** 3
        bound = 0.5 * x**2 + d[waits] * (1 - v + np.log(np.maximum(v, np.finfo(np.float64).tiny)))
        accepted = (v > 0) & (np.log(u) < bound)
        cube[waits[accepted]] = v[accepted]
        waits = waits[~accepted]
    return d * cube * (1 - uniforms(key, 2 * ROUNDS)) ** (1 / shape)


def beta(key: U64, a: Reals, b: Reals) -> Reals:
    """`[R]` variates of the beta distribution with parameters `a` and `b` `[R]`, both above 0."""
    x, y = gamma(branch_key(key, 0), a), gamma(branch_key(key, 1), b)
    return x / (x + y)
