"""Evidence against a slow scalar bookkeeping, λ* under probes, seeding by scores, and saved states."""

import json
from math import inf, isnan, nan

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardsample.metrics.beta import beta_cdf
from hardsample.scoring.output import SCHEMA
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig, outcomes
from hardsample.trainer.selection.levels import Levels
from hardsample.trainer.selection.states import StateError, join_arrays, split_arrays

LEVELS = 10


def scores(*records):
    """scores.parquet of (stratum, λ*, successes at ratio 0, attempts at ratio 0)."""
    columns = {name: [None] * len(records) for name in SCHEMA.names}
    columns["pism_stratum"] = [stratum for stratum, *_ in records]
    columns["failure_threshold"] = [threshold for _, threshold, *_ in records]
    columns["successes"] = [[wins, *[0] * 9] for *_, wins, _ in records]
    columns["attempts"] = [[tries, *[0] * 9] for *_, tries in records]
    return pa.table(columns, schema=SCHEMA)


def seeded(*records, **config):
    evidence = Evidence(len(records), EvidenceConfig(**config))
    evidence.seed(np.arange(len(records)), scores(*records))
    return evidence


def test_outcomes_by_spread_and_threshold():
    rewards = [[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0.30, 0.31, 0.3, 0.3], [0.7, 0.7000001, 0.7, 0.7]]
    groups = outcomes(np.array(rewards), 0.5, 1e-6)
    assert groups.successes.tolist() == [2, 4, 0, 0, 4]
    assert groups.attempts.tolist() == [4] * 5
    assert groups.spread.tolist() == [True, False, False, True, False]
    assert outcomes(np.array(rewards), 0.5, 0.0).spread.tolist() == [True, False, False, True, True]


def test_outcomes_without_rewards():
    groups = outcomes(np.array([[nan, nan], [nan, 1.0], [1.0, 0.0]]), 0.5, 1e-6)
    assert groups.successes.tolist() == [0, 1, 1]
    assert groups.attempts.tolist() == [0, 1, 2]
    assert groups.spread.tolist() == [False, False, True]
    assert outcomes(np.array([[None, 1.0, 0.0]], dtype=object), 0.5, 0).attempts.tolist() == [2]
    assert outcomes(np.array([[inf, inf], [-inf, -inf], [inf, 0.0]]), 0.5, 1.0).spread.tolist() == [False, False, True]
    assert outcomes(np.empty((0, 4)), 0.5, 0).spread.shape == (0,)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        outcomes(np.zeros(3), 0.5, 0)


class Slow:
    """One sample's counts, every rollout kept with its step, all weighed anew at each look."""

    def __init__(self, half_life_steps):
        self.half_life_steps, self.seen = half_life_steps, []

    def posterior(self, step):
        alpha = beta = 0.5
        for when, wins, losses in self.seen:
            weight = 0.5 ** ((step - when) / self.half_life_steps)
            alpha, beta = alpha + wins * weight, beta + losses * weight
        return alpha, beta


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.lists(st.tuples(st.integers(0, 4), st.lists(st.sampled_from([0.0, 1.0, nan]), min_size=3, max_size=3))),
        ),
        max_size=12,
    ),
    st.sampled_from([0.5, 3.0, 100.0, inf]),
)
def test_discounting_is_the_slow_scalar_one(steps, half_life_steps):
    evidence = Evidence(5, EvidenceConfig(half_life_steps=half_life_steps))
    slow = [Slow(half_life_steps) for _ in range(5)]
    step = 0
    for wait, groups in steps:
        step += wait
        for row, rewards in groups:
            wins = sum(reward == 1 for reward in rewards)
            slow[row].seen.append((step, wins, sum(not isnan(reward) for reward in rewards) - wins))
        rows = np.array([row for row, _ in groups], dtype=np.int64)
        evidence.observe(rows, np.array([rewards for _, rewards in groups]).reshape(-1, 3), step)
        posteriors = np.array(evidence.posterior(np.arange(5), step + 7))
        np.testing.assert_allclose(posteriors.T, [reference.posterior(step + 7) for reference in slow], rtol=2e-6)
    touched = [{when for when, wins, losses in reference.seen if wins + losses} for reference in slow]
    assert evidence.last_step.tolist() == [max(steps, default=-1) for steps in touched]


