"""What a training knows of its samples, end to end on arrays: what it sees changes what it draws, nothing is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import assert_same_parts, saved

from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.difficulty import Difficulty, Shape
from hardsample.trainer.selection.evidence import Evidence, EvidenceConfig
from hardsample.trainer.selection.policies import Context, PolicyConfig, weigh
from hardsample.trainer.selection.states import StateError, join_arrays, split_arrays
from hardsample.trainer.selection.strata import EASY, HARD, MEDIUM, NAMES, UNSCORED, UNSOLVED
from hardsample.trainer.selection.stream import PromptStream, StockOrder

TOTAL = 100
G = 8
LAMBDAS = {EASY: np.nan, MEDIUM: 0.5, HARD: 0.2, UNSOLVED: 0.0}


def make(strata, *, prompts=4, kinds=None, seed=0, exploration=0.0, half_life_steps=100.0, scores=None, **settings):
    """A training on samples of the given strata, so scored."""
    options = {name: settings.pop(name) for name in list(settings) if name in DifficultyOptions.__dataclass_fields__}
    policy = PolicyConfig(**({"policy": "strata", "exploration": exploration} | settings))
    size, strata = len(strata), np.asarray(strata)
    evidence = Evidence(size, EvidenceConfig(half_life_steps=half_life_steps), fingerprint="f")
    scored = np.flatnonzero(strata != UNSCORED)
    evidence.levels.seed(scored, np.array([LAMBDAS[code] for code in strata[scored]]), np.full(len(scored), True))
    order = StockOrder(size, prompts, True, seed) if policy.stock_order else None
    stream = PromptStream(size, seed, exploration, kinds, order, "f")
    options = DifficultyOptions(**({"scores": "scores"} | options))
    return Difficulty(evidence, stream, policy, options, Shape(G, prompts, seed))


def weights(difficulty):
    """The weight of every sample in the stream."""
    weights = np.empty(len(difficulty.evidence), dtype=np.float32)
    for sampler, rows in zip(difficulty.stream.samplers, difficulty.stream._rows, strict=True):
        weights[slice(None) if rows is None else rows] = sampler.tree.weights
    return weights


def fresh(difficulty, step):
    """The weights that all samples would have if they were weighed at this step."""
    counts = tuple(int(count) for count in difficulty.strata.counts)
    context = Context(difficulty.policy, step, TOTAL, G, difficulty.shape.prompts, counts)
    return weigh(difficulty.evidence, difficulty.strata, context)


def solved(count):
    return np.ones((count, G))


def failed(count):
    return np.zeros((count, G))


# --- strata move


def test_what_is_solved_by_now_loses_its_weight_at_the_next_choice():
    difficulty = make([HARD] * 8 + [MEDIUM] * 8)
    rows = difficulty.next_prompts(0, TOTAL).rows
    assert (weights(difficulty) == 1).all()
    difficulty.observe(solved(4), 0)
    assert (difficulty.strata.codes[rows] == EASY).all() and difficulty.counts()["easy"] == 4
    assert (weights(difficulty) == 1).all(), "weighed where the next batch is chosen"
    again = difficulty.next_prompts(1, TOTAL).rows
    assert not set(rows) & set(again)
    assert weights(difficulty).tolist() == [float(row not in rows) for row in range(16)]
    assert difficulty.note is None


def test_what_begins_to_succeed_comes_in_and_may_leave_again():
    difficulty = make([UNSOLVED] * 4 + [MEDIUM] * 8, exploration=1.0)
    inside = set()
    for step in range(30):
        rows = difficulty.next_prompts(step, TOTAL).rows
        rewards = np.zeros((4, G))
        rewards[:, : G // 2] = rows[:, None] < 4  # half of the rollouts of the unsolved, none of the others
        difficulty.observe(rewards, step)
        inside |= {int(row) for row in rows}
    assert inside == set(range(12))
    difficulty.next_prompts(30, TOTAL)
    assert weights(difficulty).tolist() == [1.0] * 4 + [0.0] * 8
    assert (difficulty.evidence.levels.level[:4] > 0).all() and difficulty.counts()["unsolved"] == 8
    assert difficulty.strata.moves[UNSOLVED, HARD] == 4 and difficulty.strata.moves[MEDIUM, UNSOLVED] == 8


def test_unsolved_and_easy_ones_are_seen_by_exploration_only():
    strata = [EASY] * 6 + [UNSOLVED] * 6 + [HARD] * 6
    closed, open_ = (make(strata, exploration=share, seed=3) for share in (0.0, 0.5))
    drawn = [{int(row) for _ in range(60) for row in each.next_prompts(0, TOTAL).rows} for each in (closed, open_)]
    assert drawn == [set(range(12, 18)), set(range(18))]


def test_others_are_reweighted_at_restratify_steps_only():
    difficulty = make([EASY] * 8 + [HARD] * 8, policy="curriculum", restratify_steps=10)
    difficulty.next_prompts(0, TOTAL)
    before = weights(difficulty)
    difficulty.observe(solved(4), 0)
    for step in range(1, 10):
        assert difficulty.restratify(step, TOTAL) is None
        touched = difficulty.last.rows
        difficulty.next_prompts(step, TOTAL)
        others = np.setdiff1d(np.arange(16), touched)
        if step == 1:
            np.testing.assert_array_equal(weights(difficulty)[others], before[others])
            np.testing.assert_array_equal(weights(difficulty)[touched], fresh(difficulty, 1).values[touched])
        before = weights(difficulty)
    event = difficulty.restratify(10, TOTAL)
    assert event.step == 10 and event.counts == difficulty.counts() and sum(event.counts.values()) == 16
    np.testing.assert_array_equal(weights(difficulty), fresh(difficulty, 10).values)
    assert difficulty.restratify(11, TOTAL) is None and difficulty.restratify(20, TOTAL).step == 20


def test_old_evidence_fades_where_it_is_looked_for():
    difficulty = make([UNSCORED] * 8, half_life_steps=1.0, restratify_steps=5, unscored_weight=1.0, unsolved_weight=0.0)
    rows = difficulty.next_prompts(0, TOTAL).rows
    difficulty.observe(failed(4), 0)
    assert (difficulty.strata.codes[rows] == UNSOLVED).all()
    difficulty.next_prompts(1, TOTAL)
    assert (weights(difficulty)[rows] == 0).all()
    event = difficulty.restratify(6, TOTAL)  # (½) / (1 + 8 / 2⁶) is above τ
    assert (difficulty.strata.codes == UNSCORED).all() and (weights(difficulty) == 1).all()
    assert event.moves == {"unscored->unsolved": 4, "unsolved->unscored": 4}
    assert difficulty.restratify(11, TOTAL).moves == {}, "moves are told once"


def test_a_balance_alone_has_a_sample_weighed():
    difficulty = make([MEDIUM] * 12, policy="target")
    difficulty.next_prompts(0, TOTAL)
    before = weights(difficulty)
    difficulty.observe_balance(np.array([3, 3, 5]), np.array([0.5, np.nan, 0.2]), 40)
    difficulty.next_prompts(40, TOTAL)
    assert np.flatnonzero(weights(difficulty) != before).tolist() == [3, 5]
    assert difficulty.evidence.balance[3] == 0.5


# --- probes


def test_probes_move_the_level_and_with_it_the_stratum_and_the_weight():
    difficulty = make([MEDIUM] * 12, probe_fraction=1.0)
    batch = difficulty.next_prompts(0, TOTAL)
    difficulty.observe(np.tile([1.0, 0.0], (4, G // 2)), 0)
    before = difficulty.evidence.levels.level.copy()
    for _ in range(40):  # what is probed is solved, whatever the mask
        rows, levels = difficulty.choose_probes()
        assert sorted(rows) == sorted(batch.rows) and (levels > 0).all()
        assert difficulty.observe_probes(rows, levels, np.ones(4), 0) == 1.0
        np.testing.assert_array_equal(difficulty.strata.codes[rows], expected_codes(difficulty, rows))
    assert (difficulty.evidence.levels.level[batch.rows] > before[batch.rows]).all()
    assert (difficulty.strata.codes[batch.rows] == EASY).all() and difficulty.counters["probes"] == 160
    difficulty.next_prompts(1, TOTAL)
    assert (weights(difficulty) == 0).sum() == 4
    others = np.setdiff1d(np.arange(12), batch.rows)
    np.testing.assert_array_equal(difficulty.evidence.levels.level[others], before[others])


def expected_codes(difficulty, rows):
    """Strata by λ* alone, for samples that neither always succeed nor always fail."""
    levels = difficulty.evidence.levels
    ratios = np.array([*levels.ratios, 1.0])[levels.level[rows]]
    return np.where(ratios >= 0.7, EASY, np.where(ratios <= 0.4, HARD, MEDIUM))


def test_probes_that_fail_make_a_sample_harder():
    difficulty = make([MEDIUM] * 4, probe_fraction=1.0)
    for step in range(30):
        difficulty.next_prompts(step, TOTAL)
        difficulty.observe(np.tile([1.0, 0.0], (4, G // 2)), step)
        rows, levels = difficulty.choose_probes()
        assert difficulty.observe_probes(rows, levels, np.zeros(len(rows)), step) == 0.0
    assert (difficulty.strata.codes == HARD).all()


def test_probes_without_reward_are_made_but_count_for_nothing():
    difficulty = make([MEDIUM] * 4, probe_fraction=1.0)
    difficulty.next_prompts(0, TOTAL)
    rows, levels = difficulty.choose_probes()
    assert difficulty.observe_probes(rows, levels, np.full(4, np.nan), 0) is None
    assert difficulty.observe_probes(rows, levels, np.array([1.0, np.nan, 0.0, np.nan]), 0) == 0.5
    assert difficulty.counters["probes"] == 8 and difficulty.evidence.levels.probe_attempts.sum() == 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_as_many_probes_as_asked_for_on_average(share):
    difficulty = make([MEDIUM] * 40, prompts=6, probe_fraction=share)
    counts, drawn = [], set()
    for step in range(300):
        batch = difficulty.next_prompts(step, TOTAL)
        rows, levels = difficulty.choose_probes()
        again, _ = difficulty.choose_probes()
        np.testing.assert_array_equal(rows, again)  # all ranks choose the same
        assert len(rows) == len(levels) == len(set(rows)) and set(rows) <= set(batch.rows)
        counts.append(len(rows))
        drawn |= set(rows.tolist())
    assert {int(6 * share), *counts} <= {int(6 * share), int(6 * share) + 1}
    assert np.mean(counts) == pytest.approx(6 * share, abs=0.15)
    assert not share or len(drawn) == 40


def test_samples_without_a_score_are_not_probed():
    difficulty = make([UNSCORED] * 6 + [MEDIUM] * 2, prompts=8, probe_fraction=0.5)
    difficulty.next_prompts(0, TOTAL)
    assert sorted(difficulty.choose_probes()[0]) == [6, 7]
    alone = make([UNSCORED] * 8, probe_fraction=1.0)
    alone.next_prompts(0, TOTAL)
    assert len(alone.choose_probes()[0]) == 0
    assert alone.observe_probes(*alone.choose_probes(), np.empty(0), 0) is None


def test_a_sample_that_repeats_in_a_batch_is_probed_once():
    difficulty = make([MEDIUM] * 3, prompts=7, probe_fraction=1.0)
    difficulty.next_prompts(0, TOTAL)
    assert sorted(difficulty.choose_probes()[0]) == [0, 1, 2]


# --- notes


def test_empty_strata_make_a_note_and_all_is_reweighted_when_it_changes():
    difficulty = make([HARD] * 6 + [UNSOLVED] * 10)
    first = difficulty.next_prompts(0, TOTAL).rows
    assert difficulty.note is None and set(first) <= set(range(6))
    difficulty.observe(solved(4), 0)
    difficulty.next_prompts(1, TOTAL)
    note = difficulty.note
    assert "holds 2 samples, fewer than the 4 prompts" in note and "easy was opened" in note
    np.testing.assert_array_equal(weights(difficulty), fresh(difficulty, 1).values)
    assert (weights(difficulty)[first] > 0).all() and (weights(difficulty)[6:] == 0).all()
    difficulty.next_prompts(2, TOTAL)
    assert difficulty.note == note, "nothing was observed, nothing has changed"


def test_when_the_strata_have_enough_again_there_is_no_note():
    difficulty = make([MEDIUM] * 3 + [UNSOLVED] * 9)
    difficulty.next_prompts(0, TOTAL)
    assert "unsolved was opened" in difficulty.note
    for step in range(60):
        rewards = np.tile([1.0, 0.0], (4, G // 2))
        difficulty.observe(rewards, step)
        difficulty.next_prompts(step + 1, TOTAL)
        if difficulty.note is None:
            break
        np.testing.assert_array_equal(weights(difficulty), fresh(difficulty, step + 1).values)
    assert difficulty.note is None and difficulty.counts()["unsolved"] < 9
    np.testing.assert_array_equal(weights(difficulty), fresh(difficulty, step + 1).values)


def test_what_the_sampler_says_stands_in_the_note_too():
    difficulty = make([MEDIUM] * 3, prompts=5)
    difficulty.next_prompts(0, TOTAL)
    assert "samples repeat" in difficulty.note


# --- numbers


def test_counters():
    difficulty = make([MEDIUM] * 12, monitor_size=5, monitor_steps=3, probe_fraction=1.0)
    difficulty.next_prompts(0, TOTAL)
    rewards = np.array([[0.0] * 8, [1.0] * 8, [0.0, 1.0] * 4, [np.nan] * 8])
    groups = difficulty.observe(rewards, 0)
    assert groups.spread.tolist() == [False, False, True, False]
    due = [step for step in range(8) if difficulty.monitor_due(step)]
    assert due == [0, 3, 6]
    assert difficulty.counters == {
        "rollouts": 32,
        "probes": 0,
        "monitor_rollouts": 15,
        "effective_rollouts": 8,
        "groups": 4,
        "zero_std_groups": 3,
        "trained_groups": 4,
        "trained_zero_std_groups": 3,
        "discarded_rollouts": 0,
        "discarded_spread_groups": 0,
        "screened_out_groups": 0,
        "screening_rollouts": 0,
        "resample_rounds": 0,
        "generated_tokens": 0,
        "prefills": 0,
        "reference_rollouts": 0,
    }
    difficulty.next_prompts(0, TOTAL)  # a second generation of the same step
    difficulty.observe(np.tile([0.3, 0.31], (4, 4)), 0)
    assert difficulty.counters["effective_rollouts"] == 8 + 32 and difficulty.counters["groups"] == 8


def test_a_group_without_any_reward_leaves_its_sample_alone():
    difficulty = make([UNSCORED] * 4)
    rows = difficulty.next_prompts(0, TOTAL).rows
    difficulty.observe(np.where(np.arange(4)[:, None] == 2, 1.0, np.full((4, G), np.nan)), 0)
    assert np.flatnonzero(difficulty.evidence.last_step == 0).tolist() == [rows[2]]


def test_metrics_say_what_was_drawn_before_it_moved():
    difficulty = make([HARD] * 4 + [EASY] * 4, exploration=0.5, prompts=8)
    difficulty.next_prompts(0, TOTAL)
    metrics = difficulty.metrics(difficulty.observe(solved(8), 0), 0)
    assert metrics["draws/hard"] == metrics["draws/easy"] == 0.5
    assert metrics["data/easy"] == 1.0 and metrics["frac_zero_std"] == 1.0
    assert sum(metrics.get(f"data/{name}", 0) for name in NAMES) == 1
    assert metrics["explored"] == difficulty.last.explored.mean()
    assert 0 <= metrics["frac_zero_std_uniform"] <= 1


def test_expected_share_of_zero_variance_groups_under_uniform_draws():
    difficulty = make([UNSCORED] * 6, prompts=2, half_life_steps=np.inf)
    assert difficulty.expected_frac_zero_std(0) is None
    batch = difficulty.next_prompts(0, TOTAL)
    metrics = difficulty.metrics(difficulty.observe(np.full((2, G), np.nan), 0), 0)
    assert "frac_zero_std_uniform" not in metrics
    difficulty.evidence.observe(batch.rows, np.array([[1.0] * 8, [1.0] * 2 + [0.0] * 6]), 0)
    rng = np.random.default_rng(0)
    rates = rng.beta([[8.5], [2.5]], [[0.5], [6.5]], (2, 200_000))
    expected = (rates**G + (1 - rates) ** G).mean()
    assert difficulty.expected_frac_zero_std(0) == pytest.approx(expected, abs=0.003)


def test_the_monitoring_set_is_drawn_once_and_for_all():
    first, same, other = (make([MEDIUM] * 50, monitor_size=7, seed=seed) for seed in (4, 4, 5))
    assert first.monitor.tolist() == same.monitor.tolist() != other.monitor.tolist()
    assert len(set(first.monitor)) == 7 and sorted(first.monitor) == first.monitor.tolist()
    assert make([MEDIUM] * 3, monitor_size=7).monitor.tolist() == [0, 1, 2]
    none = make([MEDIUM] * 3)
    assert len(none.monitor) == 0 and not none.monitor_due(0)


def test_the_uniform_policy_observes_and_draws_in_trl_s_order():
    difficulty = make([HARD] * 10, policy="uniform", restratify_steps=2)
    order = StockOrder(10, 4, True, 0)
    for step in range(8):
        difficulty.restratify(step, TOTAL)
        np.testing.assert_array_equal(difficulty.next_prompts(step, TOTAL).rows, order.rows(step))
        difficulty.observe(solved(4), step)
    assert difficulty.counts()["easy"] > 4 and difficulty.note is None


# --- states


RUNS = {
    "strata": {"policy": "strata", "exploration": 0.1},
    "signal": {"policy": "signal", "signal_estimate": "mean"},
    "thompson": {"policy": "signal", "signal_estimate": "thompson", "exploration": 0.2},
    "curriculum": {"policy": "curriculum", "exploration": 0.1},
    "target": {"policy": "target"},
    "uniform": {"policy": "uniform"},
}
ACTS = st.sampled_from(["step", "generation", "probe", "balance", "monitor", "save", "save"])


def act(difficulty, what, step, number):
    """Does one thing that a training does; gives all that it can tell of it."""
    rng = np.random.default_rng(number)
    size = len(difficulty.evidence)
    if what == "generation":
        event = difficulty.restratify(step, TOTAL)
        batch = difficulty.next_prompts(step, TOTAL)
        rewards = (rng.random((len(batch.rows), G)) < rng.random((len(batch.rows), 1)) ** 3).astype(float)
        rewards[rng.random(len(rewards)) < 0.1] = np.nan
        metrics = difficulty.metrics(difficulty.observe(rewards, step), step)
        return batch.step, batch.rows.tolist(), batch.explored.tolist(), difficulty.note, event, metrics
    if what == "probe":  # of any samples: a checkpoint does not know the last batch
        rows = rng.permutation(np.flatnonzero(difficulty.evidence.levels.level >= 0))[:3]
        levels = difficulty.evidence.levels.next_probe(rows)
        return (
            rows.tolist(),
            levels.tolist(),
            difficulty.observe_probes(rows, levels, rng.integers(0, 2, len(rows)), step),
        )
    if what == "balance":
        difficulty.observe_balance(rng.integers(size, size=3), rng.choice([np.nan, 0.3, 2.0], 3), step)
    return difficulty.monitor_due(step) if what == "monitor" else None


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(RUNS)),
    st.lists(ACTS, min_size=4, max_size=40),
    st.booleans(),
    st.integers(1, 6),
    st.integers(1, 14),
    st.integers(0, 50),
)
def test_a_copy_restored_at_any_point_is_the_same_training(run, acts, mixed, restratify, prompts, seed):
    strata = np.random.default_rng(seed).integers(0, 5, 13)
    kinds = strata != UNSCORED if mixed and run != "uniform" else None
    prompts = min(prompts, 13) if run == "uniform" else prompts
    given = {"kinds": kinds, "prompts": prompts, "seed": seed, "restratify_steps": restratify, "half_life_steps": 5.0}
    given |= {"monitor_size": 4, "monitor_steps": 2, "probe_fraction": 0.5, **RUNS[run]}
    whole, copy, step = make(strata, **given), make(strata, **given), 0
    for number, what in enumerate(acts):
        if what == "save":
            state = saved(whole)
            copy = make(strata, **given)
            copy.load_state_dict(state)
            np.testing.assert_array_equal(weights(copy), weights(whole))
        elif what == "step":
            step += 1
        else:
            assert act(copy, what, step, number) == act(whole, what, step, number)
        assert_same_parts(whole, copy)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["strata", "signal", "curriculum", "target"]),
    st.lists(st.sampled_from(["step", "step", "generation", "probe", "balance"]), max_size=25),
    st.booleans(),
    st.integers(1, 20),
    st.integers(0, 50),
)
def test_weights_are_those_of_a_policy_asked_at_the_right_times(run, acts, mixed, restratify, seed):
    """The naive way: all at the first choice, at restratify_steps and when the note changes; else the touched alone."""
    strata = np.random.default_rng(seed).integers(0, 5, 13)
    kinds = np.arange(13) % 3 == 0 if mixed else None
    difficulty = make(strata, kinds=kinds, seed=seed, restratify_steps=restratify, half_life_steps=5.0, **RUNS[run])
    expected, note, touched, last, step = None, None, set(), None, 0
    for number, what in enumerate(acts):
        if what == "step":
            step += 1
            continue
        if what != "generation":
            before = difficulty.evidence.levels.probe_attempts.sum(axis=1)
            act(difficulty, what, step, number)
            touched |= set(np.flatnonzero(difficulty.evidence.levels.probe_attempts.sum(axis=1) != before).tolist())
            if what == "balance":
                touched |= set(np.random.default_rng(number).integers(13, size=3).tolist())
            continue
        due = last is not None and step - last >= restratify
        assert (difficulty.restratify(step, TOTAL) is not None) == due
        recomputed = fresh(difficulty, step)
        rows = difficulty.next_prompts(step, TOTAL).rows
        if last is None or due:
            expected, note, last = recomputed.values, recomputed.note, step
        elif touched:
            mine = sorted(touched)
            expected[mine] = recomputed.values[mine]
            if recomputed.note != note:
                expected, note = recomputed.values, recomputed.note
        np.testing.assert_array_equal(weights(difficulty), expected)
        touched = set(rows.tolist())
        difficulty.observe(np.random.default_rng(number).integers(0, 2, (len(rows), G)).astype(float), step)


def test_the_strata_are_right_whenever_they_are_looked_at():
    difficulty = make(np.arange(20) % 5, exploration=0.3, prompts=6)
    for step in range(40):
        difficulty.next_prompts(step, TOTAL)
        difficulty.observe(np.random.default_rng(step).integers(0, 2, (6, G)).astype(float), step)
        np.testing.assert_array_equal(difficulty.strata.counts, np.bincount(difficulty.strata.codes, minlength=5))
        assert sum(difficulty.counts().values()) == 20


def test_a_copy_says_what_was_widened_before_it_was_saved():
    whole, copy = make([UNSOLVED] * 8), make([UNSOLVED] * 8)
    whole.next_prompts(0, TOTAL)
    copy.load_state_dict(saved(whole))
    for difficulty in (whole, copy):
        difficulty.next_prompts(1, TOTAL)
    assert whole.note == copy.note and "unsolved was opened" in copy.note


def test_states_that_do_not_belong_here_are_refused():
    state = saved(make([MEDIUM] * 8))
    for wrong, message in (
        (make([MEDIUM] * 8, policy="signal"), "policy 'strata', this run has 'signal'"),
        (make([MEDIUM] * 9), "size 8, must be 9"),
        (make([MEDIUM] * 8, kinds=np.arange(8) < 2), "kinds of rows"),
    ):
        with pytest.raises(StateError, match=message):
            wrong.load_state_dict(state)


@pytest.mark.parametrize("name", ["evidence", "strata", "stream", "counters", "refreshed", "weights_note", "policy"])
def test_a_state_without_a_part_is_refused(name):
    state = saved(make([MEDIUM] * 8))
    del state[name]
    with pytest.raises(StateError, match=f"missing: {name}"):
        make([MEDIUM] * 8).load_state_dict(state)


@pytest.mark.parametrize("path", sorted(split_arrays(make([MEDIUM] * 8).state_dict())[0]))
def test_a_state_without_an_array_is_refused(path):
    arrays, rest = split_arrays(saved(make([MEDIUM] * 8)))
    del arrays[path]
    with pytest.raises(StateError):
        make([MEDIUM] * 8).load_state_dict(join_arrays(arrays, rest))


def test_a_state_of_another_version_is_refused():
    state = saved(make([MEDIUM] * 8))
    with pytest.raises(StateError, match="version 99, must be 3"):
        make([MEDIUM] * 8).load_state_dict(state | {"version": 99})
