"""The Beta functions against numeric integration and exact fractions."""

from fractions import Fraction
from math import lgamma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardsample.metrics.beta import beta_cdf, spread_probability

PARAMETERS = st.floats(0.5, 100)


def integrated(x, a, b, points=20_001):
    """The CDF by Simpson's rule on p = sin²(θ t⁴), t = 0 … 1, which makes the integrand smooth at 0."""
    t = np.linspace(0, 1, points)
    end = np.arcsin(np.sqrt(x))
    angle = end * t**4
    constant = np.exp(lgamma(a + b) - lgamma(a) - lgamma(b))
    values = 8 * constant * end * np.sin(angle) ** (2 * a - 1) * np.cos(angle) ** (2 * b - 1) * t**3
    weights = np.full(points, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    return float(values @ weights) / (points - 1) / 3


@settings(deadline=None, max_examples=60)
@given(st.floats(0.001, 0.999), PARAMETERS, PARAMETERS)
def test_cdf_is_the_integral_of_the_density(x, a, b):
    assert beta_cdf(x, np.array(a), np.array(b)) == pytest.approx(integrated(x, a, b), abs=1e-8)


@given(st.integers(1, 60), st.integers(1, 60), st.fractions(0, 1, max_denominator=50))
def test_cdf_of_integers_is_a_binomial_tail(a, b, x):
    n, tail, term = a + b - 1, Fraction(0), Fraction(1)
    for j in range(n + 1):
        if j >= a:
            tail += term * x**j * (1 - x) ** (n - j)
        term = term * (n - j) / (j + 1)
    assert beta_cdf(float(x), np.array(a), np.array(b)) == pytest.approx(float(tail), rel=1e-10, abs=1e-13)


def test_cdf_ends_shapes_and_large_counts():
    a = np.full((3, 2), 0.5)
    assert (beta_cdf(0, a, a) == 0).all() and (beta_cdf(1, a, a) == 1).all()
    assert beta_cdf(0.3, np.full((3, 1), 2.0), np.full(4, 5.0)).shape == (3, 4)
    assert beta_cdf(0.5, np.empty((0, 10)), np.empty((0, 10))).shape == (0, 10)
    assert beta_cdf(0.5, np.array(1e6), np.array(1e6)) == pytest.approx(0.5, abs=1e-6)
    assert (beta_cdf(0.5, np.arange(100) + 0.5, np.arange(100) + 0.5) == 0.5).all()  # to the last bit
    assert beta_cdf(0.1, np.array(0.5), np.array(0.5)) == pytest.approx(2 / np.pi * np.arcsin(np.sqrt(0.1)))


def test_cdf_refuses_what_is_no_distribution():
    with pytest.raises(ValueError, match=r"x is 1\.5"):
        beta_cdf(1.5, np.array(1.0), np.array(1.0))
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="add the prior"):
            beta_cdf(0.5, np.array([1.0, bad]), np.array(1.0))


@given(PARAMETERS, PARAMETERS, st.integers(1, 64))
def test_spread_is_the_closed_form_in_log_gammas(a, b, size):
    def moment(first, second):
        return np.exp(lgamma(first + size) - lgamma(first) + lgamma(a + b) - lgamma(a + b + size))

    expected = 1 - moment(a, b) - moment(b, a)
    assert spread_probability(np.array(a), np.array(b), size) == pytest.approx(expected, abs=1e-9)


def test_spread_is_the_share_of_drawn_groups():
    rng = np.random.default_rng(0)
    for a, b in ((0.5, 0.5), (0.5, 8.5), (3.0, 2.0)):
        wins = rng.binomial(8, rng.beta(a, b, 100_000))
        share = ((wins > 0) & (wins < 8)).mean()
        assert spread_probability(np.array(a), np.array(b), 8) == pytest.approx(share, abs=0.01)


def test_spread_of_one_completion_is_none():
    assert spread_probability(np.array([0.5, 3.0]), np.array([0.5, 9.0]), 1) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="num_generations is 0"):
        spread_probability(np.array(1.0), np.array(1.0), 0)
