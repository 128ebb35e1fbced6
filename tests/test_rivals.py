"""The rivals of the arena: their formulas against hand computation, their states resumed exactly, and every method of
the arena trained for two steps."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hardsample.errors import ConfigError
from hardsample.trainer.config import DifficultyOptions
from hardsample.trainer.difficulty import Difficulty, Shape
from hardsample.trainer.plugins.stateful import PolicyInfo, make_policy
from hardsample.trainer.selection.evidence import Evidence, outcomes
from hardsample.trainer.selection.policies import Context, PolicyConfig, View
from hardsample.trainer.selection.states import join_arrays, split_arrays
from hardsample.trainer.selection.stream import PromptStream

BENCH = Path(__file__).parents[1] / "bench"
PATH = list(sys.path)
sys.path[:0] = [str(BENCH / "arena"), str(BENCH)]
import environments  # noqa: E402
import prices  # noqa: E402
import report as arena_report  # noqa: E402
import run as arena  # noqa: E402
from methods import METHODS  # noqa: E402
from rivals import dots, greso, kgps, mopps, prime_pools, vade, vcrl  # noqa: E402

sys.path[:] = PATH
del sys.modules["run"], sys.modules["report"]  # bench/ has another run

SIZE, G, PROMPTS = 40, 4, 4
RIVALS = sorted(
    {method.options["policy"] for method in METHODS.values() if "rivals." in method.options.get("policy", "")}
)
FEATURES = np.random.default_rng(1).normal(size=(SIZE, 6)).astype(np.float16)


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH / "arena"))


def info(policy="uniform", size=SIZE, features=None):
    return PolicyInfo(size, 3, G, PROMPTS, PolicyConfig(policy=policy, exploration=0.0), Evidence(1).config, features)


def see(policy, rows, *groups):
    """Show a policy groups of 0 and 1 (None: no reward)."""
    rewards = np.array([[np.nan if grade is None else grade for grade in group] for group in groups], dtype=float)
    policy.observe(np.array(rows), rewards, outcomes(rewards, 0.5, 1e-6), 0)


def weights(policy, seed=0):
    """The weights of all samples."""
    rows, empty = np.arange(policy.info.size), np.zeros(policy.info.size)
    view = View(empty + 0.5, empty + 0.5, empty.astype(int), empty.astype(int), empty, empty.astype(int), rows)
    context = Context(policy.info.config, 0, 10, G, PROMPTS, (0,) * 5, np.random.default_rng(seed))
    return policy.weights(view, context).values


NONE, ALL_RIGHT, HALF, ONE = [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]
UNGRADED = [None] * 4


def test_greso_skips_by_groups_in_a_row_and_moves_its_probabilities_to_the_targets():
    policy = greso.GRESO(info(size=8))
    assert weights(policy).tolist() == [1] * 8
    see(policy, [0, 1, 2, 3], NONE, ALL_RIGHT, HALF, UNGRADED)
    assert weights(policy).tolist() == [0, 0, 0, 0, 1, 1, 1, 1], "each is met once an epoch"
    assert (policy.p_easy, policy.p_hard) == (0.5, 0.5), "they move from the second epoch on"
    see(policy, [4, 5, 6, 7], HALF, HALF, HALF, HALF)
    assert policy.epoch == 1 and not policy.met.any()
    for _ in range(2):
        see(policy, [0, 1, 0, 1], NONE, ALL_RIGHT, NONE, ALL_RIGHT)
    policy.p_easy, policy.p_hard = 0.9, 0.2
    assert policy.chance(slice(0, 4)) == pytest.approx([0.01, 0.9**3, 1, 1])
    see(policy, [0, 1], HALF, HALF)
    assert policy.in_a_row.tolist() == [0] * 8
    assert (policy.p_easy, policy.p_hard) == pytest.approx((0.91, 0.21)), "no zero variance: both rise"
    see(policy, [2, 3, 4, 5, 6], NONE, HALF, HALF, HALF, HALF)
    assert (policy.p_easy, policy.p_hard) == pytest.approx((0.92, 0.20)), "20 % all wrong, the target is 16.7 %"
    see(policy, [2, 3, 4, 5, 6], ALL_RIGHT, NONE, HALF, HALF, HALF)
    assert (policy.p_easy, policy.p_hard) == pytest.approx((0.91, 0.19))


def test_greso_rolls_out_the_share_of_an_epoch_that_the_coins_say():
    policy = greso.GRESO(info(size=4000))
    policy.in_a_row[:] = 2
    assert weights(policy).mean() == pytest.approx(0.25, abs=0.03)
    first = policy.coins.copy()
    see(policy, list(range(4000)), *[HALF] * 4000)
    assert policy.epoch == 1 and (policy.coins != first).mean() > 0.9


def test_mopps_posterior_and_choice():
    policy = mopps.MoPPS(info())
    see(policy, [3, 5, 3], ONE, ALL_RIGHT, HALF)
    assert (policy.alpha[3], policy.beta[3]) == (1 + 3, 1 + 5) and (policy.alpha[5], policy.beta[5]) == (5, 1)
    see(policy, [3, 7], HALF, UNGRADED)
    assert (policy.alpha[3], policy.beta[3]) == (0.5 * 4 + 0.5 + 2, 0.5 * 6 + 0.5 + 2)
    assert policy.alpha[7] == policy.alpha[0] == policy.beta[0] == 1
    policy.alpha[:], policy.beta[:] = 9e6, 1e6  # rates of .9, and one of .5
    policy.alpha[4] = policy.beta[4] = 5e6
    assert np.argmax(weights(policy)) == 4 and weights(policy)[[4, 0]] == pytest.approx([1, 0.6], abs=1e-2)
    assert policy.pool_size == 8 * PROMPTS


def test_vade_decays_on_two_scales_and_prefers_a_third():
    policy = vade.VADE(info())
    see(policy, [3, 5], ONE, ALL_RIGHT)
    see(policy, [3], HALF)
    assert policy.successes[[3, 5, 0]] == pytest.approx([0.5 * 0.99 * 1 + 2, 0.99 * 4, 0])
    assert policy.failures[[3, 5, 0]] == pytest.approx([0.5 * 0.99 * 3 + 2, 0, 0])
    rates = np.linspace(0.05, 0.95, SIZE)
    policy.successes[:], policy.failures[:] = 1e8 * rates, 1e8 * (1 - rates)
    assert weights(policy) == pytest.approx(rates * (1 - rates) ** 2, abs=1e-3)


def test_kalman_gain_by_hand():
    policy = kgps.KGPS(info())
    policy.variance[:] = 1.0
    see(policy, [3], ONE)
    # p̂ = 1.5 / 5 = .3, z = log(.3 / .7), r = 1 / (4 · .3 · .7), v = 1.02, K = v / (v + r)
    observed, noise = np.log(0.3 / 0.7), 1 / (4 * 0.3 * 0.7)
    gain = 1.02 / (1.02 + noise)
    assert (policy.mean[3], policy.variance[3]) == pytest.approx((gain * observed, (1 - gain) * 1.02))
    assert (policy.mean[0], policy.variance[0]) == (0, 1.02)
    see(policy, [5], UNGRADED)
    assert policy.mean[5] == 0 and policy.variance[5] == pytest.approx(1.04)
    for _ in range(200):
        see(policy, [3], NONE)
    assert policy.mean[3] < -1.5 and policy.variance[0] == np.pi**2 / 3, "an uncertain rate is no wider than at first"


def test_kgps_prefers_rates_near_one_half_then_uncertain_ones():
    means, variances = np.array([0.0, 0.0, 3.0, 3.0]), np.array([0.0, 3.0, 3.0, 0.0])
    exact = kgps.utility(means, variances)
    draws = np.random.default_rng(0).normal(size=(400_000, 1)) * np.sqrt(variances) + means
    rate = 1 / (1 + np.exp(-draws))
    assert exact == pytest.approx((rate * (1 - rate)).mean(0), abs=1e-3)
    assert exact.tolist() == sorted(exact, reverse=True)


def test_pools_by_the_last_mean():
    policy = prime_pools.PrimePools(info(size=7))
    see(policy, range(6), NONE, ONE, HALF, [1, 1, 1, 0], ALL_RIGHT, [1, 1, 1, None])
    assert weights(policy).tolist() == [0.2, 0.2, 1, 1, 0, 0, 1]
    see(policy, [4, 5, 6], [1, 1, 0.9, 1], UNGRADED, NONE)
    assert weights(policy).tolist() == [0.2, 0.2, 1, 1, 0.2, 0, 0.2]


def test_vcrl_variance_bank_and_draws():
    counts, sizes = np.array([0, 1, 2, 4, 1, 2, 0]), np.array([4, 4, 4, 4, 5, 5, 1])
    assert vcrl.relative_variance(counts, sizes) == pytest.approx([0, 0.75, 1, 0, 4 / 6, 1, 0])
    policy = vcrl.VCRL(info())
    assert weights(policy) == pytest.approx([1 / SIZE] * SIZE)
    see(policy, [0, 1, 2, 3], NONE, ONE, HALF, UNGRADED)
    assert policy.priority[:4] == pytest.approx([0, 0.75, 1, -1]) and policy.lacking == pytest.approx(0.1 / 3)
    policy.lacking = 0.4
    assert weights(policy).sum() == pytest.approx(1)
    assert weights(policy)[:4] == pytest.approx(0.6 / SIZE + 0.4 * np.array([0, 0.75, 1, 0]) / 1.75)
    see(policy, [2], NONE)
    assert policy.priority[2] == pytest.approx(0.9) and policy.lacking == pytest.approx(0.9 * 0.4 + 0.1)


def test_dots_predicts_the_attention_weighted_mean_of_new_references():
    policy = dots.DOTS64(info(features=FEATURES))
    context = Context(policy.info.config, 0, 10, G, PROMPTS, (0,) * 5, np.random.default_rng(0))
    assert sorted(policy.references(context)) == list(range(SIZE)), "all, where there are fewer than 64"
    rows, groups = [2, 9, 11, 20], [NONE, ONE, ALL_RIGHT, UNGRADED]
    rewards = np.array([[np.nan if grade is None else grade for grade in group] for group in groups], dtype=float)
    policy.observe_references(np.array(rows), rewards, outcomes(rewards, 0.5, 1e-6), 0)
    known = FEATURES.astype(float)
    known = (known - known.mean(0)) / known.std(0)
    for query in (0, 2, 39):
        attention = np.exp([known[query] @ known[row] / np.sqrt(6) for row in rows[:3]])
        assert policy.difficulty[query] == pytest.approx(attention @ [1, 0.75, 0] / attention.sum(), abs=1e-5)
    assert not len(policy.references(context))
    policy.since = 4 * 64
    assert len(policy.references(context)) == SIZE
    with pytest.raises(ConfigError, match="there are none: give features"):
        dots.DOTS(info())


def test_dots_draws_by_the_softmax_of_the_distance_from_one_half():
    policy = dots.DOTS(info(size=4, features=FEATURES[:4]))
    policy.difficulty = 0.5 + np.array([0.0, -0.001, 0.002, 0.4])
    first = [np.argmax(weights(policy, seed)) for seed in range(3000)]
    shares = np.exp([0.0, -1, -2, -400])
    assert np.bincount(first, minlength=4) / 3000 == pytest.approx(shares / shares.sum(), abs=0.03)


def test_dots_draws_no_prompt_twice_within_half_of_what_its_references_serve():
    policy = dots.DOTS64(info(size=400, features=np.tile(FEATURES, (10, 1))))
    policy.since = 0
    for step in range(32):
        rows = np.argsort(-weights(policy, step))[:PROMPTS]
        assert not policy.met[rows].any() and policy.met.sum() == PROMPTS * step
        see(policy, rows, *[HALF] * PROMPTS)
    assert policy.since == 128 and not policy.met.any()


def test_dots_features_that_are_unknown_or_constant_do_not_count():
    features = np.array([[1, np.nan, 3, np.nan], [3, 5, 3, np.nan], [5, 7, 3, np.nan]], dtype=np.float16)
    assert dots.standardized(features) == pytest.approx(
        np.array([[-np.sqrt(1.5), 0], [0, -1], [np.sqrt(1.5), 1]]), abs=1e-5
    )


def make(name):
    """What a training with this policy draws by."""
    policy = PolicyConfig(policy=name, exploration=0.0)
    own = make_policy(info(name, features=FEATURES))
    stream = PromptStream(SIZE, 3, 0.0)
    return Difficulty(Evidence(SIZE), stream, policy, DifficultyOptions(), Shape(G, PROMPTS, 3), own)


def generation(difficulty, step):
    """One generation on samples of fixed success rates; returns the rows of its references and of its prompts."""
    rng = np.random.default_rng(step)
    rates = np.linspace(-0.5, 1.5, SIZE)

    def roll_out(rows):
        return (rng.random((len(rows), G)) < rates[rows][:, None]).astype(float)

    references = difficulty.references(step, 100)
    if len(references):
        difficulty.observe_references(references, roll_out(references), step)
    rows = difficulty.next_prompts(step, 100).rows
    difficulty.observe(roll_out(rows), step)
    return references.tolist(), rows.tolist()


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_resume_exactly(name):
    whole, seen = make(name), []
    for step in range(24):
        copy = make(name)
        arrays, rest = split_arrays(whole.state_dict())
        copy.load_state_dict(
            join_arrays({path: array.copy() for path, array in arrays.items()}, json.loads(json.dumps(rest)))
        )
        seen.append(generation(whole, step))
        assert generation(copy, step) == seen[-1]
        assert len(set(seen[-1][1])) == PROMPTS
    assert len({tuple(sorted(rows)) for _, rows in seen}) > 5, "it does not draw the same prompts for ever"


def test_every_rival_has_its_line_its_reference_and_its_place_on_the_page():
    page = (BENCH / "arena" / "README.md").read_text()
    files = {path.stem: path.read_text() for path in (BENCH / "arena" / "rivals").glob("*.py")}
    assert files.keys() == {policy.split(".")[1].split(":")[0] for policy in RIVALS}
    for name, text in files.items():
        assert f"`rivals/{name}.py`" in page
        assert re.search(r"arXiv\s2\d{3}\.\d{5}", text) or "https://github.com/" in text, name
    policies = {METHODS[name].options.get("policy") for name in TRAINED}
    assert all(policy in policies for policy in RIVALS if policy != "rivals.dots:DOTS64")


@pytest.fixture(scope="module")
def small_arena(tmp_path_factory):
    """An environment of 24 questions, measured where nothing else is stored."""
    folder, patch = tmp_path_factory.mktemp("arena"), pytest.MonkeyPatch()
    entry = replace(environments.ENVIRONMENTS["pool"], limit=24, test_size=4, test_rollouts=1)
    patch.setitem(environments.ENVIRONMENTS, "small", entry)
    patch.setattr(environments, "ROOT", folder)
    patch.setattr(environments, "BASE_RATES", folder)
    patch.setattr(arena, "COMPLETIONS", 8)
    yield "small"
    patch.undo()


TRAINED = (
    "oracle",
    "signal-scores",
    "inline-statistics-refill",
    "inline-prefill",
    "statistics-sharp-screen",
    "strata-both",
    "greso",
    "mopps",
    "vade",
    "kgps",
    "prime-pools",
    "vcrl",
    "dots",
)
"""Every rival, and what differs of the others."""


def test_seconds_are_counts_times_prices():
    prices = {"step": 10.0, "rollout": 1.0, "prefill": 100.0, "statistics": 0.5}
    prices |= {"choice with none": 0.0, "choice with statistics": 2.0}
    counts = {"step": 3, "rollouts": 7, "prefills": 2, "statistics": 4}
    assert arena_report.priced(counts, "none", prices) == 30 + 7 + 200 + 2
    assert arena_report.priced(counts, "statistics", prices) == 36 + 7 + 200 + 2
    assert arena_report.priced({"rollouts": 5, "prefills": 0, "statistics": 0}, "none", prices) == 5


def test_a_part_of_a_training_is_timed_without_what_is_timed_in_it(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(prices.time, "process_time", lambda: next(now))
    clock = prices.Clock()
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", lambda: (inner(), inner()))()
    assert clock.seconds == {"inner": 2, "outer": 3}


@pytest.mark.parametrize("name", TRAINED)
def test_methods_train(name, small_arena):
    cell = arena.train(small_arena, name, seed=5, steps=2, generations=4)
    assert len(cell["frac_zero_std"]) == 2 and cell["counters"]["groups"] >= 4
    assert cell["counters"]["rollouts"] >= 16
    assert cell["rows"][-1]["step"] == 2, "the end is measured, whenever else"
    assert cell["rows"][-1]["statistics"] == (24 if name == "inline-statistics-refill" else 0)
    if METHODS[name].features == "prefill":
        assert cell["extra"]["prefills"] == 24
    if "dots" in name:
        assert cell["counters"]["reference_rollouts"] == 24 * 4


ROWS = [{"step": 0, "rollouts": 0, "prefills": 0, "statistics": 0, "tokens": 0, "seconds": 0.0, "accuracy": 0.5}]


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        ({"oracle": [5]}, "run the method uniform too. Done: oracle: seeds 5"),
        ({"uniform": [1], "dots": [5]}, "uniform has none of the seeds 5, 6: give --seeds. Done: dots: seeds 5; uni"),
        ({"uniform": [5], "oracle": [6]}, "uniform and oracle share none of the seeds 5, 6"),
    ],
)
def test_a_table_that_is_empty_says_why(tmp_path, monkeypatch, done, reason):
    for method, seeds in done.items():
        for seed in seeds:
            cell = {"environment": "pool", "method": method, "seed": seed, "generations": 8}
            cell |= {"features": "none", "extra": {"rollouts": 0, "prefills": 0, "statistics": 0}, "rows": ROWS}
            (tmp_path / f"pool-{method}-seed{seed}.json").write_text(json.dumps(cell))
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path), "--seeds", "5", "6"])
    arena_report.main()
    assert reason in (tmp_path / "README.md").read_text()


def test_a_report_of_no_cells_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no finished cell"):
        arena_report.main()
    assert not list(tmp_path.iterdir())
