import numpy as np
import pytest

from hardsample.metrics.options import PismConfig
from hardsample.metrics.strata import STRATA
from hardsample.prediction.adaptive import AdaptiveSearch
from hardsample.prediction.ladder_model import ladder_types

CONFIG = PismConfig(search="adaptive")
TYPES = ladder_types(CONFIG)


def pool(samples, seed=0):
    """Success rates of a pool: half never solved, the others of all kinds."""
    rng = np.random.default_rng(seed)
    weights = np.full(len(TYPES.rates), 0.5 / (len(TYPES.rates) - 1))
    weights[0] = 0.5
    return TYPES.rates[rng.choice(len(TYPES.rates), size=samples, p=weights)]


def make(samples, config=CONFIG, budget=None, has_image=None):
    ids = [f"q{row}" for row in range(samples)]
    return AdaptiveSearch(config, ids, has_image or [True] * samples, 0, budget)


def play(search, rates, rounds=10_000):
    """Grade the rollouts of the search; each grade is a function of row, level and realization."""
    for number in range(rounds):
        planned = search.plan()
        if not len(planned.rows):
            return number
        for row, level in zip(planned.rows, planned.levels, strict=True):
            draw = np.random.default_rng((row, level, search.attempts[row, level])).random()
            wins, tries = np.zeros(len(rates[row]), int), np.zeros(len(rates[row]), int)
            wins[level], tries[level] = draw < rates[row, level], 1
            search.add(row, wins, tries)
    return rounds


def labels_of_full_searches(rates, seed):
    passing = np.random.default_rng(seed).binomial(10, rates) >= 1
    first = np.where(passing.all(1), 10, (~passing).argmax(1))
    return np.array(["unsolved" if f == 0 else "hard" if f <= 4 else "medium" if f < 7 else "easy" for f in first])


def test_it_stops_early_and_its_probabilities_hold():
    rates = pool(600)
    search = make(600)
    play(search, rates)
    estimate = search.estimate()
    right = np.mean([np.array(estimate.strata) == labels_of_full_searches(rates, seed) for seed in range(5)], axis=0)
    pairs = [labels_of_full_searches(rates, seed) == labels_of_full_searches(rates, seed + 9) for seed in range(5)]
    assert search.spent < 14 * 600
    assert right.mean() > np.mean(pairs) - 0.02
    stated = estimate.labels.max(1)
    parts = np.array_split(np.argsort(stated), 8)
    assert sum(abs(stated[p].mean() - right[p].mean()) * len(p) for p in parts) / len(stated) < 0.06
    assert (search.attempts <= CONFIG.num_masks).all()


def test_closed_samples_get_nothing_more():
    rates = pool(200)
    search = make(200)
    for _ in range(6):
        play(search, rates, rounds=1)
    before = search.estimate().labels.max(1)
    planned = search.plan()
    assert (before[planned.rows] < CONFIG.confidence).all()
    assert len(planned.rows) == planned.open < 200
    assert len(set(planned.rows)) == len(planned.rows)


def test_a_higher_confidence_asks_more():
    rates, spent = pool(150), []
    for confidence in (0.6, 0.95):
        search = make(150, PismConfig(search="adaptive", confidence=confidence))
        play(search, rates)
        spent.append(search.spent)
    assert spent[0] < 0.8 * spent[1]


@pytest.mark.parametrize("budget", [1, 37, 150, 601])
def test_a_budget_is_never_exceeded(budget):
    rates = pool(150)
    search = make(150, budget=budget)
    play(search, rates)
    assert search.spent == budget
    estimate = search.estimate()
    np.testing.assert_allclose(estimate.labels.sum(1), 1, rtol=1e-4)
    if budget < 150:  # what has no rollouts is told by the others alone
        untouched = search.attempts.sum(1) == 0
        assert untouched.any()
        assert np.ptp(estimate.labels[untouched], axis=0).max() < 1e-6


def test_a_small_budget_begins_with_references_and_a_large_one_with_all():
    few, many = make(120, budget=192).plan(), make(120, budget=240).plan()
    assert len(few.rows) == 16 and set(few.levels) == {0, 5} and len(set(few.rows)) == 8
    assert len(many.rows) == 120 and set(many.levels) == {0}


def test_a_plan_is_a_function_of_the_counts():
    rates = pool(120)
    first, second = make(120), make(120)
    play(first, rates, rounds=4)
    second.successes[:], second.attempts[:] = first.successes, first.attempts
    one, other = first.plan(), second.plan()
    assert (one.rows == other.rows).all() and (one.levels == other.levels).all()


def test_features_tell_of_samples_without_rollouts_and_noise_changes_nothing():
    rates = pool(500)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(500, 40)).astype(np.float16)
    told = np.concatenate([rates[:, ::3] + 0.1 * rng.normal(size=rates[:, ::3].shape), noise[:, :10]], axis=1)
    told[7] = np.nan
    error = {}
    for name, features in (("none", None), ("noise", noise), ("telling", told.astype(np.float16))):
        search = make(500, budget=400)
        if features is not None:
            search.use_features(features, [features.shape[1]])
        play(search, rates)
        untouched = search.attempts.sum(1) == 0
        truth = [TYPES.labels[np.abs(TYPES.rates - row).sum(1).argmin()] for row in rates]
        labels = search.estimate().labels
        assert np.isfinite(labels).all()
        error[name] = np.abs(labels - truth)[untouched].sum(1).mean()
    assert error["telling"] < 0.7 * error["none"]
    assert error["noise"] == pytest.approx(error["none"], rel=0.05)


def test_samples_without_an_image_have_one_level():
    has_image = [row % 2 == 0 for row in range(20)]
    search = make(20, has_image=has_image)
    play(search, pool(20))
    blank = search.attempts[1::2]
    assert (blank[:, 0] == CONFIG.num_masks).all() and not blank[:, 1:].any()


def test_dropped_samples_are_left_alone():
    search = make(30)
    search.drop(4)
    play(search, pool(30))
    assert not search.attempts[4].any()


def test_other_bounds_and_tau_need_no_rollouts():
    rates = pool(200)
    search = make(200)
    play(search, rates)
    strict = search.estimate(PismConfig(search="adaptive", tau=1.0)).strata
    assert strict.count("unsolved") > search.estimate().strata.count("unsolved")
    wide = search.estimate(PismConfig(search="adaptive", hard_max=0.8, easy_min=0.9))
    assert wide.labels[:, STRATA.index("medium")].max() < 1e-6
