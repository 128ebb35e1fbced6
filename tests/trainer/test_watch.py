"""Alarms: each once, each with its cause, and none where nothing is wrong."""

import math

import numpy as np
import pytest

from hardsample.trainer.watch import KL_LIMIT, LOSS_FACTOR, WINDOW, ZERO_VARIANCE, Watch

NAN, INF = math.nan, math.inf


def names(watch, entries):
    """The names of the alarms at each entry."""
    return [[alarm.name for alarm in watch.update(entry)] for entry in entries]


def rewards(values):
    return [{"reward": float(value)} for value in values]


def raised(entries):
    watch = Watch()
    names(watch, entries)
    return [alarm.name for alarm in watch.raised]


def test_zero_variance_alarms_once_after_a_whole_window():
    watch = Watch()
    alarms = names(watch, [{"frac_reward_zero_std": 1.0}] * (3 * WINDOW))
    assert alarms == [[]] * (WINDOW - 1) + [["zero_variance"]] + [[]] * (2 * WINDOW)
    assert watch.raised[0].text.startswith("100% of the groups had zero variance over the last 10 logs")


@pytest.mark.parametrize(("logs", "where"), [(1, "its only log"), (3, "all 3 logs"), (WINDOW - 1, "all 9 logs")])
def test_a_training_shorter_than_a_window_is_judged_at_its_end(logs, where):
    watch = Watch()
    assert names(watch, [{"frac_reward_zero_std": 1.0}] * logs) == [[]] * logs
    assert [alarm.text.partition(":")[0] for alarm in watch.end()] == [
        f"100% of the groups had zero variance over {where}"
    ]


@pytest.mark.parametrize("shares", [[], [1.0, 0.8, 1.0], [1.0] * WINDOW, [1.0] * (WINDOW + 1)])
def test_the_end_raises_nothing_where_some_groups_teach_or_a_window_was_full(shares):
    watch = Watch()
    names(watch, [{"frac_reward_zero_std": share} for share in shares])
    assert watch.end() == []


def test_zero_variance_is_a_mean_above_its_limit():
    assert raised([{"frac_reward_zero_std": ZERO_VARIANCE}] * 50) == []
    assert raised([{"frac_reward_zero_std": value} for value in [1.0] * 9 + [0.4] + [1.0] * 8]) == []
    assert raised([{"frac_reward_zero_std": value} for value in [0.0] * 5 + [1.0] * 10]) == ["zero_variance"]


def test_our_own_count_of_zero_std_groups_is_preferred():
    ours = {"difficulty/frac_zero_std": 0.5, "frac_reward_zero_std": 1.0}
    assert raised([ours] * 20) == []
    assert raised([ours | {"difficulty/frac_zero_std": NAN}] * 20) == ["zero_variance"], "TRL's where ours is no number"


def test_zero_variance_is_looked_for_among_the_groups_that_are_trained_on():
    refilled = {"difficulty/frac_zero_std": 1.0, "difficulty/frac_zero_std_trained": 0.1, "frac_reward_zero_std": 1.0}
    assert raised([refilled] * 20) == []
    assert raised([refilled | {"difficulty/frac_zero_std_trained": 1.0}] * 20) == ["zero_variance"]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_is_divergence_at_once(name, value):
    watch = Watch()
    fine = {"loss": 0.1, "grad_norm": 1.0}
    assert names(watch, [fine, fine | {name: value}, fine, fine | {name: value}]) == [[], ["loss"], [], []]
    assert watch.raised[0].text.startswith(f"{name} is not finite")


def test_a_loss_out_of_all_proportion_is_divergence():
    usual = [{"loss": value} for value in np.resize([2.0, -1.0, 0.5, 3.0], 30)]
    assert raised([*usual, {"loss": 1.4 * LOSS_FACTOR}]) == []
    watch = Watch()
    assert names(watch, [*usual, {"loss": -2 * LOSS_FACTOR}])[-1] == ["loss"]
    assert "the loss is -200, 1.5 is usual" in watch.raised[0].text
    assert raised([{"loss": 2.0}] * (WINDOW - 1) + [{"loss": 1e9}]) == [], "what is usual is not known yet"


def test_losses_near_zero_are_as_usual():
    """GRPO's loss is 0 up to rounding when generations are not used twice."""
    assert raised([{"loss": value} for value in [1e-9] * 20 + [0.02, -0.9, 1.0]]) == []
    assert raised([{"loss": value} for value in [0.0] * 20 + [1.01]]) == ["loss"]


