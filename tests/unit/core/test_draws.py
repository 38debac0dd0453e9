"""Variates follow their distributions, and nothing but the key decides them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ramify.scheduler.policies.draws import Reals, beta, branch_key, gamma, normal, student_t

KEYS = branch_key(np.arange(200_000, dtype=np.uint64), 7)
ERROR = 6 / np.sqrt(len(KEYS))  # six standard errors of a mean, or more of a share


def constant(value: float) -> Reals:
    return np.full(len(KEYS), value)


def share_below(values: Reals, bound: float) -> float:
    return float((values < bound).mean())


def test_normal() -> None:
    drawn = normal(KEYS)
    assert abs(drawn.mean()) < ERROR
    assert abs(drawn.var() - 1) < 2 * ERROR
    for bound, share in ((-1.959964, 0.025), (-0.674490, 0.25), (0.674490, 0.75), (1.281552, 0.9)):
        assert abs(share_below(drawn, bound) - share) < ERROR


@pytest.mark.parametrize(
    ("freedom", "quartile", "tail"),  # the latter two from tables: 75% and 97.5%
    [(1, 1.0, 12.7062), (2, 0.816497, 4.302653), (5, 0.726687, 2.570582), (30, 0.682756, 2.042272), (1e6, 0.674490, 1.959964)],
)
def test_student_t(freedom: float, quartile: float, tail: float) -> None:
    drawn = student_t(KEYS, constant(freedom))
    for bound, share in ((quartile, 0.75), (-quartile, 0.25), (tail, 0.975), (0.0, 0.5)):
        assert abs(share_below(drawn, bound) - share) < ERROR


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 7.0, 300.0])
def test_gamma(shape: float) -> None:
    drawn = gamma(KEYS, constant(shape))
    assert (drawn >= 0).all()
    assert abs(drawn.mean() - shape) < ERROR * np.sqrt(shape)
    assert abs(drawn.var() / shape - 1) < ERROR * np.sqrt(2 + 6 / shape)
    if shape == 1.0:
        assert abs(share_below(drawn, np.log(2)) - 0.5) < ERROR
    if shape == 0.5:  # half the square of a normal
        assert abs(share_below(drawn, 0.5) - 0.682689) < ERROR


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.0, 1.0), (2.5, 0.5), (2.0, 3.0), (80.5, 20.5)])
def test_beta(a: float, b: float) -> None:
    drawn = beta(KEYS, constant(a), constant(b))
    mean, variance = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert abs(drawn.mean() - mean) < ERROR * np.sqrt(variance)
    assert abs(drawn.var() / variance - 1) < 2 * ERROR
    if (a, b) == (0.5, 0.5):  # the arcsine law
        assert abs(share_below(drawn, 0.25) - 1 / 3) < ERROR


def test_a_variate_is_of_its_key_alone() -> None:
    some = np.array([5, 1, 900, 77])
    shape = np.linspace(0.5, 40, len(KEYS))
    for alone, together in (
        (gamma(KEYS[some], shape[some]), gamma(KEYS, shape)[some]),
        (beta(KEYS[some], shape[some], shape[some][::-1].copy()), beta(KEYS, shape, reversed_at(shape, some))[some]),
        (student_t(KEYS[some], shape[some]), student_t(KEYS, shape)[some]),
    ):
        np.testing.assert_array_equal(alone, together)
    assert len(np.unique(gamma(KEYS, constant(3.0)))) > len(KEYS) - 10


def reversed_at(values: Reals, places: NDArray[np.int64]) -> Reals:
    """The values, with those at some places in the opposite order."""
    found = values.copy()
    found[places] = values[places][::-1]
    return found
