"""Confidence intervals of accuracies and of their differences. Pure.

The unit is the sample: rollouts of one sample are not independent, so several of them count for less than as many
samples do. How much less is told from the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def accuracy_interval(successes: Sequence[int], attempts: Sequence[int], level: float = LEVEL) -> Interval:
    """Return the accuracy, the mean over samples of each one's share of right rollouts, and its interval.

    Wilson's score interval with the effective number of rollouts for the number of rollouts:

        m = p̂(1 − p̂) / v,   v = s² / n,   c = (p̂ + t²/2m) / (1 + t²/m),
        c ± t / (1 + t²/m) · √(p̂(1 − p̂)/m + t²/4m²)

    with s² the variance of the n samples' shares. With one rollout a sample that is m = n, t = z: plain Wilson. With
    several, m lies between n (a sample's rollouts are all alike) and their total (they are independent); where all are
    right or all wrong the data do not tell, and m = n. t is then Student's, of min(n − 1, 2k) degrees of freedom with k
    the samples that have an outcome of the rarer kind: where few have one, s² is known badly (the 2 comes from a
    simulation). This interval is ours: those of SciPy and statsmodels take all rollouts for independent.

    Args:
        successes: right rollouts of each sample.
        attempts: rollouts of each sample, at least 1.
        level: of confidence, above 0 and below 1.

    Returns:
        The interval, within 0 … 1.

    Raises:
        ValueError: there is no sample, or counts are impossible.
    """
    wins, tries = np.asarray(successes, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    _check(wins, tries, level)
    count = len(wins)
    shares = wins / tries
    value = float(shares.mean())
    single = bool((tries == 1).all())
    effective = float(count)
    spread = value * (1 - value)
    if not single and count > 1 and spread > 0:
        variance = float(shares.var(ddof=1)) / count
        effective = min(max(spread / variance, count) if variance else np.inf, float(tries.sum()))
    quantile = normal_quantile(level)
    if not single and count > 1:
        rare = int((shares > 0).sum() if value < 0.5 else (shares < 1).sum())
        quantile = t_quantile(min(count - 1, 2 * rare or count), level)
    ratio = quantile**2 / effective
    centre = (value + ratio / 2) / (1 + ratio)
    half = quantile / (1 + ratio) * sqrt(spread / effective + ratio / (4 * effective))
    low = 0.0 if value == 0 else max(0.0, centre - half)
    high = 1.0 if value == 1 else min(1.0, centre + half)
    return Interval(value, low, high, count)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return a mean over samples or seeds and its interval by Student's t with n − 1 degrees of freedom.

    Paired differences are such values: one for each sample that both sides have.

    Args:
        values: at least one; one alone has an interval of no bounds.
        level: of confidence, above 0 and below 1.

    Raises:
        ValueError: there is no value.
    """
    samples = np.asarray(values, dtype=np.float64)
    if not len(samples):
        raise ValueError("there is no value, must be at least one: give one for each sample or seed")
    mean = float(samples.mean())
    if len(samples) == 1:
        return Interval(mean, float("-inf"), float("inf"), 1)
    half = t_quantile(len(samples) - 1, level) * float(samples.std(ddof=1)) / sqrt(len(samples))
    return Interval(mean, mean - half, mean + half, len(samples))


@lru_cache
def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """Return t with P(|T| ≤ t) = level, for Student's T.

    Args:
        degrees: of freedom, at least 1.
        level: above 0 and below 1.
    """
    from scipy import special  # imported where it is used: it takes longer than the rest of this room

    return float(special.stdtrit(degrees, (1 + level) / 2))


def normal_quantile(level: float = LEVEL) -> float:
    """Return z with P(|Z| ≤ z) = level, for a standard normal Z."""
    return NormalDist().inv_cdf((1 + level) / 2)


def p_value(values: Sequence[float]) -> float:
    """Return the two-sided p-value of a mean of 0, by Student's t.

    Args:
        values: paired differences, at least two.
    """
    from scipy import special

    samples = np.asarray(values, dtype=np.float64)
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} values, must be at least two: a spread is needed")
    mean, error = float(samples.mean()), float(samples.std(ddof=1)) / sqrt(len(samples))
    if not error:  # where scipy.stats.ttest_1samp gives no number, and warns
        return 0.0 if mean else 1.0
    return 2 * float(special.stdtr(len(samples) - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number, by Holm: p₍ᵢ₎ ← max over j ≤ i of min(1, (n − j + 1) p₍ⱼ₎).

    SciPy has no Holm, and statsmodels would be a large dependency for five lines.

    Args:
        p_values: of n comparisons.

    Returns:
        Corrected ones, in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def rank_correlation(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval:
    """Return Spearman's rank correlation ρ, by SciPy, and its interval by Fisher's transformation.

        tanh( artanh(ρ) ± z · √((1 + ρ²/2) / (n − 3)) )

    with Bonett and Wright's standard error, which holds for ranks; SciPy has no interval of ρ. Ties have their mean
    rank.

    Args:
        first: values of one quantity, at least four.
        second: of the other, in the same order.
        level: of confidence, above 0 and below 1.

    Returns:
        The correlation; not a number where one side does not vary.

    Raises:
        ValueError: there are fewer than four pairs, or the lists differ in length.
    """
    count = len(first)
    if count < 4 or len(second) != count:
        raise ValueError(f"{count} and {len(second)} values, must be pairs, at least four: give more samples")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return Interval(float("nan"), -1.0, 1.0, count)
    from scipy import stats

    value = float(stats.spearmanr(first, second).statistic)
    if abs(value) >= 1 - 1e-12:
        return Interval(value, value, value, count)
    half = normal_quantile(level) * sqrt((1 + value**2 / 2) / (count - 3))
    return Interval(value, float(np.tanh(np.arctanh(value) - half)), float(np.tanh(np.arctanh(value) + half)), count)


def _check(wins: np.ndarray, tries: np.ndarray, level: float) -> None:
    if not len(wins) or len(wins) != len(tries):
        raise ValueError(f"{len(wins)} successes for {len(tries)} attempts, must be one pair a sample, at least one")
    if (tries < 1).any() or (wins < 0).any() or (wins > tries).any():
        raise ValueError("a sample has no rollout, or more right ones than rollouts: leave it out, or fix the counts")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, must be above 0 and below 1: choose one, such as 0.95")
