"""Features as the prior of the evidence: what is learnt from some groups is said of samples that were never met."""

import numpy as np
import pytest

from hardsample.metrics.beta import PRIOR
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.difficulty import Difficulty, Shape
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.policies import PolicyConfig
from hardsample.trainer.selection.prior import FEWEST_MEASURED, FeaturePrior, FeatureReading
from hardsample.trainer.selection.states import StateError
from hardsample.trainer.selection.stream import PromptStream

SIZE, PROMPTS, GENERATIONS = 600, 8, 8


def pool(seed=0, size=SIZE):
    """Features, and success rates of which a third are mixed; the rest are never solved."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((size, 6)).astype(np.float16)
    rates = np.where(features[:, 0] > 0.4, 1 / (1 + np.exp(-features[:, 1].astype(float))), 0.0)
    return features, rates


def make(features=None, seed=0, size=SIZE, **policy):
    evidence = Evidence(size, EvidenceConfig())
    if features is not None:
        evidence.prior = FeaturePrior(features, (2, features.shape[1] - 2), "f")
    config = PolicyConfig(**({"policy": "signal"} | policy))
    stream = PromptStream(size, seed, config.exploration)
    return Difficulty(evidence, stream, config, DifficultyOptions(), Shape(GENERATIONS, PROMPTS, seed))


def train(difficulty, rates, steps, first=0):
    """Roll out groups at the given rates; share of groups with both outcomes in each step."""
    spread = []
    for step in range(first, steps):
        rows = difficulty.next_prompts(step, 100).rows
        rng = np.random.default_rng((7, step))
        rewards = (rng.random((len(rows), GENERATIONS)) < rates[rows][:, None]).astype(float)
        spread.append(difficulty.observe(rewards, step).spread.mean())
    return np.array(spread)


def test_without_features_every_prior_is_jeffreys():
    evidence = Evidence(4)
    assert evidence.posterior(np.arange(4), 0)[0].tolist() == [PRIOR] * 4


def test_samples_that_were_never_met_get_the_prior_of_their_features():
    features, rates = pool()
    difficulty = make(features)
    train(difficulty, rates, 30)
    unmet = np.flatnonzero(difficulty.evidence.last_step < 0)
    alpha, beta = difficulty.evidence.posterior(unmet, 30)
    assert len(unmet) > 300
    assert np.corrcoef(alpha / (alpha + beta), rates[unmet])[0, 1] > 0.7


@pytest.mark.parametrize("estimate", ["thompson", "mean"])
def test_features_raise_the_share_of_groups_with_signal_where_samples_are_met_once(estimate):
    features, rates = pool()
    options = {"signal_estimate": estimate, "signal_sharpness": 8.0 if estimate == "mean" else 1.0}
    seen = train(make(features, **options), rates, 40)[10:].mean()
    blind = train(make(None, **options), rates, 40)[10:].mean()
    assert seen > blind + 0.2


def test_features_that_say_nothing_change_nothing_but_the_base_rate():
    features, rates = pool()
    difficulty = make(np.random.default_rng(5).permutation(features))
    train(difficulty, rates, 25)
    prior = difficulty.evidence.prior
    assert not prior.predictor.skill.useful
    alpha, beta = prior.of(np.arange(SIZE))
    assert np.ptp(alpha) == 0
    assert np.ptp(beta) == 0


def test_a_samples_own_groups_take_no_part_in_its_prior():
    features, rates = pool()
    difficulty = make(features)
    train(difficulty, rates, 20)
    evidence = difficulty.evidence
    row = int(np.flatnonzero(evidence.last_step >= 0)[0])
    means = []
    for wins in (0, GENERATIONS):  # only its own counts change
        evidence.successes[row], evidence.failures[row] = wins, GENERATIONS - wins
        evidence.refit_prior(20)
        alpha, beta = (float(value[0]) for value in evidence.prior.of(np.array([row])))
        means.append(alpha / (alpha + beta))
    assert abs(means[1] - means[0]) < 0.02


def test_a_resumed_training_draws_what_an_undisturbed_one_does():
    features, rates = pool()
    for options in ({}, {"signal_estimate": "mean", "signal_sharpness": 3.0}):
        whole, first = make(features, **options), make(features, **options)
        train(whole, rates, 12)
        train(first, rates, 7)
        resumed = make(features, **options)
        resumed.load_state_dict(first.state_dict())
        train(resumed, rates, 12, first=7)
        assert whole.last.rows.tolist() == resumed.last.rows.tolist()
        assert whole.evidence.successes.tobytes() == resumed.evidence.successes.tobytes()
        assert whole.strata.codes.tobytes() == resumed.strata.codes.tobytes()
        assert whole.evidence.prior.skill() == resumed.evidence.prior.skill()


def test_replaced_features_are_in_the_saved_state():
    features, rates = pool()
    difficulty = make(features)
    train(difficulty, rates, 6)
    rows = np.arange(10)
    new = np.full((10, 6), 2, dtype=np.float16)
    new[3] = np.nan  # could not be read
    difficulty.replace_features(rows, new, 6)
    resumed = make(features)
    resumed.load_state_dict(difficulty.state_dict())
    assert (resumed.evidence.prior.features[0] == 2).all()
    assert (resumed.evidence.prior.features[3] == features[3]).all()
    assert (features[0] != 2).any()  # what was given stays as it is
    assert resumed.counters["prefills"] == 10


def test_a_state_with_features_is_not_loaded_without_them():
    features, rates = pool()
    difficulty = make(features)
    train(difficulty, rates, 2)
    with pytest.raises(StateError, match="prior"):
        make(features).load_state_dict({**make(None).state_dict()})
    with pytest.raises(StateError, match="was saved with features, this run has none"):
        make(None).load_state_dict({**difficulty.state_dict()})


def test_where_nothing_has_succeeded_yet_draws_still_go_by_weight():
    features, _ = pool()
    difficulty = make(features)
    train(difficulty, np.zeros(SIZE), 6)
    assert difficulty.next_prompts(6, 100).note is None


def test_the_logged_skill_is_of_groups_that_were_not_learnt_from_yet():
    features, rates = pool()
    difficulty = make(features, exploration=1.0)
    train(difficulty, rates, 60)
    skill = difficulty.evidence.prior.skill()
    assert skill.samples >= FEWEST_MEASURED
    assert skill.pearson > 0.6
    assert skill.auroc > 0.7
    noise = make(np.random.default_rng(5).permutation(features), exploration=1.0)
    train(noise, rates, 60)
    assert noise.evidence.prior.skill() is None or noise.evidence.prior.skill().pearson < 0.3


def test_features_are_due_every_so_many_steps():
    reading = FeatureReading(FeaturePrior(pool()[0], (2, 4)), candidates=8, every=5, seed=0)
    assert [step for step in range(12) if reading.due(step) and len(reading.choose(step, step))] == [5, 10]


def test_new_samples_are_read_once_until_none_is_left():
    prior = FeaturePrior(np.full((20, 6), np.nan, dtype=np.float16), (2, 4), reads=True)
    reading, seen = FeatureReading(prior, candidates=7.5, every=0, seed=0), []
    for batch in range(5):
        rows = reading.choose(0, batch) if reading.due(0) else np.empty(0, dtype=np.int64)
        prior.replace(rows, np.zeros((len(rows), 6), dtype=np.float16))
        seen.append(rows.tolist())
    assert [len(rows) for rows in seen] == [8, 8, 4, 0, 0]
    assert sorted(row for rows in seen for row in rows) == list(range(20))


def test_known_samples_are_read_again_and_new_ones_beside_them():
    prior = FeaturePrior(np.full((40, 6), np.nan, dtype=np.float16), (2, 4), reads=True)
    reading = FeatureReading(prior, candidates=8, every=2, seed=0)
    first = reading.choose(0, 0)
    prior.replace(first, np.zeros((8, 6), dtype=np.float16))
    assert set(first) < set(reading.choose(2, 1)) and len(reading.choose(2, 1)) == 8, "again only when it is due"


def test_a_group_of_a_sample_that_was_not_read_is_no_reference():
    features, rates = pool()
    prior = FeaturePrior(features.copy(), (2, 4), reads=True)
    prior.read[:300] = True
    tries = np.full(SIZE, 8.0)
    prior.refit(np.arange(SIZE), rates * 8, tries - rates * 8)
    assert prior.predictor.held_out.alpha.shape == (300,)
