"""The Beta distribution on NumPy arrays: its CDF, and whether a group of rollouts will have both outcomes."""

import numpy as np
from jaxtyping import Float

PRIOR = 0.5
"""Both parameters of the prior Beta(½, ½) of a success rate (Jeffreys' prior)."""


def beta_cdf(x: float, alpha: Float[np.ndarray, "..."], beta: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return the probability that a success rate is at most x, for p ~ Beta(α, β): I_x(α, β), by SciPy.

    Args:
        x: bound, 0 … 1.
        alpha: α above 0, any shape.
        beta: β above 0, of a shape that broadcasts with α's.

    Returns:
        Probabilities, float64, of the broadcast shape.

    Raises:
        ValueError: x is out of range, or a parameter is not above 0 and finite.
    """
    from scipy import special  # imported where it is used: it takes longer than the rest of this room

    if not 0 <= x <= 1:
        raise ValueError(f"x is {x}, must be a probability from 0 to 1: give a rate such as 0.1")
    a, b = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise ValueError("a parameter of Beta is not above 0 and finite: add the prior to the counts")
    # Exactly ½ where symmetry says so: λ* moves on P ≤ ½, which must not hang on the last bit.
    return np.where((x == 0.5) & (a == b), 0.5, special.betainc(a, b, x))


def spread_probability(
    alpha: Float[np.ndarray, "..."], beta: Float[np.ndarray, "..."], num_generations: int
) -> Float[np.ndarray, "..."]:
    """Return the probability that a group has both successes and failures, for p ~ Beta(α, β).

        P = 1 − E[p^G] − E[(1−p)^G],   E[p^G] = B(α+G, β) / B(α, β) = Π_{i<G} (α+i) / (α+β+i)

    SciPy's betabinom has this as 1 − pmf(0) − pmf(G), by log-gammas. The product is the quotient of gamma functions
    written out: G multiplications cost less, and lose nothing where the difference of log-gammas would. It runs over
    all samples of a dataset at every step of the adaptive policy.

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