def test_observing_touches_only_its_samples():
    evidence = Evidence(6)
    evidence.observe([1, 4], [[1.0, 0.0], [0.0, 0.0]], 3)
    assert evidence.successes.tolist() == [0, 1, 0, 0, 0, 0]
    assert evidence.failures.tolist() == [0, 1, 0, 0, 2, 0]
    assert evidence.last_step.tolist() == [-1, 3, -1, -1, 3, -1]


def test_observing_refuses_what_does_not_fit():
    evidence = Evidence(3)
    evidence.observe([1], [[1.0]], 5)
    with pytest.raises(ValueError, match="step 4 lies 1 before"):
        evidence.observe([1], [[1.0]], 4)
    for row in (-1, 3):
        with pytest.raises(ValueError, match="must be 0 to 2"):
            evidence.observe([row], [[1.0]], 6)
    with pytest.raises(ValueError, match="1 groups of rewards"):
        evidence.observe([0, 1], [[1.0]], 6)
    with pytest.raises(ValueError, match="size is 0"):
        Evidence(0)


def test_balance_is_a_moving_average():
    evidence = Evidence(3)
    evidence.observe_balance([0, 0, 1], [1.0, 3.0, nan])
    assert evidence.balance[0] == 2.0 and np.isnan(evidence.balance[1:]).all()
    evidence.observe_balance([0, 2], [6.0, 0.5])
    assert evidence.balance.tolist()[0::2] == [3.0, 0.5]


def test_stored_scores_weigh_at_most_four():
    evidence = seeded(
        ("easy", None, 10, 10), ("hard", 0.3, 1, 2), ("unsolved", 0.0, 0, 10), ("medium", 0.5, 3, 7), (None, None, 6, 8)
    )
    np.testing.assert_allclose(evidence.successes, [4, 1, 0, 12 / 7, 3], rtol=1e-6)
    np.testing.assert_allclose(evidence.failures, [0, 1, 4, 16 / 7, 1], rtol=1e-6)
    assert evidence.levels.level.tolist() == [10, 3, 0, 5, -1]
    assert evidence.levels.scored_level.tolist() == [10, 3, 0, 5, -1]
    assert (evidence.last_step == -1).all()
    alpha, beta = evidence.posterior(np.arange(5), 100)
    np.testing.assert_allclose(alpha + beta, [3, 2, 3, 3, 3], rtol=1e-6)


def test_scores_reach_the_rows_they_are_given():
    evidence = Evidence(4)
    evidence.seed([2, 0], scores(("hard", 0.3, 1, 1), ("medium", 0.6, 1, 1)))
    assert evidence.levels.level.tolist() == [6, -1, 3, -1]
    with pytest.raises(ValueError, match=r"failure threshold is 0\.25"):
        evidence.seed([0], scores(("hard", 0.25, 1, 1)))
    with pytest.raises(ValueError, match="1 rows for 2 scores"):
        evidence.seed([0], scores(("hard", 0.3, 1, 1), ("medium", 0.6, 1, 1)))
    with pytest.raises(ValueError, match="must be 0 to 3"):
        evidence.seed([4], scores(("hard", 0.3, 1, 1)))


def test_probe_levels_in_turn():
    evidence = seeded(
        ("hard", 0.3, 1, 1),
        ("unsolved", 0.0, 0, 10),
        ("easy", None, 1, 1),
        (None, None, 1, 1),
        ("hard", 0.1, 1, 1),
    )
    levels, rows = evidence.levels, np.arange(5)
    assert levels.next_probe(rows).tolist() == [3, 1, 9, -1, 1]
    for expected in (3, 2, 3, 2):
        assert levels.next_probe(rows[:1]).tolist() == [expected]
        levels.observe(rows[:1], [expected], [int(expected == 2)], [1])
    assert levels.next_probe(rows[4:]).tolist() == [1], "the level below is ratio 0, which training itself rolls out"


def test_probes_move_the_threshold_both_ways():
    levels = seeded(("hard", 0.3, 1, 1)).levels
    row = np.array([0])
    levels.observe(row, [3], [0], [8])
    assert levels.level[0] == 3
    levels.observe(row, [3], [3], [8])
    assert levels.level[0] == 4, "a level above is not known to pass until a probe there succeeds"
    levels.observe(row, [4], [0], [1])
    assert levels.level[0] == 4, "one failure: the prior alone does not make it pass"
    levels.observe(row, [4], [1], [1])
    assert levels.level[0] == 5
    levels.observe(row, [4], [0], [40])
    assert levels.level[0] == 4, "the level below failed"
    levels.observe(row, [2], [0], [8])
    assert levels.level[0] == 4, "the stored success outweighs eight failures"
    levels.observe(row, [2], [0], [8])
    assert levels.level[0] == 2
    levels.observe(row, [2], [60], [60])
    assert levels.level[0] == 3 + 1, "of levels above, those that have passed are passed over"


