"""The flat-curve signature on simulated scores."""

import numpy as np
import pytest

from hardsample.metrics.signatures import MIN_SOLVED, flat_curve, moves

FLAT = 10 * [1.0]
FALLING = np.linspace(1, 0, 10)


def scores(shape, number=200, seed=0, low=0.2, high=1.0):
    """Return an exhaustive table: samples of accuracy low … high at λ = 0, times a shape over Λ."""
    random = np.random.default_rng(seed)
    successes = random.binomial(10, random.uniform(low, high, (number, 1)) * np.asarray(shape)).tolist()
    strata = ["unsolved" if row[0] == 0 else "easy" for row in successes]
    return {
        "strata": strata,
        "failure_thresholds": [None] * number,
        "successes": successes,
        "attempts": [[10] * 10] * number,
        "search": "exhaustive",
    }


@pytest.mark.parametrize("seed", range(10))
def test_flat_exhaustive_curves_are_found(seed):
    table = scores(FLAT, seed=seed)
    sentence = flat_curve(**table)
    assert sentence is not None
    assert sentence.startswith("Flat curve: for ")
    assert f"of {sum(s != 'unsolved' for s in table['strata'])} solved samples" in sentence


@pytest.mark.parametrize("seed", range(10))
def test_falling_exhaustive_curves_are_not(seed):
    assert flat_curve(**scores(FALLING, seed=seed)) is None
    assert flat_curve(**scores([1] * 5 + [0.3] * 5, seed=seed, low=0.5)) is None


def test_a_mixture_is_flat_from_nine_tenths_on():
    flat, falling = scores([1] * 10, low=1, high=1), scores(FALLING, low=1, high=1)
    for share, detected in ((179, False), (180, True), (200, True)):
        mixed = flat | {"successes": flat["successes"][:share] + falling["successes"][share:]}
        assert (flat_curve(**mixed) is not None) == detected


def test_unsolved_samples_and_records_without_an_image_do_not_count():
    table = scores(FALLING, low=1, high=1)
    table["strata"] = ["unsolved"] * 100 + [None] * 100
    assert flat_curve(**table) is None
    table["strata"][:30] = ["hard"] * 30
    assert flat_curve(**table) is None
    table["successes"][:30] = [[10] * 10] * 30
    assert "30 of 30 solved samples" in flat_curve(**table)


def lossless(thresholds):
    """Return a lossless table with these failure thresholds, all solved."""
    number = len(thresholds)
    return flat_curve(["hard"] * number, thresholds, [[1]] * number, [[1]] * number, "lossless")


def test_lossless_scores_with_one_threshold_are_flat():
    assert "the failure threshold is the same, 0.3" in lossless([0.3] * 95 + [0.4] * 5)
    assert "no mask ratio fails" in lossless([None] * 90 + [0.4] * 10)
    assert "for 90 of 100 solved" in lossless([None] * 90 + [0.4] * 10)
    assert lossless([None] * 89 + [0.4] * 11) is None
    assert lossless([0.1, 0.2, 0.3, 0.4, None] * 20) is None


def test_too_few_solved_samples_say_nothing():
    assert lossless([None] * (MIN_SOLVED - 1)) is None
    assert lossless([None] * MIN_SOLVED) is not None
    assert flat_curve([], [], [], [], "exhaustive") is None


def test_moves_is_a_chi_square_test_at_five_per_cent():
    """The statistic against tabulated quantiles decides alike, but within 2 % of the approximated quantile."""
    random = np.random.default_rng(1)
    for levels, quantile in ((2, 3.841459), (5, 9.487729), (10, 16.918978), (20, 30.143527)):
        for successes in random.binomial(
            10, random.uniform(0.1, 0.9, (300, 1)) * random.uniform(0.5, 1, (300, levels))
        ):
            p = successes.mean() / 10
            if p in (0, 1):
                continue
            statistic = ((successes - 10 * p) ** 2).sum() / (10 * p * (1 - p))
            if abs(statistic / quantile - 1) > 0.02:
                assert moves(successes.tolist(), [10] * levels) == (statistic > quantile)


def test_moves_keeps_its_level_and_sees_a_fall():
    random = np.random.default_rng(2)
    rates = {
        p: np.mean([moves(row.tolist(), [10] * 10) for row in random.binomial(10, p, (1000, 10))])
        for p in (0.3, 0.5, 0.9)
    }
    assert all(rate < 0.09 for rate in rates.values())
    assert np.mean([moves(row.tolist(), [10] * 10) for row in random.binomial(10, FALLING, (200, 10))]) > 0.99


def test_moves_without_spread_or_levels():
    assert not moves([10] * 10, [10] * 10)
    assert not moves([0] * 10, [10] * 10)
    assert not moves([5], [10])
    assert not moves([5, 0], [10, 0])
    assert moves([10, 0], [10, 10])
