"""The predictor knows when its features say nothing, and when they do."""

import numpy as np
import pytest

from hardsample.prediction.predictor import fit, measure

SAMPLES, ATTEMPTS = 150, 8


@pytest.fixture(scope="module")
def cases():
    """Of ten draws: features, of which the first tells the rate, and counts."""
    drawn = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        features = rng.normal(size=(SAMPLES, 256)).astype(np.float16)
        rates = 1 / (1 + np.exp(1.5 - 2 * features[:, 0].astype(float)))
        drawn.append((features, rng.binomial(ATTEMPTS, rates), np.full(SAMPLES, ATTEMPTS)))
    return drawn


def test_noise_falls_back_to_the_base_rate(cases):
    skills = []
    for features, wins, tries in cases:
        predictor = fit(features[:, 1:], wins, tries, (23, 116, 116))
        skills.append(predictor.skill)
        if not predictor.skill.useful:
            assert len(set(predictor.predict(features[:, 1:]).mean)) == 1
    assert sum(skill.useful for skill in skills) <= 1, (
        "leave-one-out scores of noise lean away from what they leave out"
    )


def test_what_tells_is_found_and_holds_on_new_samples(cases):
    features, wins, tries = cases[0]
    predictor = fit(features, wins, tries, (1, 23, 116, 116))
    assert predictor.skill.useful and predictor.skill.pearson > 0.6
    others, wins, tries = cases[1]
    skill = measure(predictor.predict(others), wins, tries)
    assert skill.pearson > 0.6 and skill.calibration_error < 0.1 and skill.gain > 0