def test_the_last_level_and_none():
    levels = seeded(("easy", 0.9, 1, 1), ("easy", None, 1, 1)).levels
    levels.observe([0, 1], [9, 9], [4, 0], [4, 30])
    assert levels.level.tolist() == [10, 9]


def test_rollouts_of_training_lift_unsolved_samples_only():
    evidence = seeded(("unsolved", 0.0, 0, 10), ("unsolved", 0.0, 0, 10), ("hard", 0.2, 1, 1), (None, None, 0, 10))
    rows = np.arange(4)
    evidence.observe(rows, [[1, 0, 0, 0, 0, 0, 0, 0], [0] * 8, [0] * 8, [1] * 8], 1)
    assert evidence.levels.level.tolist() == [0, 0, 2, -1], "1 of 8 on top of 0 of 4: probably still under τ"
    evidence.observe(rows, [[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8, [0] * 8, [0] * 8], 2)
    assert evidence.levels.level.tolist() == [1, 0, 2, -1]
    for step in range(3, 2000, 400):  # a sample that nobody solves does not leave by forgetting
        evidence.observe(rows[1:2], [[0] * 8], step)
    assert evidence.levels.level[1] == 0


def test_level_failure_is_the_posterior():
    levels = seeded(("hard", 0.2, 1, 1)).levels
    levels.observe([0], [4], [1], [6])
    chance = levels.failure(np.zeros(10, dtype=int), np.arange(10))
    pairs = [(1.5, 0.5), (1.5, 0.5), (0.5, 4.5), (0.5, 0.5), (1.5, 5.5), *[(0.5, 0.5)] * 5]
    np.testing.assert_allclose(chance, [beta_cdf(0.1, np.array(a), np.array(b)) for a, b in pairs])
    assert chance[2] > 0.5 > chance[1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted), min_size=1, max_size=30))
