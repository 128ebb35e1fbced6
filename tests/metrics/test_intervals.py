"""Intervals against known values, and their coverage against a simulation."""

from math import comb, sqrt

import numpy as np
import pytest

from hardsample.metrics.intervals import (
    accuracy_interval,
    holm,
    mean_interval,
    normal_quantile,
    p_value,
    rank_correlation,
    t_quantile,
)

DRAWS = {20: 20_000, 50: 20_000, 400: 5_000}
"""By the number of samples; of many samples hardly two draws have the same counts, and each costs an interval."""
SLACK = 3


def test_known_quantiles():
    table = {1: 12.7062, 2: 4.3027, 4: 2.7764, 9: 2.2622, 30: 2.0423, 399: 1.9659}
    for degrees, value in table.items():
        assert t_quantile(degrees) == pytest.approx(value, abs=5e-5)
    assert normal_quantile() == pytest.approx(1.959964, abs=1e-6)
    assert t_quantile(4, 0.99) == pytest.approx(4.6041, abs=5e-5)


def test_wilson_by_hand():
    found = accuracy_interval([1] * 8 + [0] * 2, [1] * 10)
    z = 1.959963984540054
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z / (1 + z * z / 10) * sqrt(0.16 / 10 + z * z / 400)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert (found.value, found.samples) == (0.8, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)  # as published tables have it


def test_rollouts_that_are_all_alike_count_as_one():
    once = accuracy_interval([1] * 60 + [0] * 140, [1] * 200)
    ten = accuracy_interval([10] * 60 + [0] * 140, [10] * 200)
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high), abs=2e-3)
    spread = accuracy_interval([3] * 200, [10] * 200)  # all samples alike: rollouts are as good as samples
    assert spread.high - spread.low < 0.5 * (once.high - once.low)


def test_the_ends():
    none, every = accuracy_interval([0] * 20, [1] * 20), accuracy_interval([10] * 20, [10] * 20)
    assert none.low == 0 and none.high == pytest.approx(0.1611, abs=1e-4)
    assert every.high == 1 and every.low > 0.8
    assert accuracy_interval([1], [1]).low > 0.2 and accuracy_interval([3], [10]).low >= 0


@pytest.mark.parametrize("counts", [([], []), ([1], [0]), ([2], [1]), ([-1], [1]), ([1, 1], [1])])
def test_impossible_counts(counts):
    with pytest.raises(ValueError, match="sample"):
        accuracy_interval(*counts)


@pytest.mark.parametrize("n", [20, 50, 400])
@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_coverage_with_one_rollout_exactly(n, p):
    covered = 0.0
    for wins in range(n + 1):
        found = accuracy_interval([1] * wins + [0] * (n - wins), [1] * n)
        covered += comb(n, wins) * p**wins * (1 - p) ** (n - wins) * (found.low <= p <= found.high)
    assert covered >= 0.92
    assert n < 400 or covered <= 0.98


@pytest.mark.parametrize("n", [20, 50, 400])
@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 1.0])
def test_coverage_with_ten_rollouts(n, p, correlation):
    rng = np.random.default_rng([n, int(1000 * p), int(10 * correlation)])
    shape = (DRAWS[n], n)
    if correlation == 0:
        rates = np.full(shape, p)
    elif correlation == 1:
        rates = (rng.random(shape) < p).astype(float)
    else:
        total = (1 - correlation) / correlation
        rates = rng.beta(p * total, (1 - p) * total, shape)
    wins = rng.binomial(10, rates)
    # the interval knows how many samples have how many right rollouts, not which ones
    cells = 11 * np.arange(len(wins))[:, None] + wins
    counts = np.bincount(cells.ravel(), minlength=11 * len(wins)).reshape(-1, 11)
    covered = 0
    for row, times in zip(*np.unique(counts, axis=0, return_counts=True), strict=True):
        interval = accuracy_interval(np.repeat(np.arange(11), row), [10] * n)
        covered += times * (interval.low <= p <= interval.high)
    share = covered / len(wins)
    slack = SLACK * sqrt(0.05 * 0.95 / len(wins))
    assert share >= 0.92 - slack, share
    assert n < 400 or share <= 0.98 + slack, share


def test_mean_interval_by_hand():
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451 * sqrt(2.5) / sqrt(5)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-6)
    assert mean_interval([2.0]).high == float("inf")
    with pytest.raises(ValueError, match="no value"):
        mean_interval([])


def test_p_values():
    assert p_value([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(0.013236, abs=1e-5)  # t = 4.2426, 4 degrees
    assert p_value([1.0, -1.0]) == pytest.approx(1.0)
    assert p_value([1.0, 1.0]) == 0.0 and p_value([0.0, 0.0]) == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_rank_correlation():
    found = rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert found.value == pytest.approx(0.8)  # 1 − 6 Σd² / n(n² − 1), Σd² = 4
    half = 1.959964 * np.sqrt((1 + 0.32) / 2)
    assert (found.low, found.high) == pytest.approx((np.tanh(np.arctanh(0.8) - half), np.tanh(np.arctanh(0.8) + half)))
    ties = rank_correlation([1, 1, 2, 2], [1, 2, 3, 4])
    assert ties.value == pytest.approx(np.corrcoef([1.5, 1.5, 3.5, 3.5], [1, 2, 3, 4])[0, 1])
    assert rank_correlation(range(5), [-one for one in range(5)]).value == pytest.approx(-1)
    assert np.isnan(rank_correlation([1] * 5, range(5)).value)
    with pytest.raises(ValueError, match="at least four"):
        rank_correlation([1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_interval_of_a_rank_correlation_covers(rho):
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's, of a normal pair with this correlation
    hits, draws = 0, 2_000
    for _ in range(draws):
        one, noise = rng.standard_normal((2, 60))
        found = rank_correlation(one, rho * one + np.sqrt(1 - rho**2) * noise)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / draws <= 0.97
