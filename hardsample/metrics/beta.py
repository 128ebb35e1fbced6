"""The Beta distribution on NumPy arrays: its CDF, and whether a group of rollouts will have both outcomes.

NumPy has neither a log-gamma nor an incomplete beta function, and SciPy is no dependency.
"""

from math import lgamma

import numpy as np
from jaxtyping import Float

PRIOR = 0.5
"""Both parameters of the prior Beta(½, ½) of a success rate (Jeffreys' prior)."""

_TINY = 1e-300
_EPSILON = 1e-15
_MAX_TERMS = 100_000
_log_gamma = np.vectorize(lgamma, otypes=[np.float64])


def beta_cdf(
    x: float, alpha: Float[np.ndarray, "..."], beta: Float[np.ndarray, "..."], max_terms: int = _MAX_TERMS
) -> Float[np.ndarray, "..."]:
    """Gives the probability that a success rate is at most x, for p ~ Beta(α, β).

        I_x(α, β) = x^α (1 − x)^β / (α B(α, β)) · 1 / (1 + d₁ / (1 + d₂ / (1 + …)))

    the regularized incomplete beta function by its continued fraction (Lentz's method), taken as
    1 − I_{1−x}(β, α) where x > (α + 1) / (α + β + 2), so that it converges fast.

    Args:
        x: bound, 0 … 1.
        alpha: α above 0, any shape.
        beta: β above 0, of a shape that broadcasts with α's.
        max_terms: pairs of terms after which to give up; some √max(α, β) are needed.

    Returns:
        Probabilities, float64, of the broadcast shape.

    Raises:
        ValueError: x is out of range, or a parameter is not above 0 and finite.
        ArithmeticError: the fraction did not converge.
    """
    if not 0 <= x <= 1:
        raise ValueError(f"x is {x}, must be a probability from 0 to 1: give a rate such as 0.1")
    a, b = np.broadcast_arrays(np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64))
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise ValueError("a parameter of Beta is not above 0 and finite: add the prior to the counts")
    if x in (0, 1) or not a.size:
        return np.full(a.shape, float(x))
    swap = x > (a + 1) / (a + b + 2)
    first, second = np.where(swap, b, a), np.where(swap, a, b)
    z = np.where(swap, 1 - x, x)
    log_front = first * np.log(z) + second * np.log1p(-z) - np.log(first)
    log_front += _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b)
    found = np.exp(log_front) * _continued_fraction(first, second, z, max_terms)
    return np.clip(np.where(swap, 1 - found, found), 0.0, 1.0)


def _continued_fraction(
    a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."], z: Float[np.ndarray, "..."], max_terms: int
) -> Float[np.ndarray, "..."]:
    """1 / (1 + d₁ / (1 + …)), with d₂ₘ = m(b−m)z / ((a+2m−1)(a+2m)), d₂ₘ₊₁ = −(a+m)(a+b+m)z / ((a+2m)(a+2m+1))."""
    c = np.ones_like(a)
    d = 1 / _away_from_zero(1 - (a + b) * z / (a + 1))
    value = d
    for m in range(1, max_terms + 1):
        for term in (
            m * (b - m) * z / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * z / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value = value * (c * d)
        if (np.abs(c * d - 1) < _EPSILON * 10).all():
            return value
    raise ArithmeticError(
        f"the incomplete beta function did not converge in {max_terms} terms for counts up to {np.max(a + b):.3g}: "
        "use a shorter half-life"
    )


def _away_from_zero(value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.where(np.abs(value) < _TINY, _TINY, value)


def spread_probability(
    alpha: Float[np.ndarray, "..."], beta: Float[np.ndarray, "..."], num_generations: int
) -> Float[np.ndarray, "..."]:
    """Gives the probability that a group has both successes and failures, for p ~ Beta(α, β).

        P = 1 − E[p^G] − E[(1−p)^G],   E[p^G] = B(α+G, β) / B(α, β) = Π_{i<G} (α+i) / (α+β+i)

    The product is the quotient of gamma functions written out: G multiplications cost less than log-gammas, and
    lose nothing where their difference would.

    Args:
        alpha: α above 0, any shape.
        beta: β above 0, same shape.
        num_generations: G, completions of a group, at least 1.

    Returns:
        Probabilities, float64, of the same shape; 0 for G = 1.

    Raises:
        ValueError: G is below 1.
    """
    if num_generations < 1:
        raise ValueError(f"num_generations is {num_generations}, must be at least 1: choose one, such as 8")
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    total = a + b
    solved, failed = np.ones_like(total), np.ones_like(total)
    for i in range(num_generations):
        share = 1 / (total + i)
        solved *= (a + i) * share
        failed *= (b + i) * share
    return np.clip(1 - solved - failed, 0.0, 1.0)
