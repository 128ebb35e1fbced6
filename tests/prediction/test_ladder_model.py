import numpy as np
import pytest

from hardsample.metrics.options import PismConfig
from hardsample.metrics.pism import empty_grades, next_rollouts, verdict
from hardsample.metrics.strata import STRATA
from hardsample.prediction.ladder_model import (
    Population,
    fit_population,
    in_chunks,
    ladder_types,
    threshold_probabilities,
)

CONFIG = PismConfig()


def lossless(rates, rng, config=CONFIG):
    """Counts and stratum of a lossless search of a sample with these success rates."""
    grades = empty_grades(config)
    while asked := next_rollouts(grades, config):
        for level, realization in asked:
            grades[level][realization] = int(rng.random() < rates[level])
    wins = [sum(grade == 1 for grade in level) for level in grades]
    tries = [sum(grade is not None for grade in level) for level in grades]
    return wins, tries, verdict(grades, config).stratum


def planted(types, samples, seed):
    """Draw samples of three types: never solved, solved until half of the image is gone, always solved."""
    rng = np.random.default_rng(seed)
    rates = types.rates
    half = int(np.argmin(np.abs(rates[:, 0] - 0.86) + np.abs(rates[:, 5] - 0.43) + rates[:, 9]))
    chosen = rng.choice([0, half, int(rates.mean(1).argmax())], size=samples, p=[0.5, 0.3, 0.2])
    counts = [lossless(rates[kind], rng) for kind in chosen]
    return chosen, np.array([c[0] for c in counts]), np.array([c[1] for c in counts]), [c[2] for c in counts]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        PismConfig(num_masks=5, tau=0.5),
        PismConfig(ratios=(0.0, 0.3, 0.6), num_masks=4, tau=0.3, hard_max=0.3, easy_min=0.6),
    ],
)
def test_label_probabilities_are_those_of_full_searches(config):
    types = ladder_types(config)
    rng = np.random.default_rng(0)
    for kind in rng.choice(len(types.rates), 6, replace=False):
        labels = [lossless(types.rates[kind], rng, config)[2] for _ in range(1500)]
        shares = [labels.count(name) / len(labels) for name in STRATA]
        np.testing.assert_allclose(shares, types.labels[kind], atol=0.05)


def test_thresholds_are_a_distribution():
    types = ladder_types(CONFIG)
    np.testing.assert_allclose(types.thresholds.sum(1), 1)
    np.testing.assert_allclose(types.labels.sum(1), 1)
    assert (types.rates[:, 0] < 1).all() and (np.diff(types.rates, axis=1) <= 0).all()
    # a level that always passes, then one that never does: λ* is the second
    np.testing.assert_allclose(threshold_probabilities(np.array([[1.0, 0.0]]), 10, 0.1), [[0, 1, 0]])


def test_expectation_maximisation_finds_the_population():
    types = ladder_types(CONFIG)
    chosen, wins, tries, _ = planted(types, 1500, 1)
    population = fit_population(types, wins, tries)
    kinds, sizes = np.unique(chosen, return_counts=True)
    expected = sizes @ types.labels[kinds] / len(chosen)
    np.testing.assert_allclose(population.weights @ types.labels, expected, atol=0.03)
    rates = sizes @ types.rates[kinds] / len(chosen)
    np.testing.assert_allclose(population.weights @ types.rates, rates, atol=0.04)
    assert not np.allclose(types.prior @ types.labels, expected, atol=0.03)


def test_stated_probabilities_are_those_of_an_independent_search():
    types = ladder_types(CONFIG)
    chosen, wins, tries, _ = planted(types, 1500, 2)
    rng = np.random.default_rng(3)
    again = [lossless(types.rates[kind], rng)[2] for kind in chosen]
    population = fit_population(types, wins, tries)
    labels = population.posterior(wins, tries) @ types.labels
    right = np.array([STRATA[best] == name for best, name in zip(labels.argmax(1), again, strict=True)])
    stated = labels.max(1)
    order = np.argsort(stated)
    error = sum(abs(stated[part].mean() - right[part].mean()) * len(part) for part in np.array_split(order, 10))
    assert error / len(order) < 0.05


def test_scores_tell_of_samples_without_rollouts_and_noise_tells_nothing():
    types = ladder_types(CONFIG)
    chosen, wins, tries, _ = planted(types, 1200, 4)
    rng = np.random.default_rng(5)
    unmeasured = np.arange(len(wins)) >= 600
    wins[unmeasured] = tries[unmeasured] = 0
    rates = types.rates[chosen]
    truth = types.labels[chosen]
    telling = np.stack([rates[:, 0], rates.mean(1)], axis=1) + 0.1 * rng.normal(size=(len(wins), 2))

    def error(scores):
        population = fit_population(types, wins, tries, scores)
        labels = population.posterior(wins, tries, scores)[unmeasured] @ types.labels
        return np.abs(labels - truth[unmeasured]).sum(1).mean()

    without = error(None)
    assert error(telling) < 0.4 * without
    noise = rng.normal(size=(len(wins), 2))
    assert abs(error(noise) - without) < 0.05 * without


def test_missing_scores_and_chunks_change_nothing():
    types = ladder_types(CONFIG)
    _, wins, tries, _ = planted(types, 200, 6)
    scores = np.random.default_rng(0).normal(size=(200, 2))
    scores[::2] = np.nan
    population = fit_population(types, wins, tries, scores)
    plain = Population(types, population.weights)
    posterior = population.posterior(wins, tries, scores)
    np.testing.assert_allclose(posterior[::2], plain.posterior(wins, tries)[::2], rtol=1e-4, atol=1e-6)
    (joined,) = in_chunks(200, lambda part: (population.posterior(wins[part], tries[part], scores[part]),), size=37)
    np.testing.assert_allclose(joined, posterior, rtol=1e-4, atol=1e-7)