def test_probe_counts_saturate_and_keep_the_mean(pairs):
    levels = Levels(1, (0.0, 0.5), 0.1)
    levels.seed(np.array([0]), np.array([0.5]), np.array([True]))
    won = tried = 0
    for wins, tries in pairs:
        levels.observe([0], [1], [wins], [tries])
        won, tried = won + wins, tried + tries
        while tried > 255:
            won, tried = (2 * won * (tried // 2) + tried) // (2 * tried), tried // 2
        assert (levels.probe_successes[0, 1], levels.probe_attempts[0, 1]) == (won, tried)
        assert won <= tried <= 255


def test_saturation_keeps_the_verdict():
    levels = seeded(*[("easy", 0.9, 1, 1)] * 256).levels
    rows = np.arange(256)
    levels.observe(rows, np.full(256, 9), rows.clip(max=255), np.full(256, 255))
    before = levels.failure(rows, np.full(256, 9)) > 0.5
    levels.observe(rows, np.full(256, 9), rows // 255, np.ones(256, dtype=int))
    changed = np.flatnonzero(before != (levels.failure(rows, np.full(256, 9)) > 0.5))
    assert len(changed) <= 1, "only a sample at the very border may change"
    assert set(levels.probe_attempts[:, 9]) == {128}


def test_probes_of_one_call_add_up():
    together, apart = (seeded(("hard", 0.3, 1, 1), ("hard", 0.3, 1, 1)).levels for _ in range(2))
    together.observe([0, 1, 0, 0], [3, 3, 3, 2], [1, 0, 0, 1], [2, 2, 2, 2])
    for call in (([0], [3], [1], [4]), ([0], [2], [1], [2]), ([1], [3], [0], [2])):
        apart.observe(*call)
    for name in Levels.ARRAYS:
        np.testing.assert_array_equal(getattr(together, name), getattr(apart, name))


def test_probes_refuse_what_does_not_fit():
    levels = seeded(("hard", 0.3, 1, 1), (None, None, 1, 1)).levels
    for call, message in (
        (([0], [0], [0], [1]), "must be 1 to 9"),
        (([0], [10], [0], [1]), "must be 1 to 9"),
        (([0], [3], [2], [1]), "more successes than attempts"),
        (([0], [3], [-1], [1]), "more successes than attempts"),
        (([1], [3], [1], [1]), "no PISM score"),
        (([2], [3], [1], [1]), "must be 0 to 1"),
        (([0, 0], [3], [1], [1]), "pair them"),
    ):
        with pytest.raises(ValueError, match=message):
            levels.observe(*call)
    levels.observe([], [], [], [])


def test_bytes_a_sample():
    assert Evidence(1000).nbytes == 38_000


def worked():
    evidence = seeded(("hard", 0.3, 1, 1), ("unsolved", 0.0, 0, 10), (None, None, 5, 10))
    evidence.fingerprint = "data-1"
    evidence.observe([0, 1], [[1.0, 0.0], [0.0, 0.0]], 4)
    evidence.observe_balance([0], [0.7])
    evidence.levels.observe([0], [3], [1], [2])
    return evidence


def saved(part):
    """A state as a checkpoint keeps it: copies of the arrays, the rest as JSON."""
    arrays, rest = split_arrays(part.state_dict())
    return join_arrays({path: array.copy() for path, array in arrays.items()}, json.loads(json.dumps(rest)))


def test_a_resumed_state_is_the_same_bit_for_bit():
    original = worked()
    resumed = Evidence(3, fingerprint="data-1")
    resumed.load_state_dict(saved(original) | {"foreign": np.zeros(1)})
    for evidence in (original, resumed):
        evidence.observe([0, 2], [[1.0, 1.0], [0.0, 1.0]], 17)
        evidence.levels.observe([0, 1], [4, 1], [1, 0], [2, 2])
    arrays, resumed_arrays = (split_arrays(evidence.state_dict())[0] for evidence in (original, resumed))
    assert len(arrays) == 8
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, resumed_arrays[path])


def test_levels_can_be_saved_alone():
    original, resumed = worked().levels, Evidence(3).levels
    resumed.load_state_dict(saved(original))
    for name in resumed.ARRAYS:
        np.testing.assert_array_equal(getattr(resumed, name), getattr(original, name))
    with pytest.raises(StateError, match="the saved levels has ratios"):
        Evidence(3, ratios=(0.0, 0.5)).levels.load_state_dict(saved(original))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version 0, must be 1: resume with the version of hardsample that saved it"),
        ({"size": 4}, "size 4, must be 3: resume on the dataset"),
        ({"fingerprint": "data-2"}, "fingerprint 'data-2', must be 'data-1': resume on the dataset"),
        ({"levels": {"ratios": [0.0, 0.5]}}, r"ratios \[0.0, 0.5\], must be .*: resume with the scores"),
        ({"levels": None}, "the saved evidence lacks its levels"),
    ],
)
def test_a_foreign_state_is_refused(change, message):
    with pytest.raises(StateError, match=message):
        Evidence(3, fingerprint="data-1").load_state_dict(saved(worked()) | change)


def test_a_damaged_state_is_refused_and_changes_nothing():
    state = saved(worked())
    levels = state["levels"]
    fresh = Evidence(3, fingerprint="data-1")
    without = {name: value for name, value in state.items() if name != "balance"}
    for broken, message in (
        (without, "lacks the array 'balance'"),
        (state | {"levels": levels | {"level": levels["level"][:2]}}, r"'level' is int8 \(2,\), must be int8 \(3,\)"),
        (state | {"failures": state["failures"].astype(np.float64)}, "'failures' is float64"),
        (state | {"levels": levels | {"level": levels["level"].astype(np.int16)}}, "'level' is int16"),
    ):
        with pytest.raises(StateError, match=message):
            fresh.load_state_dict(broken)
    assert not fresh.successes.any() and (fresh.last_step == -1).all()


def test_an_array_of_a_part_that_is_missing_is_refused():
    arrays, rest = split_arrays(worked().state_dict())
    assert sorted(arrays)[:2] == ["balance", "failures"] and "levels.level" in arrays
    del rest["levels"]
    with pytest.raises(StateError, match=r"'levels\.\w+' belongs to a part that the saved state lacks"):
        join_arrays(arrays, rest)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("half_life_steps", value) for value in (0, -1, nan)),
        *(("success_threshold", value) for value in (nan, inf)),
        *(("reward_tolerance", value) for value in (-1e-9, inf, nan)),
        *(("tau", value) for value in (0, 1.5, nan)),
        ("hard_max", 0.8),
        ("easy_min", 1.2),
    ],
)
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=field):
        EvidenceConfig(**{field: value})