def test_one_wild_loss_does_not_become_usual():
    watch = Watch()
    entries = [{"loss": 1.0}] * 20 + [{"loss": 1e6}] * 60
    names(watch, entries)
    assert [alarm.name for alarm in watch.raised] == ["loss"]
    assert watch._on_loss({"loss": 1e6}), "still out of proportion after sixty of them"


@pytest.mark.parametrize("value", [KL_LIMIT * 1.01, INF, NAN])
def test_kl_away_from_the_reference(value):
    watch = Watch()
    assert names(watch, [{"kl": KL_LIMIT}, {"kl": value}, {"kl": value}]) == [[], ["kl"], []]
    assert "nats per token" in watch.raised[0].text


def test_several_things_may_go_wrong_at_once():
    assert names(Watch(), [{"kl": INF, "loss": NAN}]) == [["kl", "loss"]]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.7, 0.1, 1e-9, -1e9])
def test_constant_rewards_raise_nothing(value):
    assert raised(rewards([value] * 200)) == []


STEADY = {
    "around zero": lambda rng: rng.normal(0, 0.1, 500),
    "just above zero": lambda rng: abs(rng.normal(0, 1e-3, 500)),
    "below zero": lambda rng: rng.normal(-5, 1, 500),
    "rare successes": lambda rng: rng.binomial(64, 0.01, 500) / 64,
    "a single success": lambda rng: np.eye(1, 900, 30)[0] / 64,
    "few rollouts": lambda rng: rng.binomial(8, 0.3, 500) / 8,
    "rising": lambda rng: np.linspace(0, 1, 500) + rng.normal(0, 0.1, 500),
    "falling to harder samples": lambda rng: np.linspace(0.8, 0.6, 500) + rng.normal(0, 0.1, 500),
}


@pytest.mark.parametrize("case", STEADY)
def test_noise_is_no_collapse(case):
    alarmed = sum("reward_collapse" in raised(rewards(STEADY[case](np.random.default_rng(seed)))) for seed in range(10))
    assert alarmed == 0


COLLAPSES = {
    "to zero": (0.5, 0.0, 0.02),
    "to little": (0.8, 0.2, 0.1),
    "of a small reward": (0.02, 0.001, 0.002),
    "below zero": (-1.0, -9.0, 0.5),
    "of a large reward": (900.0, -100.0, 50.0),
}


@pytest.mark.parametrize("case", COLLAPSES)
def test_a_collapse_alarms_once_and_soon(case):
    high, low, noise = COLLAPSES[case]
    start = min(high, 0.0) - (10.0 if high < 0 else 0.0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        values = np.concatenate([np.linspace(start, high, 40), np.full(60, high), np.full(100, low)])
        alarms_by_step = names(Watch(), rewards(values + rng.normal(0, noise, 200)))
        steps = [step for step, alarms in enumerate(alarms_by_step) if alarms]
        assert len(steps) == 1 and alarms_by_step[steps[0]] == ["reward_collapse"]
        assert 100 < steps[0] < 100 + 2 * WINDOW


def test_the_collapse_says_from_where_to_where():
    watch = Watch()
    names(watch, rewards([0.5] * 20 + [0.0] * 20))
    assert watch.raised[0].text.startswith("the mean reward fell from 0.5 to 0")


@pytest.mark.parametrize("value", [None, "0.1", [1.0], NAN])
def test_what_is_no_number_is_passed_over(value):
    """TRL logs None where a step has no value; NaN of a reward or a share is none either."""
    keys = ("reward", "frac_reward_zero_std", "difficulty/frac_zero_std")
    watch = Watch()
    assert raised([dict.fromkeys(keys, value)] * 30) == []
    names(watch, rewards([0.5] * 20))
    assert names(watch, [{"reward": value}, {}, {"loss": None, "kl": None, "grad_norm": None}]) == [[], [], []]
    assert names(watch, rewards([0.0] * 20))[-1] == [] and watch.raised[0].name == "reward_collapse"


def test_logs_of_other_kinds_raise_nothing():
    entries = [{}, {"eval_loss": NAN, "eval_reward": 0.0}, {"train_runtime": 3.0, "train_loss": NAN}, {"epoch": 1}]
    assert raised(entries * 20) == []
