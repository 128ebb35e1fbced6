"""Every policy's weights and edge cases: all unsolved, all null, one sample, batches larger than what has weight."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig

from hardsample.trainer.selection import policies as module
from hardsample.trainer.selection import strata as strata_module
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.policies import POLICIES, Context, PolicyConfig, View, Weights, weigh
from hardsample.trainer.selection.sampler import PromptSampler, generator
from hardsample.trainer.selection.strata import EASY, HARD, MEDIUM, NAMES, UNSCORED, UNSOLVED, Strata
from hardsample.trainer.selection.widening import widen


def look(strata, alpha=0.5, beta=0.5):
    """A view of samples of these strata."""
    size = len(strata)
    return View(
        np.broadcast_to(np.asarray(alpha, dtype=float), size),
        np.broadcast_to(np.asarray(beta, dtype=float), size),
        np.array(strata, dtype=np.int8),
        np.full(size, -1, dtype=np.int8),
        np.full(size, np.nan, dtype=np.float32),
        np.full(size, -1, dtype=np.int32),
        np.arange(size),
    )


def context(policy="strata", step=0, batch=1, counts=(100, 100, 100, 100, 100), rng=None, **config):
    return Context(PolicyConfig(policy=policy, **config), step, 100, 8, batch, counts, rng)


def values(view, context):
    return POLICIES[context.config.policy](view, context).values


def test_uniform():
    assert values(look([0, 1, 2, 3, 4]), context("uniform")).tolist() == [1] * 5
    assert PolicyConfig().stock_order and not PolicyConfig(policy="strata").stock_order


def test_strata_weights():
    view = look([EASY, MEDIUM, HARD, UNSOLVED, UNSCORED, HARD])
    assert values(view, context()).tolist() == [0, 1, 1, 0, 1, 1]
    assert values(view, context(easy_weight=0.5, hard_weight=3, unscored_weight=0)).tolist() == [0.5, 1, 3, 0, 0, 3]


def test_signal_is_the_chance_of_spread():
    alpha, beta = np.array([0.5, 0.5, 4.5, 20.5]), np.array([0.5, 8.5, 4.5, 0.5])
    mean = values(look([UNSCORED] * 4, alpha, beta), context("signal"))
    assert mean[2] > mean[0] > mean[1] > mean[3] > 0
    sharp = values(look([UNSCORED] * 4, alpha, beta), context("signal", signal_sharpness=3.0))
    np.testing.assert_allclose(sharp, mean**3)
    view = look([UNSCORED] * 40_000, np.repeat(alpha, 10_000), np.repeat(beta, 10_000))
    drawn = values(view, context("signal", rng=np.random.default_rng(0)))
    np.testing.assert_allclose(drawn.reshape(4, -1).mean(axis=1), mean, atol=0.01)
    assert PolicyConfig(policy="signal", signal_estimate="thompson").pooled
    assert not PolicyConfig(policy="target", signal_estimate="thompson").pooled


@pytest.mark.parametrize(
    ("given", "features", "estimate", "sharpness"),
    [
        ({}, False, "thompson", 1.0),
        ({}, True, "mean", 8.0),
        ({"signal_estimate": "thompson"}, True, "thompson", 1.0),
        ({"signal_estimate": "mean"}, False, "mean", 1.0),
        ({"signal_sharpness": 2.0}, True, "mean", 2.0),
    ],
)
def test_signal_draws_by_the_mean_where_features_are_there(given, features, estimate, sharpness):
    config = PolicyConfig(policy="signal", **given).resolved(features)
    assert (config.signal_estimate, config.signal_sharpness) == (estimate, sharpness)


def test_target_moves():
    rate = np.linspace(0.01, 0.99, 99)
    view = look([UNSCORED] * 99, 1000 * rate, 1000 * (1 - rate))
    for step, aim in ((0, 0.7), (50, 0.55), (100, 0.4), (900, 0.4)):
        weights = values(view, context("target", step=step))
        assert rate[weights.argmax()] == pytest.approx(aim, abs=0.011)
    known, unknown, far = values(look([UNSCORED] * 3, [700, 0.5, 10], [300, 0.5, 990]), context("target"))
    assert known > unknown > far > 0


def test_target_is_the_expectation_over_the_posterior():
    rng = np.random.default_rng(0)
    rate = rng.beta(30, 20, 200_000)
    expected = np.exp(-((rate - 0.7) ** 2) / (2 * 0.15**2)).mean()
    assert values(look([UNSCORED], 30, 20), context("target"))[0] == pytest.approx(expected, rel=0.01)


def test_curriculum_goes_from_easy_to_hard_and_releases_the_unsolved():
    view = look([EASY, MEDIUM, HARD, UNSOLVED])
    start, middle, late, end = (values(view, context("curriculum", step=step)) for step in (0, 50, 75, 100))
    assert start.argmax() == EASY and middle.argmax() == MEDIUM and end[HARD] == end[UNSOLVED] == 1
    assert start[UNSOLVED] == middle[UNSOLVED] == 0 and late[UNSOLVED] == 0.5
    assert (start[:3] > 0).all()
    always = [values(view, context("curriculum", step=step, unsolved_from=1.0))[UNSOLVED] for step in (0, 99, 100)]
    assert always == [0, 0, 1]
    assert values(view, context("curriculum", step=1, unsolved_from=0.0))[UNSOLVED] == pytest.approx(0.01)


def test_curriculum_places_samples_without_a_stratum_by_their_success_rate():
    view = look([UNSCORED, UNSCORED, UNSCORED], [90, 50, 12], [10, 50, 88])
    assert [values(view, context("curriculum", step=step)).argmax() for step in (0, 50, 100)] == [0, 1, 2]
    halved = values(view, context("curriculum", unscored_weight=0.5))
    np.testing.assert_allclose(halved, values(view, context("curriculum")) / 2)


def test_widening_opens_the_nearest_strata_first():
    weights = (0.0, 1.0, 1.0, 0.0, 1.0)
    assert widen(weights, (50, 30, 30, 50, 4), 64) == (pytest.approx(weights), None)
    table, note = widen(weights, (50, 30, 30, 50, 0), 64)
    assert table.tolist() == [4 / 50, 1, 1, 0, 1], "four samples were missing: the easy weigh as much as four"
    assert note.startswith("medium+hard+unscored has weight and holds 60 samples, fewer than the 64") and "easy" in note
    table, note = widen(weights, (2, 0, 0, 50, 0), 64)
    assert table.tolist() == [1, 1, 1, 1, 1] and "easy+unsolved was opened" in note
    table, note = widen((1.0, 0.0, 0.0, 0.0, 0.0), (0, 0, 9, 9, 9), 8)
    assert table.tolist() == [1, 0, 8 / 9, 0, 0] and "easy has weight and holds no samples" in note
    table, _ = widen((0.0, 0.0, 0.0, 0.0, 2.0), (5, 5, 5, 5, 1), 8)
    assert table.tolist() == [2 * 2 / 5, 2, 0, 0, 2], "from unscored alone: medium first, then the easier neighbour"
    table, _ = widen((0.0, 1.0, 1.0, 0.0, 0.0), (0, 0, 0, 0, 100), 8)
    assert table[UNSCORED] == 8 / 100, "unscored last, but before nothing"
    assert widen(weights, (0, 1, 0, 0, 0), 8)[1] is None, "nothing left to open: the sampler repeats samples"


@given(
    st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 3.0])] * 5), st.tuples(*[st.integers(0, 40)] * 5), st.integers(1, 80)
)
def test_widening_keeps_what_was_wanted_and_reaches_a_batch_where_it_can(weights, counts, batch):
    table, note = widen(weights, counts, batch)
    wanted = np.array(weights) > 0
    np.testing.assert_array_equal(table[wanted], np.array(weights)[wanted])
    held = np.array(counts)
    assert held[table > 0].sum() >= min(batch, held.sum())
    assert (note is None) == ((table > 0) == wanted).all()
    if held[wanted].sum():
        usual = (np.array(weights) * held).sum() / held[wanted].sum()
        opened = ~wanted
        missing = max(batch - held[wanted].sum(), 0)
        assert (table * held)[opened].sum() <= usual * missing * (1 + 1e-9)


CASES = {
    "all unsolved": lambda evidence: evidence.observe(np.arange(40), np.zeros((40, 16)), 1),
    "all unscored": lambda evidence: None,
    "all solved": lambda evidence: evidence.observe(np.arange(40), np.ones((40, 16)), 1),
    "one stratum each": lambda evidence: evidence.levels.seed(
        np.arange(40), np.resize([0.0, 0.2, 0.5, np.nan], 40), np.arange(40) % 5 > 0
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [1, 8, 40, 100])
def test_no_policy_dies_and_every_batch_is_full(case, policy, batch):
    evidence = Evidence(40)
    CASES[case](evidence)
    strata = Strata(evidence, step=1)
    sampler = PromptSampler(40, seed=0, exploration=0.0)
    for step in (1, 50, 99, 100, 1000):
        state = Context(PolicyConfig(policy=policy), step, 100, 8, batch, tuple(strata.counts))
        weights = weigh(evidence, strata, state)
        assert weights.values.dtype == np.float32 and np.isfinite(weights.values).all() and (weights.values >= 0).all()
        sampler.set_weights(weights.values)
        drawn = sampler.next_batch(batch)
        assert len(drawn.rows) == batch and drawn.rows.min() >= 0 and drawn.rows.max() < 40
        if batch <= 40:
            assert len(set(drawn.rows)) == batch and drawn.note is None, "what the policy opened was enough"
        if case == "all unsolved" and policy == "strata" and batch <= 40:
            assert "unsolved was opened" in weights.note


@pytest.mark.parametrize("policy", POLICIES)
def test_one_sample(policy):
    evidence = Evidence(1)
    strata = Strata(evidence)
    state = Context(PolicyConfig(policy=policy), 0, 0, 8, 4, tuple(strata.counts))
    sampler = PromptSampler(1, seed=0, exploration=0.05)
    sampler.set_weights(weigh(evidence, strata, state).values)
    batch = sampler.next_batch(4)
    assert batch.rows.tolist() == [0] * 4 and "samples repeat" in batch.note


def test_a_few_wanted_samples_are_not_drowned():
    evidence = Evidence(10_000)
    thresholds = np.full(10_000, np.nan)
    thresholds[:12] = 0.2
    evidence.levels.seed(np.arange(10_000), thresholds, np.full(10_000, True))
    strata = Strata(evidence)
    weights = weigh(evidence, strata, Context(PolicyConfig(policy="strata"), 0, 100, 8, 64, tuple(strata.counts)))
    sampler = PromptSampler(10_000, seed=0, exploration=0.0)
    sampler.set_weights(weights.values)
    hard = [int((sampler.next_batch(64).rows < 12).sum()) for _ in range(50)]
    assert min(hard) >= 4 and np.mean(hard) > 8, "12 hard samples among 9,988 easy ones, 64 prompts a batch"


def test_thompson_takes_what_may_have_spread():
    evidence = Evidence(6000, EvidenceConfig(half_life_steps=np.inf))
    learnable = np.arange(0, 6000, 20)
    evidence.observe(np.arange(6000), np.zeros((6000, 64)), 0)
    evidence.observe(learnable, np.ones((len(learnable), 64)), 0)
    strata = Strata(evidence)
    config = PolicyConfig(policy="signal", signal_estimate="thompson")
    state = Context(config, 1, 100, 8, 16, tuple(strata.counts))

    def score(rows, rng):
        assert len(rows) == 4096 == len(set(rows))
        return weigh(evidence, strata, dataclasses.replace(state, rng=rng), rows).values

    sampler = PromptSampler(6000, seed=0, exploration=0.0)
    assert (sampler.next_batch(16, score).rows % 20 == 0).all()


def test_chunks_and_rows_give_the_same_weights(monkeypatch):
    evidence = Evidence(23)
    evidence.observe(np.arange(0, 23, 2), np.eye(12, 16), 1)
    strata = Strata(evidence, 1)
    for policy in POLICIES:
        state = Context(PolicyConfig(policy=policy), 3, 100, 8, 4, tuple(strata.counts))
        whole = weigh(evidence, strata, state).values
        rows = np.array([22, 3, 3, 0])
        np.testing.assert_array_equal(weigh(evidence, strata, state, rows).values, whole[rows])
        monkeypatch.setattr(strata_module, "CHUNK", 5)
        np.testing.assert_array_equal(weigh(evidence, strata, state).values, whole)
        monkeypatch.undo()


def test_a_policy_is_one_function_in_the_table(monkeypatch):
    def forgotten(view: View, context: Context) -> Weights:
        return Weights(np.where(view.last_step < 0, 1.0, 0.0))

    monkeypatch.setitem(POLICIES, "forgotten", forgotten)
    evidence = Evidence(4)
    evidence.observe([1], [[1.0, 0.0]], 0)
    strata = Strata(evidence)
    weights = weigh(evidence, strata, Context(PolicyConfig(policy="forgotten"), 0, 1, 2, 1, tuple(strata.counts)))
    assert weights.values.tolist() == [1, 0, 1, 1]


def test_exploration_keeps_every_sample_alive():
    sampler = PromptSampler(50, seed=1, exploration=0.2)
    sampler.set_weights(np.array([1.0] * 10 + [0.0] * 40))
    batches = [sampler.next_batch(5) for _ in range(1000)]
    drawn = np.bincount(np.concatenate([batch.rows for batch in batches]), minlength=50)
    assert (drawn > 0).all()
    explored = np.concatenate([batch.explored for batch in batches])
    assert explored.mean() == pytest.approx(0.2, abs=0.02)
    assert all(batch.explored[batch.rows >= 10].all() for batch in batches)


def test_the_generator_of_thompson_is_the_step_s():
    view = look([UNSCORED] * 5, 3, 4)
    first, again, other = (values(view, context("signal", rng=generator(0, step))) for step in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "best"),
        ("signal_estimate", "median"),
        *itertools.product(("exploration", "target_start", "target_end", "unsolved_from"), (-1, 2, np.nan)),
        *itertools.product(("signal_sharpness", "target_width"), (0, np.inf, np.nan)),
        *itertools.product((f"{name}_weight" for name in NAMES), (-1, np.inf, np.nan)),
    ],
)
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        PolicyConfig(**{field: value})


def test_settings_need_a_stratum_and_have_help():
    with pytest.raises(ValueError, match="weights of all strata are 0"):
        PolicyConfig(medium_weight=0, hard_weight=0, unscored_weight=0)
    own = [*dataclasses.fields(PolicyConfig), *dataclasses.fields(EvidenceConfig)]
    assert all(field.metadata["help"] for field in own)
    taken = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert not taken & {field.name for field in own}, "the trainer's config inherits both"
    assert module.POLICIES is POLICIES


@pytest.mark.parametrize(
    ("given", "informed", "chosen"),
    [
        ({}, False, "uniform"),
        ({}, True, "signal"),
        ({"stratify_by": "cmab"}, True, "strata"),
        ({"stratify_by": "both"}, False, "strata"),
        ({"policy": "uniform"}, True, "uniform"),
        ({"policy": "target", "stratify_by": "cmab"}, True, "target"),
    ],
)
def test_the_default_policy_follows_what_is_known_before_training(given, informed, chosen):
    assert PolicyConfig(**given).named(informed).policy == chosen
    assert PolicyConfig(**given).stock_order == (PolicyConfig(**given).named(False).policy == "uniform")
